"""The hash of a model's source follows every file that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefold.models.fingerprint import source_digest


def test_a_file_counts_by_its_bytes_not_its_place(tmp_path: Path) -> None:
    digests = []
    for index, body in enumerate(("a = 1\n", "a = 2\n", "a = 1\n")):
        path = tmp_path / f"copy{index}.py"
        path.write_text(body)
        digests.append(source_digest(f"{path}:make"))
    assert digests[0] == digests[2] != digests[1]
    assert source_digest("timm:lcnet_050") == source_digest("hetnet") == ""
    checkpoints = source_digest("hetnet-fmnist"), source_digest("dualnet-fmnist")
    assert "" not in checkpoints
    assert checkpoints[0] != checkpoints[1]
    assert source_digest("elsewhere/hetnet-fmnist") == ""


@pytest.mark.parametrize("changed", ["layers.py", "blocks/__init__.py", "blocks/unit.py", "blocks/deep.py"])
def test_neighbours_that_a_file_imports_count(changed: str, tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    files = {
        "net.py": "import torch\nfrom blocks import unit\ndef make():\n    import layers\n",
        "layers.py": "A = 1\n",
        "blocks/__init__.py": "",
        "blocks/unit.py": "from .deep import B\n",
        "blocks/deep.py": "import net\n",  # a circle
        "alone.py": "",
    }
    for name, body in files.items():
        (tmp_path / name).write_text(body)
    name = f"{tmp_path / 'net.py'}:make"
    before = source_digest(name)
    (tmp_path / "alone.py").write_text("C = 1\n")
    assert source_digest(name) == before
    (tmp_path / changed).write_text(files[changed] + "# other\n")
    assert source_digest(name) != before


def test_the_data_beside_an_onnx_file_counts(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    before = source_digest(str(path))
    data = bytearray((tmp_path / "net.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.bin").write_bytes(data)
    assert source_digest(str(path)) != before
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert source_digest(str(tmp_path / "broken.onnx"))


def test_a_derived_network_counts_with_weights_and_source(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("a = 1\n")
    (tmp_path / "weights.safetensors").write_bytes(b"1")
    record = tmp_path / "network.json"
    record.write_text(json.dumps({"source": f"{tmp_path / 'net.py'}:make"}))
    seen = {source_digest(str(record))}
    (tmp_path / "net.py").write_text("a = 2\n")
    seen.add(source_digest(str(record)))
    (tmp_path / "weights.safetensors").write_bytes(b"2")
    seen.add(source_digest(str(record)))
    record.write_text(json.dumps({"source": str(record)}))  # a circle: refused when it is loaded
    seen.add(source_digest(str(record)))
    assert len(seen) == 4
