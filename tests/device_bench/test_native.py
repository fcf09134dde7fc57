"""The native runner's build and bundle, without a compiler or a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgefold.artifact import Format, sha256_of
from edgefold.device_bench.launch import Launchers, choose_launcher
from edgefold.device_bench.native_build import PROGRAMS, SYSTEM, build_runner
from edgefold.device_bench.native_bundle import MANIFEST, MANIFEST_SCHEMA, NATIVE, load_bundle
from edgefold.device_bench.runners.base import Completed
from edgefold.device_bench.runners.fake import QUIET_DEVICE, FakeDevice, FakeRunner
from edgefold.errors import ArtifactError, DeviceError, OutputError, UsageError


class BareRunner(FakeRunner):
    """A device that is reached over the network and has no Python."""

    url = "ssh://board"

    def run(self, argv: object, *, timeout_s: float) -> Completed:
        return Completed(127, b"", b"python3: not found")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runner of empty files with a right manifest, where it is looked for."""
    folder = tmp_path / "runner"
    folder.mkdir()
    programs = {}
    for form, (program, libraries) in PROGRAMS.items():
        files = sorted({program, *SYSTEM, *libraries})
        for name in files:
            (folder / name).touch()
        programs[form] = {"program": program, "files": files}
    hashes = {path.name: sha256_of(path) for path in folder.iterdir()}
    data = {"schema": MANIFEST_SCHEMA, "machine": "aarch64", "loader": SYSTEM[0], "programs": programs, "sha256": hashes}
    (folder / MANIFEST).write_text(json.dumps(data))
    monkeypatch.setenv("EDGEFOLD_RUNNER", str(folder))
    return folder


def test_only_what_a_format_needs_is_sent(bundle: Path) -> None:
    with BareRunner() as runner:
        launcher = choose_launcher(runner, Format.TFLITE)
        (sent,) = runner.device.pushed.values()
        assert sorted(sent) == sorted({"edgefold_tflite", "libLiteRt.so", *SYSTEM})
        argv = launcher.argv("/w/case", "bench.json")
    remote = argv[2]
    assert argv == [f"{remote}/{SYSTEM[0]}", "--library-path", remote, f"{remote}/edgefold_tflite", "/w/case/bench.json"]


def test_it_is_sent_once_for_many_cases(bundle: Path) -> None:
    with BareRunner() as runner:
        launchers = Launchers(runner)
        assert launchers.of(Format.ONNX) is launchers.of(Format.ONNX)
        assert len(runner.device.pushed) == 1


def test_another_machine_is_refused(bundle: Path) -> None:
    device = FakeDevice(states=(replace(QUIET_DEVICE, machine="armv7l"),))
    with BareRunner(device) as runner, pytest.raises(DeviceError, match="is armv7l, the native runner is for aarch64"):
        choose_launcher(runner, Format.ONNX)


def test_without_a_runner_the_message_says_how_to_build_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_RUNNER", str(tmp_path / "none"))
    with BareRunner() as runner:
        with pytest.raises(DeviceError, match="no native runner was built; build one with: edgefold runner build"):
            choose_launcher(runner, Format.ONNX)
        with pytest.raises(DeviceError, match="install one of them there, or use the native runner"):
            choose_launcher(runner, Format.ONNX, "python")


def test_a_damaged_runner_is_refused(bundle: Path) -> None:
    (bundle / "libLiteRt.so").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"'libLiteRt.so' of runner .* is missing or damaged"):
        load_bundle()
    (bundle / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match=r"cannot be read \('schema'\); build it again"):
        load_bundle()


def test_a_build_never_replaces_what_is_no_runner(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already; use it, or give --force"):
        build_runner(bundle)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(OutputError, match="is not a runner that was built here, so it is not replaced"):
        build_runner(other, force=True)


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs 'aarch64-linux-gnu-g.*apt-get install g.*-12-aarch64-linux-gnu"):
        build_runner(tmp_path / "out")


def test_every_package_is_pinned_by_hash() -> None:
    lines = [line for line in (NATIVE / "packages.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == 3
    assert all(line.split(" ")[1].startswith("--hash=sha256:") for line in lines)
