"""Every kind of source gives a checked model, and every kind of wrong source one clear sentence."""

from __future__ import annotations

import copy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgefold.errors import InputError, MissingExtraError, ModelError, UsageError
from edgefold.export.fold import fold_module
from edgefold.models.packing import save_weights
from edgefold.models.sources import Preprocessing, load_source

CODE = """
import torch
from torch import nn
import neighbour

class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)

    def forward(self, x):
        return self.conv(x) + neighbour.OFFSET

def net(width=2):
    return Net(width)

def with_inputs():
    return Net(), (torch.zeros(1, 1, 9, 9),)

def sized():
    module = Net()
    module.input_size = (1, 7, 6)
    return module

def broken():
    module = Net()
    torch.nn.init.constant_(module.conv.weight, float("nan"))
    return module, torch.zeros(1, 1, 4, 4)

def number():
    return 3

class ByName(Net):
    def forward(self, *, image, gain):
        return self.conv(image) * gain

def by_name(inputs=("gain", "image")):
    samples = {"image": torch.ones(1, 1, 9, 9), "gain": torch.full((1, 1, 1, 1), 2.0)}
    return ByName(), {name: samples.get(name, torch.ones(1)) for name in inputs}

def without_names():
    return ByName(), (torch.ones(1, 1, 9, 9), torch.ones(1, 1, 1, 1))
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("OFFSET = 1.0\n")
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture(autouse=True)
def forget_user_modules() -> None:
    for name in [name for name in sys.modules if name.startswith("edgefold_user_") or name == "neighbour"]:
        del sys.modules[name]


def test_a_trained_built_in_comes_with_everything() -> None:
    loaded = load_source("hetnet-fmnist")
    assert not loaded.module.training
    assert loaded.preprocess == Preprocessing(28, 28, (0.2860406,), (0.3530242,), "gray", resize="stretch")
    assert loaded.labels is not None
    assert loaded.labels[9] == "Ankle boot"
    assert loaded.calibration is not None
    assert loaded.evaluation is not None
    images, labels = loaded.evaluation
    assert (images.shape, images.dtype) == ((1000, 1, 28, 28), torch.float32)
    (example,) = loaded.example_inputs
    assert torch.equal(example, images[:1])
    with torch.inference_mode():
        right = (loaded.module(images).argmax(1) == labels).float().mean()
    assert loaded.accuracy == pytest.approx(right.item(), abs=0.025)


def test_an_untrained_built_in_with_arguments() -> None:
    loaded = load_source("hetnet", kwargs={"in_channels": 3, "resolution": 32})
    assert loaded.example_inputs[0].shape == (1, 3, 32, 32)
    assert (loaded.calibration, loaded.preprocess, loaded.accuracy) == (None, None, None)


def test_the_users_own_code(code: Path) -> None:
    loaded = load_source(f"{code}:with_inputs")
    assert loaded.name == "with_inputs"
    assert loaded.module(*loaded.example_inputs).shape == (1, 2, 7, 7)
    assert str(code.parent) not in sys.path
    assert load_source(f"{code}:sized").example_inputs[0].shape == (1, 1, 7, 6)


def test_inputs_may_be_in_the_file(code: Path) -> None:
    code.write_text(CODE + "\ndef example_inputs():\n    return torch.ones(2, 1, 5, 5)\n")
    loaded = load_source(f"{code}:net", kwargs={"width": 5})
    assert loaded.module(*loaded.example_inputs).shape == (2, 5, 3, 3)


def test_inputs_that_are_taken_by_name(code: Path) -> None:
    loaded = load_source(f"{code}:by_name")
    gain, image = loaded.example_inputs
    module = copy.deepcopy(loaded.module)  # as every stage does: the copy must use its own weights
    expected = module.conv(image) * gain  # type: ignore[operator]
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.zero_()
    assert torch.equal(module(gain, image), expected)
    graph = torch.export.export(module, loaded.example_inputs).graph
    assert [node.name for node in graph.nodes if node.op == "placeholder"][-2:] == ["gain", "image"]
    assert type(module).__name__ == "ByName"
    assert set(module.state_dict()) == {"conv.weight", "conv.bias"}


def test_wrong_names_of_inputs(code: Path) -> None:
    with pytest.raises(ModelError, match="'image' by name only, but the example inputs have no names; give them as a dictionary"):
        load_source(f"{code}:without_names")
    for names, problem in ((["image"], "missing a required"), (["gain", "image", "mask"], "unexpected keyword argument 'mask'")):
        with pytest.raises(ModelError, match=rf"example inputs .*its forward is .*{problem}"):
            load_source(f"{code}:by_name", kwargs={"inputs": names})


def test_a_program_that_takes_inputs_by_name(code: Path, tmp_path: Path) -> None:
    loaded = load_source(f"{code}:by_name")
    _, image = loaded.example_inputs
    module = type(loaded.module).__mro__[1](2)  # as the user's code has it
    program = torch.export.export(module.eval(), (), {"image": image, "gain": torch.full((1, 1, 1, 1), 3.0)})
    torch.export.save(program, tmp_path / "net.pt2")
    found = load_source(str(tmp_path / "net.pt2"), trust=True)
    assert torch.equal(found.module(*found.example_inputs), module(image=image, gain=torch.full((1, 1, 1, 1), 3.0)))


def test_a_program_with_an_open_batch_is_folded(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    program = torch.export.export(module, (torch.ones(2, 1, 5, 5),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = load_source(str(tmp_path / "net.pt2"), trust=True)
    # What sympy works out about the open size, and keeps, was taken for state of the network.
    (folded,) = fold_module(loaded.module, loaded.example_inputs).module(*loaded.example_inputs)
    torch.testing.assert_close(folded, module(*loaded.example_inputs))


def test_an_exported_program_needs_trust(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    x = torch.randn(1, 1, 6, 6)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(module, (x,)), path)
    with pytest.raises(ModelError, match="can run code of its author when it is loaded; give --trust"):
        load_source(str(path))
    with pytest.raises(UsageError, match="takes no arguments, but width"):
        load_source(str(path), kwargs={"width": 1}, trust=True)
    loaded = load_source(str(path), trust=True)
    assert torch.equal(loaded.example_inputs[0], x)
    assert torch.equal(loaded.module(x), module(x))
    assert [
        layer.geometry for layer in fold_module(loaded.module, loaded.example_inputs).plan.layers
    ]  # its shell is an fx module


def test_a_program_in_train_mode_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(module, (torch.randn(2, 1, 6, 6),)), path)
    with pytest.raises(ModelError, match="exported in train mode"):
        load_source(str(path), trust=True)


def test_not_an_exported_program(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelError, match="not an exported program"):
        load_source(str(path), trust=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ModelError, match="not an exported program"):
        load_source(str(path), trust=True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".wrapped.pt"])
def test_weights_are_loaded(suffix: str, code: Path, tmp_path: Path) -> None:
    module = load_source(f"{code}:sized").module
    nn.init.constant_(module.get_parameter("conv.weight"), 0.25)
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_weights(module, path)
    else:
        torch.save({"state_dict": module.state_dict()} if "wrapped" in suffix else module.state_dict(), path)
    loaded = load_source(f"{code}:sized", weights=path)
    assert torch.all(loaded.module.get_parameter("conv.weight") == 0.25)


def test_weights_replace_the_recorded_accuracy(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(load_source("hetnet-fmnist").module, path)
    assert load_source("hetnet-fmnist", weights=path).accuracy is None


class Payload:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (print, ("code ran",))


def test_bad_weights(code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"{code}:sized"
    bad = tmp_path / "bad.pt"
    torch.save({"conv.weight": Payload()}, bad)
    with pytest.raises(ModelError, match="cannot be read as tensors only"):
        load_source(spec, weights=bad)
    assert "code ran" not in capsys.readouterr().out
    torch.save(nn.Linear(2, 2), bad)  # a whole module, which torch's own message advises to load unsafely
    with pytest.raises(ModelError, match=r"Python objects, of 'torch\.nn\.modules\.linear\.Linear'\); save the state") as refused:
        load_source(spec, weights=bad)
    assert "\x1b" not in str(refused.value)
    assert "weights_only" not in str(refused.value)
    torch.save([1, 2], bad)
    with pytest.raises(ModelError, match="holds a list that is not a state dictionary"):
        load_source(spec, weights=bad)
    bad.write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read as tensors only"):
        load_source(spec, weights=bad)
    with pytest.raises(ModelError, match="there is no weights file"):
        load_source(spec, weights=tmp_path / "none.pt")
    wrong = tmp_path / "wrong.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, wrong)
    with pytest.raises(ModelError, match="does not fit Net"):
        load_source(spec, weights=wrong)


def test_bad_code(code: Path, tmp_path: Path) -> None:
    for spec, message in {
        f"{code}:wiht_inputs": "did you mean 'with_inputs'",
        f"{code}:net": "has no example inputs; return",
        f"{code}:number": "gave a value of type int, expected a torch.nn.Module",
        f"{code}:broken": r"NaN or infinity in 'conv\.weight'",
        f"{code}": "name its function that makes the model",
        f"{tmp_path}/none.py:net": "there is no file",
    }.items():
        with pytest.raises(InputError, match=message):
            load_source(spec)
    with pytest.raises(UsageError, match="cannot be called with depth=3"):
        load_source(f"{code}:net", kwargs={"depth": 3})
    code.write_text("import sys\nsys.exit(4)\n")
    with pytest.raises(ModelError, match="failed when it was imported: SystemExit: 4"):
        load_source(f"{code}:net")
    code.write_text("def net(:\n")
    with pytest.raises(ModelError, match="failed when it was imported: SyntaxError"):
        load_source(f"{code}:net")


def test_not_a_model(tmp_path: Path) -> None:
    for name, message in {
        "net.tflite": "is an exported artifact",
        "net.onnx": "is no ONNX model|is not an ONNX model",
        "net.safetensors": "holds weights and no network",
        "net.txt": "is not a model file",
    }.items():
        with pytest.raises(ModelError, match="there is no file"):
            load_source(str(tmp_path / name))
        (tmp_path / name).write_text("x")
        with pytest.raises(ModelError, match=message):
            load_source(str(tmp_path / name))
    with pytest.raises(UsageError, match="did you mean 'hetnet-fmnist'"):
        load_source("hetnet-fmnst")


def test_random_weights_are_the_same_in_every_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\nexample_inputs = torch.zeros(1, 3, 8, 8)\n\n\ndef net():\n    return torch.nn.Conv2d(3, 4, 3)\n"
    )
    state = torch.get_rng_state()
    weights = []
    for _ in range(2):
        torch.rand(3)
        made = load_source(f"{tmp_path}/net.py:net", kwargs={}).module
        assert isinstance(made, torch.nn.Conv2d)
        weights.append(made.weight.detach())
    assert torch.equal(weights[0], weights[1])
    torch.set_rng_state(state)
    expected = torch.rand(6)
    torch.set_rng_state(state)
    load_source(f"{tmp_path}/net.py:net")
    assert torch.equal(torch.rand(6), expected)


def test_timm_and_torchvision() -> None:
    pytest.importorskip("timm", reason="the extra zoo is not installed")
    loaded = load_source("timm:test_convnext", kwargs={"num_classes": 4})
    assert loaded.module(*loaded.example_inputs).shape == (1, 4)
    assert loaded.preprocess is not None
    assert (loaded.preprocess.height, loaded.preprocess.width) == loaded.example_inputs[0].shape[2:]
    loaded = load_source("torchvision:shufflenet_v2_x0_5")
    assert loaded.preprocess == Preprocessing(
        224, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "rgb", resize="crop", shorter_side=256
    )
    assert load_source("torchvision:lraspp_mobilenet_v3_large").example_inputs[0].shape[1] == 3  # downloads no backbone
    with pytest.raises(UsageError, match="did you mean 'timm:mobilenetv3_small_100'"):
        load_source("timm:mobilenetv3_smal_100")
    with pytest.raises(UsageError, match="torchvision cannot make 'mobilenet_v2' with depth=3"):
        load_source("torchvision:mobilenet_v2", kwargs={"depth": 3})


@pytest.mark.parametrize(("spec", "package"), [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision")])
def test_the_zoo_is_an_extra(spec: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'.*edgefold\[zoo\]"):
        load_source(spec)


def test_meta_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lazy.py"
    path.write_text("import torch\ndef net():\n    return torch.nn.Linear(2, 2, device='meta'), torch.zeros(1, 2)\n")
    with pytest.raises(ModelError, match=r"no values in 'weight' \(meta device\)"):
        load_source(f"{path}:net")
