"""Runs `probe` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgefold.errors import ArtifactError, RuntimeFailure
from edgefold.runtime.protocol import python_path

_PROBE = Path(__file__).with_name("probe.py")
_TIMEOUT_S = 300.0


def ask(kind: str, model: Path, *more: str) -> str:
    """What the probe printed.

    Raises:
        ArtifactError: the runtime refuses the file, or crashed on it.
        RuntimeFailure: it took too long.
    """
    argv = [sys.executable, "-I", str(_PROBE), kind, json.dumps(python_path()), str(model.resolve()), *more]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeFailure(f"the {kind} runtime did not load '{model.name}' within {_TIMEOUT_S:g} s and was stopped") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else "no message"
        if done.returncode < 0:
            reason = f"it crashed with signal {-done.returncode}"
        raise ArtifactError(
            f"the {kind} runtime cannot load '{model.name}': {reason[:300]}; the file is damaged or not supported"
        )
    return done.stdout
