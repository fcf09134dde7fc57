"""From end to end on an ARM board over ssh and a phone over adb: ship, run, measure, compare with the host, leave nothing."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgefold.artifact import Format
from edgefold.device_bench import BenchOptions, bench, devices, diagnose, profile
from edgefold.device_bench.benchmark import host_outputs
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers, Worker
from edgefold.device_bench.method import placed
from edgefold.device_bench.named import DeviceSettings
from edgefold.device_bench.roofline import measure_roofline
from edgefold.device_bench.runners import SCHEMES, open_runner
from edgefold.errors import DeviceError, RuntimeFailure
from edgefold.results import Code, Measurement

pytestmark = pytest.mark.rig

QUICK = BenchOptions(processes=1, min_samples=3, min_time_s=0.0, max_secs=60, gate_max_s=0)
FILES = ("tiny.onnx", "tiny.tflite", "tiny-int8.tflite", "tiny.pte")


def left_on(url: str, folder: str, ssh_config: Path | None) -> list[str]:
    """What lies in the folder, without the runner's own that is used to look."""
    with open_runner(url, ssh_config=ssh_config) as runner:
        names = runner.run(["ls", folder], timeout_s=60).stdout.decode().split()
    return [name for name in names if name.startswith("edgefold-")][1:]


def check(result: Measurement) -> None:
    """It ran there, says that it was emulated, and computed what the host computes."""
    assert result.device.machine == "aarch64"
    assert Code.EMULATED in result.codes
    assert Code.OUTPUT_MISMATCH not in result.codes
    (parity,) = result.parity
    if result.artifact == "tiny-int8.tflite":
        assert parity.max_steps == 0
    else:
        assert parity.max_relative_error < 1e-6
    assert result.peak_rss_bytes
    assert result.base_rss_bytes
    assert result.peak_rss_bytes > result.base_rss_bytes
    assert result.device.abi == "arm64-v8a"


# One runner is on boards and on phones. Over ssh fast tests run the other formats too: two at the same time, and a damaged file.
@pytest.mark.parametrize("name", [FILES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FILES[1:])])
def test_native_runner_over_ssh(board: Path, native: Path, tiny: Path, name: str) -> None:
    check(bench(tiny / name, "ssh://board", options=QUICK, ssh_config=board, worker="native"))


# The INT8 file runs in the board's Python below too, where nothing may be left.
@pytest.mark.parametrize("name", ["tiny.onnx", pytest.param("tiny-int8.tflite", marks=pytest.mark.slow)])
def test_the_boards_own_python_over_ssh(board: Path, tiny: Path, name: str) -> None:
    result = bench(tiny / name, "ssh://board-user", options=QUICK, ssh_config=board, worker="python")
    check(result)
    assert result.device.affinity
    assert result.runtime == ("onnxruntime 1.32.0" if name.endswith(".onnx") else "ai-edge-litert 2.3.0")


@pytest.mark.parametrize("name", FILES)
def test_native_runner_over_adb(phone: str, native: Path, tiny: Path, name: str) -> None:
    result = bench(tiny / name, phone, options=QUICK)
    check(result)
    assert result.device.system == "Android"
    assert result.device.battery_percent == 87
    assert left_on(phone, "/data/local/tmp", None) == []


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if "int8" in name else name for name in FILES])
def test_times_of_ops_under_the_native_runner(phone: str, native: Path, tiny: Path, name: str) -> None:
    found = profile(tiny / name, phone)
    assert found.emulated
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    # 3x3 convolutions 3 -> 8 -> 4 channels on 16x16 pixels; ONNX Runtime pads the channels to its block.
    macs = [op.macs for op in found.ops if op.macs]
    assert macs[0] == 9 * 3 * 8 * 256
    assert macs[1] in (9 * 8 * 4 * 256, 9 * 8 * 8 * 256)


def test_two_models_take_turns_under_the_boards_python(board: Path, tiny: Path) -> None:
    cases = [make_case(tiny / name, seed=0) for name in ("tiny.tflite", "tiny-int8.tflite")]
    with open_runner("ssh://board-user", ssh_config=board) as runner:
        launcher = Launchers(runner, "python").of(Format.TFLITE)
        with placed(cases[0], runner, launcher, QUICK) as first, placed(cases[1], runner, launcher, QUICK) as second:
            (mine, others), ratio = first.process_with(second)
            outputs = [place.outputs()[0] for place in (first, second)]
    assert ratio > 0
    assert min(len(run.samples_ns) for run in (mine, others)) >= 3
    for case, output in zip(cases, outputs, strict=True):
        np.testing.assert_allclose(output, host_outputs(case)[0], atol=1e-5)


