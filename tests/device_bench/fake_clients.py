"""Stand-ins for the ssh and adb programs: the device is a folder of this machine, with its own sh.

Each writes its arguments to ``$CLIENT_LOG`` (one JSON list a line) and then does what the real one would, or fails as
``$CLIENT_FAULT`` says. They are for what the runners make of a client's behaviour; the rigs have the real clients.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path


def log() -> None:
    with Path(os.environ["CLIENT_LOG"]).open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")


def fault(name: str) -> bool:
    return os.environ.get("CLIENT_FAULT") == name


def shell(line: str) -> int:
    """Runs the line as a device does; a broken connection loses the end of the output."""
    if fault("break"):
        done = subprocess.run(["sh", "-c", line], capture_output=True)
        sys.stdout.buffer.write(done.stdout[: len(done.stdout) // 2])
        return 0
    if fault("garbage"):
        print("\x1b[31mWelcome to board\x00\xff", flush=True)
    # A session of its own: what runs on a device does not end when the client here is killed.
    return subprocess.run(["sh", "-c", line], start_new_session=True).returncode


def ssh() -> int:
    errors = {
        "hostkey": "Host key verification failed.",
        "auth": "user@board: Permission denied (publickey).",
        "refused": "ssh: connect to host board port 22: Connection refused",
        "unknown": "ssh: Could not resolve hostname board: Name or service not known",
    }
    for name, text in errors.items():
        if fault(name):
            print(text, file=sys.stderr)
            return 255
    arguments = sys.argv[1:]
    if "-O" in arguments:
        return 0
    line = arguments[arguments.index("--") + 2]
    if fault("truncate") and "tar -xf" in line:
        line = re.sub(r"tar -xf - -C (\S+?)(?=['\n])", r"tar -xf - -C \1 && find \1 -type f -exec truncate -s 1 {} +", line)
    if fault("full") and "tar -xf" in line:
        said = "tar: write error: No space left on device"
        line = f"echo @edgefold-begin; echo '{said}' >&2; printf '\\n@edgefold-exit 1\\n'"
    return shell(line)


def adb() -> int:
    arguments = sys.argv[1:]
    state = os.environ.get("CLIENT_STATE", "device")
    if arguments[:1] == ["devices"]:
        print("List of devices attached")
        for serial in os.environ.get("CLIENT_SERIALS", "PHONE1").split():
            print(f"{serial}\t{state} usb:1-1 product:p model:Phone device:d transport_id:1")
        return 0
    assert arguments[0] == "-s"
    verb = arguments[2]
    if verb == "connect":
        print("failed to connect")
        return 0
    if verb == "push":
        source, target = Path(arguments[3]), Path(arguments[4])
        shutil.copytree(source, target)
        if fault("truncate"):
            for path in (each for each in target.rglob("*") if each.is_file()):
                path.write_bytes(path.read_bytes()[:-1])
        if fault("cable"):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0
    return shell(arguments[3])


if __name__ == "__main__":
    log()
    sys.exit(ssh() if Path(sys.argv[0]).name == "ssh" else adb())
