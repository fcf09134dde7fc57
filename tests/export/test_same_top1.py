"""The same top-1: counted where the best two scores are clearly apart, in steps of the output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgefold.artifact import Format
from edgefold.export.verify import agreement, compare
from edgefold.pipeline import export_model, quantize_model
from edgefold.report.table import same_top1

STEP = 0.1
# The best two differ by 0, 1, 2, 3 and 9 steps.
SCORES = STEP * np.array([[5, 5, 0], [5, 4, 0], [5, 3, 0], [5, 2, 0], [9, 0, 0]], dtype=np.float32)


def test_only_samples_that_are_clear_count() -> None:
    other = SCORES.copy()
    other[1], other[2] = other[1, [1, 0, 2]], other[2, [1, 0, 2]]
    found = agreement("a", "b", (SCORES,), (other,), (STEP,))
    assert found.top1_agreement == pytest.approx(0.6)
    assert (found.top1_clear, found.top1_close) == (1.0, 3)
    assert same_top1(found.top1_agreement, found.top1_clear, found.top1_close) == "100.0 % where clear, 3 too close"
    other[4] = other[4, [1, 0, 2]]
    assert agreement("a", "b", (SCORES,), (other,), (STEP,)).top1_clear == 0.5


def test_without_steps_every_sample_counts() -> None:
    found = agreement("a", "b", (SCORES,), (SCORES[:, [1, 0, 2]],), (None,))
    assert found.top1_agreement == pytest.approx(0.2)
    assert (found.top1_clear, found.top1_close) == (None, None)
    assert same_top1(found.top1_agreement, None, None) == "20.0 %"
    assert same_top1(0.0, None, 4) == "4 too close"


def test_nan_is_far_from_every_number_and_elements_without_a_step_do_not_count() -> None:
    other = SCORES.copy()
    other[0, 0] = np.nan
    found = agreement("a", "b", (SCORES,), (other,), (STEP,))
    assert found.max_steps > 1e30
    assert found.share_different == pytest.approx(1 / 15)
    part = np.array([[np.nan, STEP, STEP]], dtype=np.float32)
    assert agreement("a", "b", (SCORES,), (other,), (part,)).max_steps == 0


def test_the_report_of_a_file_has_both(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(40, 2, 2, 2)
    program = quantize_model(net, inputs[:1], calibration=inputs, observer="minmax")
    artifact = export_model(program, format=Format.ONNX, out=tmp_path / "net.onnx", timing=False)
    step = program.table.activations["linear"].scale
    artifact = replace(artifact, outputs=artifact.outputs[:1])
    scores = step * np.array([[5, 4, 0], [0, 4, 1]], dtype=np.float32)
    swapped = scores[:, [1, 0, 2]]
    report = compare(artifact, program, (swapped,), (scores,))
    assert (report.top1_agreement, report.top1_clear, report.top1_close) == (0.0, 0.0, 1)
