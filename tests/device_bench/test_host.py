"""This machine as a device: the folder of its own that it works in."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgefold.device_bench.listing import devices
from edgefold.device_bench.runners import open_runner


def test_the_host_keeps_what_was_put_there(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_runner("host", keep=True) as runner:
        remote = runner.push(tiny / "tiny.onnx")
        runner.remove(remote)
    assert Path(remote).is_file()
    assert runner.kept == str(Path(remote).parents[1])


def test_a_full_host_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    (found,) = devices(["host"])
    assert (found.state, list(tmp_path.iterdir())) == ("no space", [])
    assert f"{tmp_path}: no space: 4 kB free, 1024 needed" in found.detail
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    (found,) = devices(["host"])
    assert (found.state, "No such file or directory); create it" in found.detail) == ("no folder", True)