@pytest.mark.parametrize(("worker", "threads"), [("native", 2), pytest.param("python", 1, marks=pytest.mark.slow)])
def test_the_limits_of_a_device_are_measured_there(board: Path, phone: str, native: Path, worker: Worker, threads: int) -> None:
    url, config = (phone, None) if worker == "native" else ("ssh://board-user", board)
    with open_runner(url, ssh_config=config) as runner:
        options = replace(QUICK, threads=threads)
        found = measure_roofline(runner, Launchers(runner, worker).of(Format.ONNX), options, Format.ONNX)
    assert found.operations_per_s > 1e6
    assert found.bytes_per_s > 1e6
    assert found.threads == threads


def test_an_emulated_device_is_diagnosed_without_times(phone: str, native: Path, tiny: Path) -> None:
    report = diagnose(tiny / "tiny-int8.tflite", phone)
    assert (report.top, report.roofline) == ((), None)
    # The rig's core has integer dot products.
    assert [cause.title for cause in report.causes] == ["the device is emulated"]


def test_nothing_is_left_on_a_board_that_chooses_its_worker(board: Path, native: Path, tiny: Path) -> None:
    check(bench(tiny / "tiny-int8.tflite", "ssh://board", options=QUICK, ssh_config=board))
    assert left_on("ssh://board", "/tmp", board) == []


def test_devices_are_listed_with_their_state(board: Path, phone: str) -> None:
    ready, gone, handset = devices(["ssh://board", "ssh://board-refusing", phone], ssh_config=board)
    assert (ready.state, gone.state, handset.state) == ("ready", "unreachable", "ready")
    assert ready.info is not None
    assert (ready.info.temperature_c, ready.info.cores[0].governor) == (35.2, "performance")
    assert "it refused our key" in gone.detail


@pytest.mark.parametrize(
    ("host", "message"),
    [("board-refusing", "it refused our key"), ("board-changed", "its host key is unknown or not the one in known_hosts")],
)
def test_keys_that_do_not_match(board: Path, host: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message), open_runner(f"ssh://{host}", ssh_config=board):
        pass


def test_a_phone_that_is_not_there(phone: str) -> None:
    with pytest.raises(DeviceError, match="adb does not know it"), open_runner("adb://127.0.0.1:1"):
        pass


def test_a_full_disk(board: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\1" * (12 << 20))
    settings = DeviceSettings("ssh://board", ssh_config=board, folder="/home")
    with (
        SCHEMES["ssh"](settings, "board", False) as runner,
        pytest.raises(DeviceError, match=r"No space left on device|write error"),
    ):
        runner.push(tmp_path)


@pytest.mark.parametrize("where", ["ssh", "adb"])
def test_a_command_that_hangs_is_killed_there(board: Path, phone: str, where: str) -> None:
    url, config = ("ssh://board", board) if where == "ssh" else (phone, None)
    with open_runner(url, ssh_config=config) as runner:
        with pytest.raises(DeviceError, match=r"'sleep' did not finish on device .* within 2 s and was stopped"):
            runner.run(["sleep", "271"], timeout_s=2)
        found = runner.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"], timeout_s=60).stdout.decode()
    assert "sleep 271" not in found


@pytest.mark.parametrize("where", ["ssh", "adb"])
def test_a_runner_killed_by_a_signal_is_one_sentence(board: Path, phone: str, where: str) -> None:
    url, config = ("ssh://board", board) if where == "ssh" else (phone, None)
    with open_runner(url, ssh_config=config) as runner:
        assert runner.run(["sh", "-c", "kill -SEGV $$"], timeout_s=60).returncode == 139


def test_a_phone_that_is_unplugged_while_it_runs(phone: str, rig: Path) -> None:
    serial = phone.removeprefix("adb://")
    unplug = threading.Timer(2, subprocess.run, [[str(rig / "adb"), "disconnect", serial]], {"capture_output": True})

    def work() -> None:
        with open_runner(phone) as runner:
            unplug.start()
            runner.run(["sleep", "20"], timeout_s=60)

    with pytest.raises(DeviceError, match=r"broke before the command ended|gave no answer") as caught:
        work()
    unplug.join()
    assert any("may be left on device" in note for note in caught.value.__notes__)


def test_a_damaged_file_is_the_runtimes_sentence(board: Path, native: Path, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pte"
    # The head of the delegate's own data.
    path.write_bytes((tiny / "tiny.pte").read_bytes().replace(b"XH00", b"XXXX"))
    with pytest.raises(RuntimeFailure, match=r"the executorch runtime (refused|crashed on) 'bad.pte'"):
        bench(path, "ssh://board", options=QUICK, ssh_config=board, worker="native", reference=[])


def test_two_runs_at_the_same_time_do_not_meet(board: Path, native: Path, tiny: Path) -> None:
    results: dict[str, Measurement] = {}

    def run(name: str, worker: Worker) -> None:
        results[name] = bench(tiny / name, "ssh://board", options=QUICK, ssh_config=board, worker=worker)

    threads = [threading.Thread(target=run, args=pair) for pair in (("tiny.tflite", "native"), ("tiny-int8.tflite", "native"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        check(result)
    assert len(results) == 2
