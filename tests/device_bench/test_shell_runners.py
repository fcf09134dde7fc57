"""What the ssh and adb runners make of their clients: clean-up, time limits, hashes, faults and hostile names."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers, PythonLauncher
from edgefold.device_bench.listing import devices
from edgefold.device_bench.named import DeviceSettings, named_devices
from edgefold.device_bench.race import RaceOptions, race
from edgefold.device_bench.runners import SCHEMES, Runner, open_runner
from edgefold.device_bench.runners.adb import parse_devices
from edgefold.device_bench.runners.base import checked_name, files_below
from edgefold.device_bench.runners.ssh import parse_target
from edgefold.errors import DeviceError, UsageError

CLIENTS = Path(__file__).with_name("fake_clients.py")
hostile = runpy.run_path(str(Path(__file__).with_name("hostile.py")))["hostile"]
URLS = ("ssh://user@board:2222", "adb://PHONE1")


class Bench:
    """The stand-in clients, and the folder that is the device's /data/local/tmp and /tmp."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.log, self._patch = folder / "device", folder / "log", monkeypatch
        self.device.mkdir()
        self.log.touch()
        programs = folder / "bin"
        programs.mkdir()
        for name in ("ssh", "adb"):
            # The stand-in sees its own name as a real client's.
            (programs / name).write_text(f"#!{sys.executable} -IS\n" + CLIENTS.read_text())
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setenv("CLIENT_LOG", str(self.log))
        monkeypatch.setenv("EDGEFOLD_DEVICES", str(folder / "devices.toml"))
        for name in ("ADB", "ANDROID_SERIAL", "EDGEFOLD_SSH_CONFIG"):
            monkeypatch.delenv(name, raising=False)

    def open(self, url: str, *, keep: bool = False) -> Runner:
        scheme, _, rest = url.partition("://")
        return SCHEMES[scheme](DeviceSettings(url, folder=str(self.device)), rest, keep)

    def fault(self, name: str) -> None:
        self._patch.setenv("CLIENT_FAULT", name)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def left(self) -> list[Path]:
        return list(self.device.iterdir())


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Two devices that are folders of this machine."""
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder to send."""
    folder = tmp_path / "case"
    (folder / "lib").mkdir(parents=True)
    (folder / "data.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "lib" / "tool").write_text("#!/bin/sh\necho hello\n")
    (folder / "lib" / "tool").chmod(0o755)
    return folder


@pytest.mark.parametrize("url", URLS)
def test_push_run_pull_and_nothing_left(lab: Bench, case: Path, tmp_path: Path, url: str) -> None:
    with lab.open(url) as runner:
        remote = runner.push(case)
        done = runner.run([f"{remote}/lib/tool"], timeout_s=20)
        assert (done.returncode, done.stdout) == (0, b"hello\n")
        assert runner.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=20).returncode == 7
        runner.pull(f"{remote}/data.bin", tmp_path / "back.bin")
        assert (tmp_path / "back.bin").read_bytes() == (case / "data.bin").read_bytes()
        single = runner.push(case / "data.bin")
        assert single.endswith("/data.bin")
        runner.remove(single)
        runner.remove(remote)
        assert [path.name for folder in lab.left() for path in folder.iterdir()] == []
    assert lab.left() == []


@pytest.mark.parametrize("url", URLS)
def test_keep_leaves_what_was_sent(lab: Bench, case: Path, url: str) -> None:
    with lab.open(url, keep=True) as runner:
        remote = runner.push(case)
        runner.remove(remote)
    assert (Path(remote) / "data.bin").exists()
    assert runner.kept == str(Path(remote).parent)


