"""Files that are wrong, hostile or beyond what is read: one sentence, no code, no other file, no memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from edgefold.errors import InputError, ModelError, UnsupportedError, UsageError
from edgefold.models.from_onnx.source import from_onnx
from edgefold.models.sources import load_source
from tests.models.onnx_files import model_of, op_model, saved

IMAGE = (1, 2, 6, 6)
Damage = Callable[[onnx.ModelProto], None]


def sound() -> onnx.ModelProto:
    weights = {"w": np.ones((3, 2, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), helper.make_node("Relu", ["a"], ["y"], name="relu")]
    return model_of(nodes, {"x": IMAGE}, weights)


def refused(model: onnx.ModelProto, folder: Path, kind: type[InputError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        from_onnx(saved(model, folder))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_model(tmp_path: Path) -> None:
    data = sound().SerializeToString()
    path = tmp_path / "bad.onnx"
    for content in (b"", b"no model", data[:40], data[: len(data) // 2], data[:-1], bytes(range(256)) * 8, b"\x08\x08"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.onnx") as caught:
            load_source(str(path))
        assert "\n" not in str(caught.value)


def test_every_cut_of_a_file_ends_in_a_sentence(tmp_path: Path) -> None:
    data, path = sound().SerializeToString(), tmp_path / "cut.onnx"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            from_onnx(path)


def test_flipped_bytes_never_break_the_reader(tmp_path: Path) -> None:
    data, path = bytearray(sound().SerializeToString()), tmp_path / "flip.onnx"
    generator = np.random.default_rng(0)
    refusals = 0
    for _ in range(150):
        damaged = data.copy()
        damaged[int(generator.integers(len(data)))] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            from_onnx(path)
        except InputError:
            refusals += 1
    assert refusals > 10


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret.bin", "not inside its folder"),
        ("/etc/passwd", "not inside its folder"),
        ("link.bin", "not inside its folder"),
        ("", "not inside its folder"),
        ("a\0b", "not inside its folder"),
        ("none.bin", "does not exist"),
        (".", "does not exist"),
    ],
)
def test_weights_outside_of_the_folder(location: str, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(216))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = sound()
    _external(model, location=location)
    refused(model, folder, ModelError, words)


def test_weights_that_a_second_file_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    for entries, words in (
        ({"length": "216"}, "at bytes 0 to 216 of 'w.bin', which has 100"),
        ({"offset": "-8", "length": "8"}, "at bytes -8"),
        ({"offset": "two"}, "says wrongly where"),
        ({}, "holds 25 values"),
    ):
        model = sound()
        _external(model, location="w.bin", **entries)
        refused(model, tmp_path, ModelError, words)


def _external(model: onnx.ModelProto, **entries: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def test_a_cycle(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Abs", ["b"], ["y"]),
    ]
    refused(model_of(nodes, {"x": IMAGE}, {}), tmp_path, ModelError, "has a cycle")


def test_a_function_that_calls_itself_or_grows_without_end(tmp_path: Path) -> None:
    model = model_of([helper.make_node("f0", ["x"], ["y"], domain="own")], {"x": IMAGE}, {})
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.opset_import.append(helper.make_opsetid("own", 1))
    loop = [helper.make_node("f0", ["x"], ["y"], domain="own")]
    model.functions.append(helper.make_function("own", "f0", ["x"], ["y"], loop, imports))
    refused(model, tmp_path, ModelError, "calls itself")
    del model.functions[:]
    for depth in range(40):  # two calls each: 2**40 nodes
        name = f"f{depth + 1}" if depth < 39 else "Relu"
        domain = "own" if depth < 39 else ""
        twice = [helper.make_node(name, ["x"], ["a"], domain=domain), helper.make_node(name, ["a"], ["y"], domain=domain)]
        model.functions.append(helper.make_function("own", f"f{depth}", ["x"], ["y"], twice, imports))
    refused(model, tmp_path, UnsupportedError, "more than 100000 nodes")


def test_a_function_of_the_file_is_written_out(tmp_path: Path) -> None:
    model = model_of([helper.make_node("double", ["x"], ["y"], domain="own")], {"x": IMAGE}, {})
    model.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    model.functions.append(helper.make_function("own", "double", ["x"], ["y"], body, list(model.opset_import)))
    loaded = from_onnx(saved(model, tmp_path))
    assert torch.equal(loaded.module(*loaded.example_inputs), 2 * loaded.example_inputs[0])


def test_memory_is_not_taken_on_trust(tmp_path: Path) -> None:
    huge = np.array([2**20, 2**20], np.int64)
    node = helper.make_node("ConstantOfShape", ["n"], ["c"])
    add = helper.make_node("Add", ["x", "c"], ["y"])
    refused(model_of([node, add], {"x": (1, 1)}, {"n": huge}), tmp_path, ModelError, "ConstantOfShape in node '0'.*more than")
    refused(op_model("Expand", (1, 1), huge), tmp_path, ModelError, "more than")
    many = [helper.make_node("ConstantOfShape", ["n"], [f"c{place}"]) for place in range(40)]
    some = np.array([2**24], np.int64)
    refused(model_of([*many, add], {"x": (1, 1)}, {"n": some}), tmp_path, ModelError, "more than 1 GB")
    refused(op_model("Relu", (1, 2**40)), tmp_path, ModelError, "expected at most")
    refused(op_model("Resize", IMAGE, None, None, np.array([1, 2, 2**40, 6])), tmp_path, UnsupportedError, "expected sides of")
    refused(op_model("Split", IMAGE, axis=1, num_outputs=2**40), tmp_path, UnsupportedError, "cuts a size")
    pads = [2**20] * 4
    weights = {"c": np.ones(IMAGE, np.float32), "w": np.ones((3, 2, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["c", "w"], ["d"], pads=pads), helper.make_node("Add", ["x", "d"], ["y"])]
    refused(model_of(nodes, {"x": (1, 1)}, weights), tmp_path, ModelError, "more than")


def test_names_become_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "code_ran"
    evil = f'x"); open("{marker}", "w"); ("'
    model = sound()
    model.graph.input[0].name = model.graph.node[0].input[0] = evil
    model.graph.node[0].name = evil + "\nimport os"
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "forward.weight"
    model.graph.node[1].output[0] = model.graph.output[0].name = "class"
    loaded = from_onnx(saved(model, tmp_path))
    assert loaded.module(*loaded.example_inputs).shape == (1, 3, 4, 4)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda m: m.graph.initializer[0].dims.append(2), ModelError, "is 3×2×3×3×2 and holds 54 values"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 8), UnsupportedError, "of type STRING"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), UnsupportedError, "of type 99"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -3), ModelError, "is -3×2×3×3 and holds"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), ModelError, "has no shape"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "gone"), ModelError, "reads 'gone', which nothing gives"),
        (lambda m: setattr(m.graph.output[0], "name", "gone"), ModelError, "output 'gone'.*is given by nothing"),
        (lambda m: setattr(m.opset_import[0], "version", 8), UnsupportedError, "has opset 8, expected 9 to"),
        (lambda m: setattr(m.opset_import[0], "version", 999), UnsupportedError, "has opset 999"),
        (lambda m: setattr(m.graph.node[1], "op_type", "NonZero"), UnsupportedError, "NonZero in node 'relu'.*does not read"),
        (lambda m: setattr(m.graph.node[1], "op_type", "DequantizeLinear"), UnsupportedError, "quantized already"),
        (lambda m: setattr(m.graph.node[0], "op_type", "QLinearConv"), UnsupportedError, r"QLinearConv in node 'conv'"),
        (lambda m: setattr(m.graph.node[1], "domain", "com.microsoft"), UnsupportedError, "domain 'com.microsoft'"),
        (lambda m: m.graph.node[0].attribute.add(name="group", type=2, i=7), UnsupportedError, "and 7 groups"),
        (lambda m: m.graph.node[0].attribute.add(name="group", type=3, s=b"x"), UnsupportedError, "'group' of a wrong type"),
        (lambda m: m.graph.node[0].attribute.add(name="strides", type=7, ints=[0, 1]), UnsupportedError, "do not fit its kernel"),
        (lambda m: m.graph.node[0].attribute.add(name="pads", type=7, ints=[-1, 0, 0, 0]), UnsupportedError, "negative pads"),
        (lambda m: m.graph.node[0].attribute.add(name="auto_pad", type=3, s=b"SOME"), UnsupportedError, "auto_pad 'SOME'"),
        (lambda m: m.graph.node[0].input.pop(), UnsupportedError, "lacks its input 1"),
        (lambda m: m.graph.initializer.add(name="w", data_type=1, dims=[0]), InputError, "model.onnx"),
    ],
)
def test_what_does_not_fit(damage: Damage, kind: type[InputError], words: str, tmp_path: Path) -> None:
    model = copy.deepcopy(sound())
    damage(model)
    refused(model, tmp_path, kind, words)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (op_model("Reshape", IMAGE, np.array([5, 5])), "has another number of values"),
        (op_model("Squeeze", IMAGE, np.array([1])), "are not all 1"),
        (op_model("Concat", IMAGE, np.ones((1, 2, 5, 5), np.float32), axis=1), "Concat in node 'the_op'"),
        (op_model("Gather", IMAGE, np.array(9), axis=1), "index out of a size of 2"),
        (op_model("Softmax", IMAGE, axis=7), "axis 7 for a value of 4 dimensions"),
        (op_model("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32), mode="cubic"), "mode 'cubic'"),
        (op_model("Resize", IMAGE, None, np.array([1, 2, 2, 2], np.float32)), "expected new sizes in the last"),
        (op_model("MaxPool", IMAGE, kernel_shape=[9, 9]), "larger than its input"),
        (op_model("MaxPool", IMAGE, kernel_shape=[2, 2], outputs=("y", "places")), "gives indices"),
        (op_model("Conv", (1, 2, 5, 5, 5), np.ones((3, 2, 3, 3, 3), np.float32)), "expected one or two"),
        (op_model("Cast", IMAGE, to=8), "casts to element type 8"),
    ],
)
def test_forms_that_are_not_read(model: onnx.ModelProto, words: str, tmp_path: Path) -> None:
    refused(model, tmp_path, InputError, words)


def test_open_dimensions(tmp_path: Path) -> None:
    model = op_model("Relu", (1, 2))
    shape: Any = model.graph.input[0].type.tensor_type.shape
    del shape.dim[:]
    for name in ("batch", "channels", "height"):
        shape.dim.add(dim_param=name)
    path = str(saved(model, tmp_path))
    with pytest.raises(UsageError, match="leaves its dimension 1 open; give its size with --arg channels=SIZE"):
        load_source(path)
    with pytest.raises(UsageError, match="leaves no dimension 'width' open"):
        load_source(path, kwargs={"channels": 3, "height": 4, "width": 5})
    with pytest.raises(UsageError, match="size of dimension 'height' is 'tall'"):
        load_source(path, kwargs={"channels": 3, "height": "tall"})
    assert load_source(path, kwargs={"channels": 3, "height": 4}).example_inputs[0].shape == (1, 3, 4)
    assert load_source(path, kwargs={"channels": 3, "height": 4, "batch": 2}).example_inputs[0].shape == (2, 3, 4)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    model = sound()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 2, 3, 3), 0.1, np.float16), "w"))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    loaded = from_onnx(saved(model, tmp_path))
    assert {value.dtype for value in (*loaded.module.parameters(), *loaded.example_inputs)} == {torch.float32}
