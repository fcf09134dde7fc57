"""What goes wrong between here and a device, with the real programs on both sides: each is one sentence, nothing stays."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edgefold.device_bench import BenchOptions, bench, bench_devices
from edgefold.device_bench.runners import open_runner
from edgefold.errors import DeviceError, RuntimeFailure
from edgefold.results import Code

pytestmark = pytest.mark.rig

QUICK = BenchOptions(processes=1, min_samples=3, min_time_s=0.0, max_secs=60, gate_max_s=0)
HERE = Path(__file__).parent
WAIT_S = 60.0


def below(pid: int) -> Iterator[int]:
    """All processes that a process started, and those that they did."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return
    for child in map(int, children):
        yield child
        yield from below(child)


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0 ").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


class World:
    """The processes of a rig, and its files as they are inside."""

    def __init__(self, rig: Path, kind: str) -> None:
        self.top = int((rig / kind / "pid").read_text())
        self.kind = kind

    def processes(self, word: str) -> list[int]:
        """Those of which an argument ends so."""
        return [pid for pid in below(self.top) if any(argument.endswith(word) for argument in arguments_of(pid))]

    def measuring(self) -> list[int]:
        """The native runner with a job; not what hashes its files."""
        return [
            pid
            for pid in self.processes("/edgefold_tflite")
            if arguments_of(pid)[-1:] and arguments_of(pid)[-1].endswith(".json")
        ]

    def work_folders(self) -> list[Path]:
        process = Path("/proc", str(next(below(self.top))))  # its root and its working folder are the device's
        if self.kind == "ssh":
            (place,) = (process / "root" / "srv").glob("edgefold-board-*")
            return list((place / "tmp").glob("edgefold-*"))
        return list((process / "cwd" / "data" / "local" / "tmp").glob("edgefold-*"))

    def sent_bytes(self) -> int:
        return sum(path.stat().st_size for folder in self.work_folders() for path in folder.rglob("*") if path.is_file())


