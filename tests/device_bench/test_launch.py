"""A device's Python is used where its runtime really loads, whatever is installed there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgefold.artifact import Format
from edgefold.device_bench.launch import Launchers, PythonLauncher, choose_launcher, runtimes_of
from edgefold.device_bench.runners.base import Completed
from edgefold.device_bench.runners.client import run_client
from edgefold.device_bench.runners.fake import FakeRunner
from edgefold.errors import DeviceError

BROKEN = {
    "numpy": "",
    "onnxruntime": "raise ImportError('libgomp.so.1: cannot open\\nshared object file')",
    "tflite_runtime": "",
    "tflite_runtime.interpreter": "import os\nprint('hello from C++')\nos.kill(os.getpid(), 4)",
    "executorch": "",
    "executorch.extension": "",
    "executorch.extension.pybindings": "",
    "executorch.extension.pybindings._C": "",
}


class Board(FakeRunner):
    """Reached over the network, with this machine's Python and the modules in a folder alone."""

    url = "ssh://board"
    python = sys.executable

    def __init__(self, modules: Path) -> None:
        super().__init__()
        self.modules, self.probes = modules, 0

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        assert argv[1:3] == ["-I", "-c"]
        self.probes += 1
        source = f"import sys; sys.path.insert(0, {str(self.modules)!r})\n{argv[3]}"
        # Without the packages of the environment.
        return run_client([argv[0], "-I", "-S", "-c", source], timeout_s=timeout_s, env=dict(os.environ))


def board(folder: Path, modules: dict[str, str]) -> Board:
    for name, text in modules.items():
        place = folder.joinpath(*name.split("."))
        place.mkdir(parents=True, exist_ok=True)
        (place / "__init__.py").write_text(text)
    return Board(folder)


@pytest.fixture(autouse=True)
def _no_native_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_RUNNER", str(tmp_path / "none"))


def test_a_runtime_that_does_not_load_is_none(tmp_path: Path) -> None:
    with board(tmp_path, BROKEN) as runner:
        found = runtimes_of(runner)
        with pytest.raises(
            DeviceError, match=r"no Python with numpy and onnxruntime \(ImportError: libgomp.so.1: cannot open shared"
        ):
            choose_launcher(runner, Format.ONNX)
    assert found[Format.TFLITE] == "its import died of signal 4"
    # The bindings are there, and torch, without which they do not load, is not.
    assert found[Format.EXECUTORCH] == "ModuleNotFoundError: No module named 'torch'"


def test_one_that_loads_is_used_and_asked_for_once(tmp_path: Path) -> None:
    modules = {
        **BROKEN,
        "onnxruntime": "print('I am loaded')",
        "torch": "",
        "executorch.kernels": "",
        "executorch.kernels.quantized": "",
    }
    with board(tmp_path, modules) as runner:
        launchers = Launchers(runner)
        assert isinstance(launchers.of(Format.ONNX), PythonLauncher)
        assert isinstance(launchers.of(Format.EXECUTORCH), PythonLauncher)
        with pytest.raises(DeviceError, match="died of signal 4"):
            launchers.of(Format.TFLITE)
        assert runner.probes == 1


def test_what_is_not_installed_is_told(tmp_path: Path) -> None:
    with board(tmp_path, {"onnxruntime": ""}) as runner:
        found = runtimes_of(runner)
    assert found[Format.ONNX] == "ModuleNotFoundError: No module named 'numpy'"
    assert found[Format.TFLITE] == "not installed"
