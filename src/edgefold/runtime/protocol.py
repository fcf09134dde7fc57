"""What is said to the process that runs a model, and what its answer means."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgefold.artifact import Format
from edgefold.errors import ArtifactError, RuntimeFailure, UsageError

WORKER = Path(__file__).with_name("worker.py")
RACE = Path(__file__).with_name("race.py")
INSTALLED = Path(__file__).with_name("installed.py")
# Everything that a device needs; the worker finds its parts beside it.
WORKER_FILES = (WORKER, *(WORKER.with_name(f"worker_{part}.py") for part in ("timing", "trace", "roofline", "x86", "cores")))
PROTOCOL = 1
JOB_FILE = "job.json"


def worker_argv(*jobs: str) -> list[str]:
    """The command that answers a job (or one that times two models in turns) on this machine, with this interpreter."""
    # -I: neither the folder that the user stands in nor PYTHON* variables can bring in another module.
    return [sys.executable, "-I", str(WORKER), *jobs]


def python_path() -> list[str]:
    """Where this process finds its packages: an isolated interpreter of the same environment may not know all of it."""
    return [entry for entry in sys.path if entry and Path(entry).is_absolute()]


def ask(job: dict[str, Any], folder: Path, *, timeout_s: float) -> dict[str, Any]:
    """Answers one job in a fresh process on this machine; its files are in ``folder``.

    Raises:
        RuntimeFailure: the runtime crashed, failed, or took longer than the timeout.
        ArtifactError: the inputs do not fit the file.
    """
    model = Path(job["model"]).name
    job = {**job, "sys_path": python_path()}
    job_file = folder / JOB_FILE
    job_file.write_text(json.dumps(job), encoding="utf-8")
    try:
        done = subprocess.run(
            worker_argv(str(job_file)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeFailure(
            f"the {job['format']} runtime did not finish '{model}' within {timeout_s:g} s and was stopped; "
            "give it more time or fewer samples"
        ) from error
    return read_answer(done.returncode, done.stdout, done.stderr, model=model, format=Format(job["format"]))


def read_answer(returncode: int, stdout: bytes, stderr: bytes, *, model: str, format: Format) -> dict[str, Any]:
    """The answer in what a worker printed.

    ``returncode`` is negative or 128 + n for a process ended by signal n (here, or behind a remote shell).

    Raises:
        RuntimeFailure: there is no answer, or it says that the runtime failed.
        ArtifactError: it says that the inputs do not fit the file.
        UsageError: it says that the device has not the cores that were asked for.
    """
    answer = find_answer(stdout)
    number = -returncode if returncode < 0 else returncode - 128
    if answer is None and number in set(signal.Signals):
        name = signal.Signals(number).name
        raise RuntimeFailure(
            f"the {format} runtime crashed on '{model}' ({name}); the file may be damaged or the device short of memory: "
            "check its hash, or export it again"
        )
    if answer is None:
        said = last_line(stderr) or last_line(stdout) or "nothing"
        raise RuntimeFailure(
            f"the {format} runtime gave no answer for '{model}' (exit code {returncode}, it said: {said}); "
            "expected one line of JSON: check the runtime's installation"
        )
    if answer.get("ok") is True and returncode == 0:
        return answer
    reason = str(answer.get("error", f"exit code {returncode}")).strip().splitlines() or ["no reason"]
    match answer.get("kind"):
        case "missing":
            raise RuntimeFailure(f"no {format} runtime for '{model}': {reason[0]}; install one there, or use the native runner")
        case "cores":
            raise UsageError(reason[0])
        case "job":
            raise ArtifactError(f"'{model}' cannot be run like this: {reason[0]}")
        case _:
            raise RuntimeFailure(
                f"the {format} runtime refused '{model}': {reason[0]}; "
                "check that the file is whole and made for this runtime's version"
            )


def find_answer(stdout: bytes) -> dict[str, Any] | None:
    """The last line that is an answer; whatever else a runtime printed is skipped."""
    for line in reversed(stdout.decode("utf-8", errors="replace").splitlines()):
        if not line.startswith("{"):
            continue
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and answer.get("edgefold") == PROTOCOL:
            return answer
    return None


def last_line(text: bytes) -> str:
    """The last line with something in it, shortened to 200 characters."""
    lines = [line.strip() for line in text.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
