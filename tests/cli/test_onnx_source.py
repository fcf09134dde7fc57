"""An ``.onnx`` file as the model of every command that takes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import edgefold
from tests.models.onnx_files import model_of, op_model, saved

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with an open batch, and data for it."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "deep.weight"], ["c"], name="second", group=8, auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["d"], name="norm"),
        helper.make_node("Clip", ["d", "low", "high"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Shape", ["f"], ["shape"]),
        helper.make_node("Gather", ["shape", "first_place"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["f", "flat"], ["g"]),
        helper.make_node("Gemm", ["g", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    weights = {
        "stem.weight": floats(8, 1, 3, 3),
        "stem.bias": floats(8),
        "deep.weight": floats(8, 1, 3, 3),
        **{name: floats(8) for name in ("s", "t", "m")},
        "v": np.abs(floats(8)) + 0.5,
        "low": np.float32(0),
        "high": np.float32(6),
        "first_place": np.array([0]),
        "rest": np.array([-1]),
        "head.weight": floats(3, 8),
        "head.bias": floats(3),
    }
    model = model_of(nodes, {"x": ("batch", 1, 8, 8)}, weights)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    np.save(folder / "calibration.npy", rng.standard_normal((32, 1, 8, 8)).astype(np.float32))
    return folder


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "formats", [("onnx",), pytest.param(("onnx", "tflite", "executorch"), marks=pytest.mark.slow)], ids=["onnx", "all"]
)
def test_ship(formats: tuple[str, ...], cli: Cli, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wanted = [word for name in formats for word in ("-f", name)]
    ended = cli("ship", work / "net.onnx", "--calibration", work / "calibration.npy", "--device", "fake", *wanted, "-o", out)
    assert ended.code == 0, ended.stdout + ended.stderr
    x = np.load(work / "calibration.npy")[:4]
    session = onnxruntime.InferenceSession(work / "net.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    with edgefold.load_bundle(out) as bundle:
        assert len(bundle.names) == 2 * len(formats)
        for name in bundle.names:
            (found,) = edgefold.run(bundle.artifacts[name], x)
            tolerance = 1e-4 if name.endswith("fp32") else 0.1
            assert np.abs(found - expected).max() <= tolerance * (expected.max() - expected.min()), name


def test_fold_names_its_layers(cli: Cli, work: Path) -> None:
    plan = cli("fold", work / "net.onnx", "--json").data
    assert {"stem", "deep"} <= {layer["name"] for layer in plan["layers"]}


def test_export_with_any_batch_and_verify(cli: Cli, work: Path) -> None:
    out = work / "any.onnx"
    made = cli("export", work / "net.onnx", "-f", "onnx", "--dynamic-batch", "--no-timing", "-o", out)
    assert made.code == 0, made.stderr
    report = cli("verify", out, work / "net.onnx", "--json").data
    assert report["passed"]
    assert report["batches"] == [1, 3]


def test_quantize(cli: Cli, work: Path) -> None:
    ended = cli("quantize", work / "net.onnx", "--calibration", work / "calibration.npy", "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)


def _broken(folder: Path) -> dict[str, tuple[Path, str]]:
    cases: dict[str, tuple[onnx.ModelProto | bytes, str]] = {
        "cut": (op_model("Relu", (1, 2)).SerializeToString()[:20], "export it again"),
        "bytes": (b"this is no model", "is not an ONNX model"),
        "op": (op_model("NonZero", (1, 2)), "NonZero in node 'the_op'"),
        "quantized": (op_model("QuantizeLinear", (1, 2), np.float32(0.1)), "is quantized already"),
        "old": (op_model("Relu", (1, 2), opset=7), "has opset 7, expected 9 to"),
    }
    found = {}
    for name, (model, words) in cases.items():
        (folder / name).mkdir()
        path = folder / name / "model.onnx"
        found[name] = (path, words)
        if isinstance(model, bytes):
            path.write_bytes(model)
        else:
            saved(model, folder / name)
    return found


def test_one_sentence_for_a_file_that_is_not_read(cli: Cli, tmp_path: Path) -> None:
    for path, words in _broken(tmp_path).values():
        for command in (("fold", path), ("ship", path, "--calibration", "random", "-o", tmp_path / "out")):
            ended = cli(*command)
            assert ended.code == 2, ended.stderr
            assert ended.stdout == ""
            last = ended.stderr.strip().splitlines()[-1]
            assert last.startswith("edgefold: ")
            assert words in last
            assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
