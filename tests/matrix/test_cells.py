"""What identifies a cell, and how cells are read from and cut into lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgefold.artifact import Format, Precision
from edgefold.cli.matrix import _entries
from edgefold.errors import UsageError
from edgefold.matrix.cells import Cell, CellOptions, Entry, by_model, cell_from, cell_key, cells_of, failed, plain_cell
from edgefold.matrix.matrix import Matrix
from edgefold.matrix.page import causes, columns, grid, headline, kinds, render, text

CELL = Cell(Entry("hetnet", {"width": 16}), Format.ONNX, Precision.INT8)


def test_the_key_follows_all_that_the_result_depends_on(tmp_path: Path) -> None:
    key = cell_key(CELL, CellOptions())
    assert key == cell_key(cell_from(plain_cell(CELL)), CellOptions())
    others = [
        cell_key(Cell(Entry("hetnet", {"width": 8}), Format.ONNX, Precision.INT8), CellOptions()),
        cell_key(Cell(Entry("dualnet", {"width": 16}), Format.ONNX, Precision.INT8), CellOptions()),
        cell_key(Cell(CELL.entry, Format.TFLITE, Precision.INT8), CellOptions()),
        cell_key(Cell(CELL.entry, Format.ONNX, Precision.FP32), CellOptions()),
        cell_key(CELL, CellOptions(samples=1)),
        cell_key(CELL, CellOptions(bench=True)),
    ]
    assert len({key, *others}) == 7
    assert cell_key(CELL, CellOptions(threads=2)) == key  # threads only matter to a measurement


def test_groups_keep_a_models_cells_together() -> None:
    cells = cells_of([Entry("a"), Entry("b")], list(Format), [Precision.FP32])
    todo = [(cell, str(index)) for index, cell in enumerate(cells)]
    assert [[key for _, key in group] for group in by_model(todo)] == [["0", "1", "2"], ["3", "4", "5"]]
    assert [[key for _, key in group] for group in by_model(todo, 2)] == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    assert by_model([]) == []


def test_lists_of_models(tmp_path: Path) -> None:
    assert _entries("hetnet, timm:lcnet_050") == [Entry("hetnet"), Entry("timm:lcnet_050")]
    assert _entries("hetnet blocks=[1,1] width=16,dualnet") == [
        Entry("hetnet", {"blocks": [1, 1], "width": 16}),
        Entry("dualnet"),
    ]
    assert _entries("""hetnet conv='a,b' x=["a b", 2], c.py:d kw={"a": 1}""") == [
        Entry("hetnet", {"conv": "a,b", "x": ["a b", 2]}),
        Entry("c.py:d", {"kw": {"a": 1}}),
    ]
    (tmp_path / "network.json").write_text("{}")  # the result of prune or distill is a model, no list
    assert _entries(str(tmp_path / "network.json")) == [Entry(str(tmp_path / "network.json"))]
    with pytest.raises(UsageError, match="close every quote"):
        _entries("hetnet conv='a")
    path = tmp_path / "zoo.txt"
    path.write_text("# small ones\nhetnet width=16 blocks='[1, 1]'\n\nfile.py:make  # mine\n")
    assert _entries(str(path)) == [Entry("hetnet", {"width": 16, "blocks": [1, 1]}), Entry("file.py:make")]
    path.write_text("""net.py:f names=["a]b", 1] # brackets in a string\nnet.py:f x={"k": "don't [\\"{ #"} y='[1, "]"]' z=2\n""")
    assert _entries(str(path)) == [
        Entry("net.py:f", {"names": ["a]b", 1]}),
        Entry("net.py:f", {"x": {"k": "don't [\"{ #"}, "y": [1, "]"], "z": 2}),
    ]
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="names no model"):
        _entries(str(path))
    with pytest.raises(UsageError, match=r"there is no list 'missing\.txt'"):
        _entries("missing.txt")


def test_the_page_shows_every_cell_and_every_cause() -> None:
    good = failed(CELL, "k", "", "", "")
    cells = (
        replace(good, passed=True, sqnr_db=41.26, max_relative_error=0.01, quantization_db=20.0, size_bytes=1234),
        failed(Cell(Entry("<b>"), Format.TFLITE, Precision.FP32), "l", "emit", "Timeout", "took\nlong"),
    )
    matrix = Matrix(cells, "2026-01-02")
    assert columns(matrix) == ("onnx-int8", "tflite-fp32")
    assert [model for model, _ in grid(matrix)] == ["hetnet width=16", "<b>"]
    assert [text(cell) for _, row in grid(matrix) for cell in row] == ["41.3 dB", "", "", "FAILED emit"]
    assert headline(matrix) == "1 of 2 cells pass"
    assert kinds(cells) == [("emit: Timeout", 1)]
    assert causes(cells) == ["<b>, tflite-fp32: emit: took long"]
    page = render(matrix)
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "quantized against float 20.0 dB" in page
    assert "http://" not in page.replace("http-equiv", "")