@contextmanager
def when(happened: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Does something as soon as something has happened; looks a hundred times a second."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            try:
                if happened():
                    act()
                    return
            except (OSError, StopIteration):
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(params=["ssh", "adb"])
def device(request: pytest.FixtureRequest, board: Path, phone: str, rig: Path) -> tuple[str, Path | None, World]:
    """Both devices in turn: the URL, the configuration for ssh, and what is behind it."""
    if request.param == "ssh":
        return "ssh://board", board, World(rig, "ssh")
    return phone, None, World(rig, "android")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A folder that takes a while to send."""
    folder = tmp_path / "big"
    folder.mkdir()
    for name in ("one", "two", "three"):
        (folder / name).write_bytes(os.urandom(1 << 20) * 60)
    return folder


def pull(url: str, world: World, rig: Path) -> None:
    """Pulls the cable."""
    if world.kind == "android":
        subprocess.run([str(rig / "adb"), "disconnect", url.removeprefix("adb://")], capture_output=True, timeout=WAIT_S)
    else:
        for pid in world.processes("sshd: root@notty"):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("asks", "state", "words"),
    [(True, "unauthorized|authorizing", "does not trust this computer"), (False, "offline", "it is offline")],
)
def test_a_phone_that_nobody_unlocked_or_that_says_nothing(adb_server: str, asks: bool, state: str, words: str) -> None:
    with runpy.run_path(str(HERE / "bad_phone.py"))["bad_phone"](asks=asks) as serial:
        subprocess.run([adb_server, "connect", serial], capture_output=True, timeout=WAIT_S)
        with pytest.raises(DeviceError, match=rf"{words}.*\(state: ({state})\)"), open_runner(f"adb://{serial}"):
            pass


def test_the_cable_is_pulled_while_files_are_sent(device: tuple[str, Path | None, World], big: Path, rig: Path) -> None:
    url, config, world = device

    def work() -> None:
        with (
            open_runner(url, ssh_config=config) as runner,
            when(lambda: world.sent_bytes() > 1 << 20, lambda: pull(url, world, rig)),
        ):
            runner.push(big)

    with pytest.raises(DeviceError, match=r"broke before|sending files|did not arrive whole|cannot be reached"):
        work()
    # The next run is not disturbed, and the phone is found again.
    with open_runner(url, ssh_config=config) as runner:
        assert runner.run(["echo", "back"], timeout_s=WAIT_S).stdout == b"back\n"
        for folder in world.work_folders():
            if folder.name not in runner.push(HERE / "bad_phone.py"):
                runner.run(
                    ["rm", "-rf", f"{'/tmp' if world.kind == 'ssh' else '/data/local/tmp'}/{folder.name}"], timeout_s=WAIT_S
                )


def test_the_cable_to_a_board_is_pulled_while_it_measures(board: Path, native: Path, tiny: Path, rig: Path) -> None:
    world = World(rig, "ssh")
    endless = BenchOptions(processes=1, min_samples=10**9, max_secs=60, gate_max_s=0)
    with (
        when(world.measuring, lambda: pull("ssh://board", world, rig)),
        pytest.raises(DeviceError, match=r"broke before the command ended|it cannot be reached"),
    ):
        bench(tiny / "tiny.tflite", "ssh://board", options=endless, ssh_config=board, worker="native")
    # The board was there again: what still ran was ended, and nothing is left.
    assert world.measuring() == []
    assert world.work_folders() == []
    with when(world.measuring, lambda: pull("ssh://board", world, rig)):
        (result,) = bench_devices([tiny / "tiny.tflite"], ["ssh://board"], QUICK, ssh_config=board, worker="native")
    assert (result.error, result.attempts, len(result.measurements)) == ("", 2, 1)
    assert world.work_folders() == []


def test_the_runner_is_killed_while_it_measures(device: tuple[str, Path | None, World], native: Path, tiny: Path) -> None:
    url, config, world = device

    def kill() -> None:
        for pid in world.measuring():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    options = BenchOptions(processes=1, min_samples=10**9, max_secs=60, gate_max_s=0)
    with (
        when(lambda: world.measuring(), kill),
        pytest.raises(RuntimeFailure, match=r"crashed on 'tiny.tflite' \(SIGKILL\)|gave no answer"),
    ):
        bench(tiny / "tiny.tflite", url, options=options, ssh_config=config, worker="native")
    assert world.work_folders() == []


def test_a_full_phone(phone: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\1" * (12 << 20))
    with open_runner(phone) as runner:
        filler = "/data/local/tmp/filler"
        filled = runner.run(["sh", "-c", f"head -c 308000000 /dev/zero >{filler}"], timeout_s=WAIT_S)
        assert filled.returncode == 0, filled.stderr
        try:
            with pytest.raises(DeviceError, match=r"sending files to device|did not arrive whole on device"):
                runner.push(tmp_path)
        finally:
            runner.run(["rm", "-f", filler], timeout_s=WAIT_S)


def test_a_truncated_file_with_exit_code_0(phone: str, rig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real adb, from which the end of every file is hidden.
    client = tmp_path / "adb"
    client.write_text(
        f'#!/bin/sh\nif [ "$3" = push ]; then find "$4" -type f -exec truncate -s -1 {{}} +; fi\nexec {rig}/adb "$@"\n'
    )
    client.chmod(0o755)
    monkeypatch.setenv("ADB", str(client))
    with open_runner(phone) as runner, pytest.raises(DeviceError, match=r"did not arrive whole on device .*its SHA-256 differs"):
        runner.push(HERE / "bad_phone.py")


def test_a_login_that_prints_garbage(board: Path, native: Path, tiny: Path) -> None:
    result = bench(tiny / "tiny-int8.tflite", "ssh://board-noisy", options=QUICK, ssh_config=board, worker="native")
    assert Code.OUTPUT_MISMATCH not in result.codes
    assert result.device.machine == "aarch64"


def test_a_phone_whose_shell_prints_garbage(
    phone: str, native: Path, rig: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a mark of ours in it.
    client = tmp_path / "adb"
    noise = r"printf '\033[31mHello {\n@edgefold-exit 0\n'"
    client.write_text(f'#!/bin/sh\n[ "$3" != shell ] || {noise}\nexec {rig}/adb "$@"\n')
    client.chmod(0o755)
    monkeypatch.setenv("ADB", str(client))
    result = bench(tiny / "tiny-int8.tflite", phone, options=QUICK)
    assert Code.OUTPUT_MISMATCH not in result.codes
    assert result.device.machine == "aarch64"


def test_another_machine_than_the_runner_was_built_for(board: Path, native: Path, tiny: Path) -> None:
    with pytest.raises(DeviceError, match=r"'ssh://board-x86' is x86_64, the native runner is for aarch64"):
        bench(tiny / "tiny.tflite", "ssh://board-x86", options=QUICK, ssh_config=board, worker="native")


def test_hostile_words_arrive_as_they_are(device: tuple[str, Path | None, World]) -> None:
    words = runpy.run_path(str(HERE.parent / "device_bench" / "hostile.py"))["hostile"](1000)
    url, config, _ = device
    with open_runner(url, ssh_config=config) as runner:
        for start in range(0, len(words), 250):
            part = words[start : start + 250]
            done = runner.run(["printf", r"%s\0", *part], timeout_s=WAIT_S)
            assert done.stdout.decode().split("\0")[:-1] == part


def test_a_hostile_file_name_is_only_a_name(
    device: tuple[str, Path | None, World], native: Path, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "-rf $(touch pwned); 'x' \"& .tflite"
    path.write_bytes((tiny / "tiny.tflite").read_bytes())
    url, config, world = device
    assert bench(path, url, options=QUICK, ssh_config=config, worker="native").artifact == path.name
    assert world.work_folders() == []
    assert not list(Path.cwd().glob("*pwned*"))


def test_ctrl_c_leaves_nothing_on_any_device(
    board: Path, phone: str, rig: Path, native: Path, tiny: Path, tmp_path: Path
) -> None:
    worlds = [World(rig, "ssh"), World(rig, "android")]
    command = [
        sys.executable,
        "-c",
        # A shell starts what it runs in the background with SIGINT ignored, which is inherited.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from edgefold.cli import main; sys.exit(main())",
        "bench",
        str(tiny / "tiny.tflite"),
    ]
    command += [
        "--device",
        "ssh://board",
        "--device",
        phone,
        "--ssh-config",
        str(board),
        "--worker",
        "native",
        "--processes",
        "500",  # more than there is time for: it must not end by itself
        "--max-secs",
        "600",
    ]
    environment = {**os.environ, "EDGEFOLD_HISTORY": str(tmp_path / "history"), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    start = time.monotonic()
    while not all(world.measuring() for world in worlds):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() - start < WAIT_S
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, said.decode()
    for world in worlds:
        assert world.work_folders() == []
        assert world.measuring() == []