# Linux, and a device whose mounts have names with blanks; both full.
DF = "Filesystem 1024-blocks Used Available Capacity Mounted on\n{} 307200 307188 12 100% /tmp"


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    ("program", "text", "state", "words"),
    [
        ("df", f"cat <<'END'\n{DF.format('tmpfs')}\nEND", "no space", "no space: 12 kB free, 1024 needed); free some space"),
        ("df", f"cat <<'END'\n{DF.format('//nas/my files')}\nEND", "no space", "12 kB free"),
        ("mkdir", "echo 'mkdir: Read-only file system' >&2; exit 1", "read-only", "Read-only file system); mount it writable"),
        ("mkdir", "echo 'mkdir: No space left on device' >&2; exit 1", "no space", "No space left on device"),
        ("mkdir", "echo 'mkdir: Permission denied' >&2; exit 1", "not writable", "allow this user to write there"),
        ("mkdir", "echo 'mkdir: No such file or directory' >&2; exit 1", "no folder", "No such file or directory); create it"),
        ("df", "exit 127", "ready", ""),
        ("df", f"cat <<'END'\n{DF.format('tmpfs').replace(' 12 ', ' 1200 ')}\nEND", "ready", ""),
    ],
)
def test_why_a_device_has_no_place(lab: Bench, url: str, program: str, text: str, state: str, words: str) -> None:
    stand_in = lab.log.parent / "bin" / program
    stand_in.write_text(f"#!/bin/sh\n{text}\n")
    stand_in.chmod(0o755)
    (lab.log.parent / "devices.toml").write_text(f"[lab]\nurl = '{url}'\nfolder = '{lab.device}'\n")
    (found,) = devices(["lab"])
    assert found.state == state
    assert words in found.detail
    assert lab.left() == []


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(lab: Bench, case: Path, url: str, error: type[BaseException]) -> None:
    def work() -> None:
        with lab.open(url) as runner:
            runner.push(case)
            raise error

    with pytest.raises(error):
        work()
    assert lab.left() == []


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be reaped."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("url", URLS)
def test_a_command_that_hangs_is_killed_on_the_device(lab: Bench, tmp_path: Path, url: str) -> None:
    mark = tmp_path / "alive"
    with (
        lab.open(url) as runner,
        pytest.raises(DeviceError, match=r"'sh' did not finish on device .* within 1 s and was stopped"),
    ):
        runner.run(["sh", "-c", f"echo $$ >{shlex.quote(str(mark))}; sleep 30; sleep 30"], timeout_s=1)
    assert ended(int(mark.read_text()))
    assert lab.left() == []


@pytest.mark.parametrize("url", URLS)
def test_a_connection_that_breaks_is_never_success(lab: Bench, case: Path, url: str) -> None:
    with lab.open(url) as runner:
        lab.fault("break")
        with pytest.raises(DeviceError, match=r"the connection to device .* broke before the command ended"):
            runner.run(["echo", "a long answer"], timeout_s=20)
        lab.fault("")


@pytest.mark.parametrize("url", URLS)
def test_a_truncated_transfer_with_exit_code_0_is_found(lab: Bench, case: Path, url: str) -> None:
    with lab.open(url) as runner:
        lab.fault("truncate")
        with pytest.raises(DeviceError, match="did not arrive whole on device"):
            runner.push(case)
    assert lab.left() == []


def test_a_cable_pulled_during_a_push(lab: Bench, case: Path) -> None:
    with lab.open("adb://PHONE1") as runner:
        lab.fault("cable")
        with pytest.raises(DeviceError, match="sending files to device 'adb://PHONE1' failed"):
            runner.push(case)
    assert lab.left() == []


def test_a_full_disk(lab: Bench, case: Path) -> None:
    with lab.open("ssh://user@board:2222") as runner:
        lab.fault("full")
        with pytest.raises(DeviceError, match=r"failed: tar: write error: No space left on device; check its free space"):
            runner.push(case)


@pytest.mark.parametrize("url", URLS)
def test_a_device_that_dies_leaves_a_note_about_what_may_be_there(lab: Bench, case: Path, url: str) -> None:
    def work() -> None:
        with lab.open(url) as runner:
            runner.push(case)
            lab.fault("break")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    assert any("may be left on device" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("url", URLS)
def test_what_a_login_prints_is_no_output(lab: Bench, url: str) -> None:
    with lab.open(url) as runner:
        lab.fault("garbage")
        done = runner.run(["sh", "-c", "echo out; exit 3"], timeout_s=20)
        assert (done.returncode, done.stdout) == (3, b"out\n")
        lab.fault("")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hostkey", r"its host key is unknown or not the one in known_hosts"),
        ("auth", r"it refused our key: add your public key there"),
        ("refused", r"it cannot be reached"),
        ("unknown", r"its name is unknown: check the URL"),
    ],
)
def test_ssh_faults_say_what_to_do(lab: Bench, fault: str, message: str) -> None:
    lab.fault(fault)
    with pytest.raises(DeviceError, match=message), lab.open("ssh://user@board:2222"):
        pass


