"""What is sent to a device for an ONNX file whose weights lie in a second file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefold.device_bench.cases import BENCH_JOB, make_case, write_case
from edgefold.device_bench.options import BenchOptions
from edgefold.errors import ArtifactError
from edgefold.runtime.protocol import ask

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 3), ("y", 4))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(WEIGHT, "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_the_weights_go_along(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    case = make_case(model, seed=0)
    write_case(case, folder, BenchOptions(), {})
    job = {**json.loads((folder / BENCH_JOB).read_text()), "mode": "run"}
    answer = ask(job, folder, timeout_s=60.0)
    np.testing.assert_allclose(np.load(folder / answer["outputs"][0]), case.inputs[0] @ WEIGHT, rtol=1e-6)


def test_weights_that_are_not_beside_the_model(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    case = make_case(model, seed=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"keeps weights in 'weights\.bin', which is not a file beside it"):
        write_case(case, folder, BenchOptions(), {})
