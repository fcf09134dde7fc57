"""Commands that need no torch: help, files, devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgefold.artifact import sha256_of
from edgefold.bundle.writer import Contract, write_bundle, zip_path
from edgefold.cli.bench import minutes
from edgefold.cli.options import byte_count
from edgefold.device_bench.outlook import int8_outlook
from edgefold.errors import UsageError
from edgefold.preprocess import Preprocessing
from edgefold.report.content import Shipment

COMMANDS = (
    "ship",
    "fold",
    "quantize",
    "export",
    "verify",
    "run",
    "bench",
    "compare",
    "profile",
    "diagnose",
    "devices",
    "history",
    "models",
    "train",
    "prune",
    "distill",
    "matrix",
    "inspect",
    "doctor",
)
Cli = Callable[..., Any]


@pytest.fixture
def bundle_dir(make_shipment: Callable[[Path], Shipment], tmp_path: Path, tiny: Path) -> Path:
    """A bundle whose onnx-fp32 is a real model (16x16 RGB, four channels out) and whose other artifacts are not."""
    from dataclasses import replace

    from edgefold.artifact import Artifact
    from edgefold.runtime import describe

    found = describe(tiny / "tiny.onnx")
    assert found.precision is not None
    artifact = Artifact(
        tiny / "tiny.onnx", found.format, found.precision, sha256_of(tiny / "tiny.onnx"), found.inputs, found.outputs
    )
    shipment = make_shipment(tmp_path / "artifacts")
    variants = (replace(shipment.variants[0], artifact=artifact), *shipment.variants[1:])
    labels = tuple(f"class {number}" for number in range(30))
    contract = Contract(preprocessing=Preprocessing(16, 16, (0.5,) * 3, (0.25,) * 3), labels=labels)
    write_bundle(replace(shipment, variants=variants), contract, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["edgefold", "--help"]
from edgefold.cli import main
try:
    main()
except SystemExit as ended:
    heavy = ("torch", "numpy", "executorch", "litert_torch", "onnxruntime", "pydantic", "jinja2", "rich", "PIL", "scipy")
    print([name for name in heavy if name in sys.modules], ended.code)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *help_lines, last = result.stdout.splitlines()
    assert last == "[] 0"
    assert [line.split()[0] for line in help_lines if line.startswith("  ") and line.split()[0] in COMMANDS] == list(COMMANDS)
    assert [line for line in help_lines if line.startswith("  ") and line.endswith("...")] == [], "a summary is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(cli: Cli, command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.stdout


def test_version(cli: Cli) -> None:
    from importlib.metadata import version

    assert cli("--version").stdout == f"edgefold {version('edgefold')}\n"


@pytest.mark.parametrize(
    "args",
    [(), ("shp",), ("ship",), ("ship", "hetnet", "--format", "coreml"), ("bench", "x", "--threads", "0")],
)
def test_usage_errors_exit_2(cli: Cli, args: tuple[str, ...]) -> None:
    ended = cli(*args)
    assert ended.code == 2
    assert "Traceback" not in ended.stderr


def test_the_installed_script_works_and_keeps_stdout_clean(tiny: Path) -> None:
    script = Path(sys.executable).with_name("edgefold")
    result = subprocess.run([script, "inspect", tiny / "tiny.onnx", "--json"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("{")
    assert result.stderr == ""


def test_what_libraries_print_goes_to_stderr(cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    from edgefold.cli import targets

    real = targets.artifact_at

    def chatty(path: Path) -> Any:
        print("chatter from Python")
        os.write(1, b"chatter from C\n")
        return real(path)

    monkeypatch.setattr(targets, "artifact_at", chatty)
    ended = cli("inspect", tiny / "tiny.onnx", "--json")
    assert ended.data["schema"] == "edgefold.Inspection/1"
    assert "chatter from Python" in ended.stderr
    assert "chatter from C" in ended.stderr


@pytest.mark.parametrize("file", ["tiny.onnx", "tiny.tflite", "tiny-int8.tflite", "foreign.onnx"])
def test_inspect_file(cli: Cli, tiny: Path, file: str) -> None:
    ended = cli("inspect", tiny / file)
    assert ended.code == 0
    assert sha256_of(tiny / file) in ended.stdout
    assert "1 calls" not in ended.stdout
    (spec,) = cli("inspect", tiny / file, "--json").data["inputs"]
    assert sorted(spec["shape"]) == [1, 3, 16, 16]


def test_inspect_bundle(cli: Cli, bundle_dir: Path) -> None:
    ended = cli("inspect", bundle_dir)
    assert ended.code == 0
    assert "onnx-fp32" in ended.stdout
    assert "image: 16×16, (pixel / 255 − mean) / std with mean 0.5, std 0.25, rgb, resize " in ended.stdout
    assert "class 18, class 19 and 10 more\n" in ended.stdout
    assert cli("inspect", zip_path(bundle_dir), "--json").data["schema"] == "edgefold.bundle/1"


def test_run_file(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32))
    ended = cli("run", tiny / "tiny.tflite", tmp_path / "x.npy", "-o", tmp_path / "y.npz", "--json")
    assert ended.code == 0
    (output,) = ended.data["outputs"]
    assert output["shape"] == [2, 4, 16, 16]
    with np.load(tmp_path / "y.npz") as written:
        np.testing.assert_allclose(written["arr_0"], np.array(output["values"]), rtol=1e-6)
    table = cli("run", tiny / "tiny.tflite", tmp_path / "x.npy")
    assert "2×4×16×16" in table.stdout


def test_run_bundle_on_an_image(cli: Cli, bundle_dir: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")  # whatever the picture's mode, the manifest's colour counts
    ended = cli("run", bundle_dir, tmp_path / "x.png", "--json")
    assert ended.code == 0
    assert ended.data["artifact"] == "onnx-fp32"
    assert ended.data["outputs"][0]["shape"] == [1, 4, 16, 16]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "{tiny}/tiny.onnx", "none.npy"), "input 'none.npy' does not exist"),
        (("run", "{tiny}/tiny.onnx", "{tiny}/tiny.onnx"), "not a readable image"),
        (("run", "{tiny}/tiny.onnx", "{tmp}/bad.npy"), r"expected (any multiple of 1, 3, 16, 16)"),
        (("run", "{tiny}/tiny.onnx", "{tmp}/text.npy"), "not a file of plain arrays"),
        (("run", "{tiny}/tiny.onnx", "{tmp}/good.npy", "-o", "y.txt"), "does not end in .npz"),
        (("run", "{tiny}/tiny.onnx", "{tmp}/good.npy", "-o", "{tmp}/there.npz"), "exists already"),
        (("run", "{tiny}/tiny.onnx", "{tmp}/good.npy", "--artifact", "onnx-fp32"), "is one file"),
        (("run", "{bundle}", "{tmp}/good.npy", "--artifact", "onnx-fp23"), "did you mean 'onnx-fp32'"),
        (("bench", "none.onnx"), "'none.onnx' does not exist"),
        (("bench", "{tmp}/text.onnx"), "text.onnx"),
        (("bench", "{bundle}", "--artifact", "x"), "unknown artifact 'x'"),
        (("bench", "{tiny}/tiny.onnx", "--device", "hots"), "did you mean 'host'"),
        (("bench", "{tiny}/tiny.onnx", "--cores", "a-b"), "cores 'a-b' cannot be read"),
        (("bench", "{tmp}/empty"), "no manifest.json"),
        (("inspect", "{tmp}/text.zip"), "not a readable zip"),
        (("compare", "{tiny}/tiny.onnx", "none.onnx"), "'none.onnx' does not exist"),
        (("bench", "{tiny}/tiny.onnx", "--device", "fake", "--baseline", "none.json"), "none.json"),
        (("bench", "{tiny}/tiny.onnx", "--device", "fake", "--baseline", "{tmp}/text.npy"), "not a file of measurements"),
        (("bench", "{tiny}/tiny.onnx", "--sustained", "10"), "time '10' cannot be read"),
        (("bench", "{bundle}", "--sustained", "10m"), "one artifact and one device"),
        (("bench", "{tiny}/tiny.onnx", "--sustained", "1m", "--count", "instructions"), "do not go together"),
        (("bench", "{tiny}/tiny.onnx", "--count", "instructions", "--cpu", "cortex-a67"), "did you mean 'cortex-a76'"),
    ],
)
def test_bad_input_is_one_sentence(
    cli: Cli, tiny: Path, bundle_dir: Path, tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    np.save(tmp_path / "bad.npy", np.zeros((1, 3, 8, 8), np.float32))
    np.save(tmp_path / "good.npy", np.zeros((1, 3, 16, 16), np.float32))
    for name in ("text.npy", "text.onnx", "text.zip", "there.npz"):
        (tmp_path / name).write_text("no such thing")
    (tmp_path / "empty").mkdir()
    before = sorted(path for path in tmp_path.rglob("*"))
    ended = cli(*(arg.format(tiny=tiny, tmp=tmp_path, bundle=bundle_dir) for arg in args))

    assert ended.code == 2
    assert ended.stdout == ""
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("edgefold: ")
    assert words in last
    assert "Traceback" not in ended.stderr
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_bench_file_and_bundle(cli: Cli, tiny: Path, bundle_dir: Path) -> None:
    ended = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--json")
    assert ended.code == 0
    assert ended.data["schema"] == "edgefold.Measurement/1"
    listed = cli("bench", bundle_dir, "--artifact", "onnx-fp32", "--device", "fake", "--json")
    assert [found["artifact"] for found in listed.data] == ["hetnet-test-fp32.onnx"]
    table = cli("bench", tiny / "tiny.onnx", "--device", "fake")
    assert "median [95 %]" in table.stdout


def test_compare(cli: Cli, tiny: Path) -> None:
    ended = cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake", "--json")
    assert ended.code == 0
    assert ended.data["schema"] == "edgefold.Comparison/1"
    assert "time ratio" in cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake").stdout
    assert cli("compare", tiny / "tiny.onnx", tiny / "foreign.onnx", "--device", "fake", "--threshold", "-1").code == 2


def test_devices(cli: Cli) -> None:
    found = {status["name"]: status for status in cli("devices", "--json").data}
    assert found["host"]["info"]["machine"] == os.uname().machine
    assert cli("devices", "host", "fake").code == 0
    table = cli("devices", "host", "fake", "ssh://nobody@board.invalid")
    assert table.code == 3
    assert "unreachable" in table.stdout


@pytest.mark.usefixtures("quick")
def test_bench_several_devices(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefold.device_bench.fleet.RETRY_PAUSE_S", 0.0)
    quick = ("--processes", "1", "--max-secs", "1")
    ended = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--device", "host", *quick, "--json")
    assert ended.code == 0
    assert [found["device"]["url"] for found in ended.data] == ["fake", "host"]
    lost = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--device", "ssh://nobody@board.invalid", "--json")
    assert lost.code == 3
    assert [found["device"]["url"] for found in lost.data] == ["fake"]
    assert "board.invalid" in lost.stderr


def test_the_baseline_gate(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    stored = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--json")
    (tmp_path / "base.json").write_text(stored.stdout)
    same = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "base.json")
    assert same.code == 0, same.stderr
    data = stored.data
    for run in data["runs"]:
        run["samples_ns"] = [sample // 2 for sample in run["samples_ns"]]
    (tmp_path / "fast.json").write_text(json.dumps(data))
    slower = cli("bench", tiny / "tiny.onnx", "--device", "fake", "--baseline", tmp_path / "fast.json", "--fail-on", "slower:10%")
    assert slower.code == 1
    assert "times as long" in slower.stderr


@pytest.mark.usefixtures("quick")
def test_history_keeps_what_was_measured_here(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    assert cli("history", "--json").data == []
    quick = ("--processes", "1", "--max-secs", "1")
    assert cli("bench", tiny / "tiny.onnx", *quick).code == 0
    assert cli("bench", tiny / "tiny.onnx", *quick, "--no-remember").code == 0
    assert cli("bench", tiny / "tiny.onnx", "--device", "fake").code == 0
    (entry,) = cli("history", "tiny.onnx", "--json").data
    assert entry["device"] == "host"
    assert cli("bench", tiny / "tiny.onnx", *quick).code == 0
    assert cli("history", "tiny.onnx", "--svg", tmp_path / "trend.svg").code == 0
    assert (tmp_path / "trend.svg").read_text().startswith("<svg")


def test_sustained(cli: Cli, tiny: Path) -> None:
    ended = cli("bench", tiny / "tiny.onnx", "--sustained", "1s", "--json")
    assert ended.code == 0, ended.stderr
    assert ended.data["schema"] == "edgefold.SustainedResult/1"
    assert ended.data["points"]


@pytest.mark.parametrize(("text", "value"), [("90s", 1.5), ("10m", 10.0), ("1.5h", 90.0)])
def test_minutes(text: str, value: float) -> None:
    assert minutes(text) == pytest.approx(value)


def test_doctor(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = cli("doctor", "--json")
    assert ended.code == 0
    found = {finding["subject"]: finding for finding in ended.data["findings"]}
    assert {"torch", "onnxruntime", "executorch", "ai-edge-litert", "CPU", "INT8", "cache", "extra zoo"} <= found.keys()
    assert found["cache"]["level"] == "ok"
    assert "INT8" in cli("doctor").stdout


def test_doctor_fails_without_a_cache(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    ended = cli("doctor", "--json")
    assert ended.code == 1
    assert not ended.data["healthy"]


@pytest.mark.parametrize(
    ("machine", "features", "words"),
    [
        ("x86_64", {"avx2"}, "without VNNI"),
        ("x86_64", {"avx2", "avx512_vnni"}, "avx512_vnni"),
        ("x86_64", set(), "may be slower"),
        ("aarch64", {"asimd", "asimddp", "i8mm"}, "i8mm"),
        ("aarch64", {"asimd", "asimddp"}, "dotprod:"),
        ("aarch64", {"asimd"}, "neither dotprod"),
        ("riscv64", set(), "riscv64"),
    ],
)
def test_int8_outlook(machine: str, features: set[str], words: str) -> None:
    assert words in int8_outlook(machine, frozenset(features))[1]


def test_a_bug_is_one_sentence_too(cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("edgefold.cli.targets.artifact_at", broken)
    ended = cli("inspect", tiny / "tiny.onnx")
    assert ended.code == 3
    assert ended.stderr == "edgefold: internal error: ZeroDivisionError: oh no; run again with EDGEFOLD_DEBUG=1 to see where\n"


def test_ctrl_c_exits_130(cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgefold.cli.targets.artifact_at", interrupted)
    assert cli("inspect", tiny / "tiny.onnx").code == 130


@pytest.mark.parametrize(
    ("text", "count"),
    [(None, None), ("800000", 800_000), ("800kB", 800_000), ("2MB", 2_000_000), ("1.5MiB", 1_572_864), ("7 B", 7), ("1G", 10**9)],
)
def test_sizes_in_bytes(text: str | None, count: int | None) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "0.2", "-1", "2 TB", "big", "1e6"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read; expected a number of bytes"):
        byte_count(text)
