"""The table of precisions: which files there are, and the sentence where there is none."""

import pytest

from edgefold.artifact import Format, Precision
from edgefold.errors import UnsupportedError
from edgefold.matrix.cells import Entry, cells_of
from edgefold.schemes import SCHEMES, combinations, left_out


def test_every_precision_has_a_line_and_a_reason_for_each_format_that_it_lacks() -> None:
    assert set(SCHEMES) == set(Precision)
    for precision, scheme in SCHEMES.items():
        assert bool(scheme.missing) == (set(scheme.formats) != set(Format)), precision


def test_files_that_cannot_be_are_left_out_with_a_sentence() -> None:
    formats, precisions = tuple(Format), (Precision.FP32, Precision.INT16X8, Precision.INT8_WEIGHT_ONLY)
    found = combinations(formats, precisions)
    assert len(found) == 3 + 1 + 2
    assert (Format.TFLITE, Precision.INT16X8) in found
    first, second = left_out(formats, precisions)
    assert first.startswith("There is no int16x8 in onnx and executorch: only TFLite has kernels")
    assert second.startswith("There is no int8-weight-only in executorch: XNNPACK")
    cells = cells_of([Entry("a"), Entry("b")], formats, precisions)
    assert {(cell.format, cell.precision) for cell in cells} == set(found)
    assert len(cells) == 2 * len(found)


def test_a_precision_that_is_in_none_of_the_formats_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="precision 'int16x8' has no form in onnx"):
        combinations((Format.ONNX, Format.EXECUTORCH), (Precision.INT8, Precision.INT16X8))