@pytest.mark.parametrize("state", ["unauthorized", "offline", "no permissions"])
def test_phones_that_are_not_ready(lab: Bench, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setenv("CLIENT_STATE", state)
    with pytest.raises(DeviceError, match=rf"\(state: {state}\)"), lab.open("adb://PHONE1"):
        pass
    (found,) = [each for each in devices() if each.url.startswith("adb")]
    assert found.state == state
    assert found.detail


def test_the_phone_is_the_only_one_or_named(lab: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.open("adb://") as runner:
        assert runner.url == "adb://PHONE1"
    monkeypatch.setenv("CLIENT_SERIALS", "A B")
    with pytest.raises(DeviceError, match=r"2 phones are attached \(A, B\); choose one"), open_runner("adb://"):
        pass
    monkeypatch.setenv("ANDROID_SERIAL", "B")
    with pytest.raises(DeviceError, match="has no place for our files"), open_runner("adb://") as runner:
        pass
    assert next(call for call in reversed(lab.calls()) if "shell" in call)[:2] == ["-s", "B"]
    assert devices(["adb://A"])[0].state == "no folder"
    monkeypatch.setenv("ANDROID_SERIAL", "C")
    with pytest.raises(DeviceError, match="adb does not know it"), open_runner("adb://"):
        pass


def test_ssh_gets_the_users_own_config_and_never_a_prompt(lab: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_runner("ssh://user@board:2222", ssh_config=tmp_path / "config"):
        pass
    call = lab.calls()[0]
    assert call[-3:-1] == ["--", "board"]
    assert call[call.index("-F") + 1] == str(tmp_path / "config")
    assert (call[call.index("-l") + 1], call[call.index("-p") + 1]) == ("user", "2222")
    assert "BatchMode=yes" in call
    assert not any("StrictHostKeyChecking" in word or "UserKnownHostsFile" in word for word in call)
    monkeypatch.setenv("EDGEFOLD_SSH_CONFIG", "/lab/config")
    with open_runner("ssh://board"):
        pass
    call = next(entry for entry in reversed(lab.calls()) if "-O" not in entry)
    assert call[call.index("-F") + 1] == "/lab/config"
    assert "-l" not in call


@pytest.mark.parametrize("url", URLS)
def test_hostile_arguments_arrive_as_they_are(lab: Bench, url: str) -> None:
    words = hostile(1000)
    with lab.open(url) as runner:
        for start in range(0, len(words), 100):
            part = words[start : start + 100]
            done = runner.run(["printf", r"%s\0", *part], timeout_s=20)
            assert done.stdout.decode().split("\0")[:-1] == part


def test_hostile_hosts_and_serials_are_refused_or_harmless(lab: Bench) -> None:
    accepted = 0
    for text in hostile(1000):
        for parse in (parse_target, lambda name: checked_name("serial", name)):
            try:
                parse(text)
            except UsageError:
                continue
            accepted += 1
            assert not text.startswith("-")
            assert not set(text) & set(" \n\r\t;$`'\"\\|&<>*?!#~{}=\x1b")
    assert accepted > 5
    for url in ("ssh://-oProxyCommand=x", "ssh://a@-x", "adb://-H", "ssh://a b", "ssh://a@b@c", "ssh://", "ssh://board:99x"):
        with pytest.raises(UsageError):
            open_runner(url)
    assert lab.calls() == []


def test_hostile_file_names_are_not_sent(tmp_path: Path) -> None:
    refused = 0
    for number, name in enumerate(hostile(200)):
        if "/" in name or name in (".", "..", ""):
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).touch()
        try:
            files_below(folder)
        except UsageError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("board", (None, "board", None)),
        ("pi@board.local:2222", ("pi", "board.local", "2222")),
        ("[fe80::1%eth0]:22", (None, "fe80::1%eth0", "22")),
        ("pi@[::1]", None),
    ],
)
def test_targets(target: str, expected: tuple[str | None, str, str | None] | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            parse_target(target)
    else:
        assert parse_target(target) == expected


def test_adb_devices_lines() -> None:
    text = (
        "* daemon started successfully\nList of devices attached\nX1 device usb:1 model:Pixel_8 device:s\n1.2.3.4:5555\toffline\n"
    )
    found = parse_devices(text)
    assert [(each.serial, each.state, each.model) for each in found] == [
        ("X1", "device", "Pixel_8"),
        ("1.2.3.4:5555", "offline", None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nfolder = '/x'", "device 'a' in .* has no url"),
        ("[a]\nurl = 'ssh://b'\nfolders = '/x'", r"unknown key in \[a\] of .* 'folders'; did you mean 'folder'"),
        ("[a]\nurl = 'ssh://b'\nfolder = 'x'", "expected an absolute path there"),
        ("[a]\nurl = 'ssh://b'\npython = 3", "'python' of device 'a' .* is 3, expected a text"),
        ("[a", "the devices file .* cannot be read"),
    ],
)
def test_devices_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        named_devices(path)


def test_the_launcher_uses_the_devices_python() -> None:
    assert PythonLauncher("/opt/python").argv("/w/case", "bench.json")[:2] == ["/opt/python", "-I"]


@pytest.mark.parametrize("url", [URLS[0], pytest.param(URLS[1], marks=pytest.mark.slow)])
def test_files_race_in_the_devices_own_python(lab: Bench, url: str) -> None:
    """The program and the worker that it builds upon are sent along, each file with its own inputs."""
    case = make_case(Path(__file__).parents[1] / "data" / "tiny" / "tiny.onnx", seed=0)
    scheme, _, rest = url.partition("://")
    settings = DeviceSettings(url, folder=str(lab.device), python=sys.executable)
    with SCHEMES[scheme](settings, rest, False) as runner:
        options = RaceOptions(processes=1, blocks=2, turn_s=0.0)
        found = race([case, case], runner, Launchers(runner, "python"), options)
    assert found.device.url == url
    assert [len(turns) for turns in found.turns_ns] == [4, 4]
    assert lab.left() == []
