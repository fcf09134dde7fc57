"""What docs/devices.md tells its readers to write is taken as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from edgefold.artifact import Format
from edgefold.device_bench.named import named_devices
from edgefold.device_bench.native_bundle import NativeLauncher, load_bundle
from edgefold.device_bench.runners.host import HostRunner

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The page's one block of a language, without its indentation."""
    (found,) = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", PAGE, re.MULTILINE | re.DOTALL)
    return "".join(line.removeprefix(found[0]) for line in found[1].splitlines(keepends=True))


def test_the_example_of_named_devices(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(block("toml"))
    found = named_devices(path)
    assert found["bench-pi"].url == "ssh://pi@bench-pi.local"
    assert found["bench-pi"].ssh_config == Path("~/lab/ssh_config").expanduser()
    assert (found["pixel"].url, found["pixel"].python) == ("adb://39021FDJH00ABC", "python3")


def test_a_runner_made_by_hand_is_accepted_and_started(tmp_path: Path) -> None:
    folder = tmp_path / "my-runner"
    folder.mkdir()
    (folder / "start.sh").write_text(block("sh"))
    for name in ("edgefold_onnx", "edgefold_tflite"):
        (folder / name).write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH|$0|$*"\n')
    for name in ("libonnxruntime.so", "libLiteRt.so"):
        (folder / name).write_bytes(name.encode())
    subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, check=True)
    bundle = load_bundle(folder)
    assert bundle is not None
    with HostRunner() as runner:
        argv = NativeLauncher(runner, bundle, Format.TFLITE).argv("/case", "bench.json")
        done = runner.run(argv, timeout_s=30)
        remote = argv[2]
        assert sorted(path.name for path in Path(remote).iterdir()) == ["edgefold_tflite", "libLiteRt.so", "start.sh"]
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == f"{remote}|{remote}/edgefold_tflite|/case/bench.json"


def test_every_variable_that_is_read_is_on_the_page() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "device_bench").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", sources))
    assert {"EDGEFOLD_DEVICES", "EDGEFOLD_HISTORY", "EDGEFOLD_RUNNER", "ANDROID_SERIAL", "ADB"} <= read
    assert {name for name in read if f"`{name}`" not in PAGE} == set()
