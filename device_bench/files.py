"""Measurements and instruction counts in files: what ``edgefold bench --json`` prints, one or a list of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgefold.artifact import atomic_path
from edgefold.device_bench.counts import InstructionCount
from edgefold.errors import ArtifactError
from edgefold.results import Measurement, from_dict, to_dict

T = TypeVar("T")
# What a file holds in words, and what makes it.
KINDS = {
    "Measurement": ("measurements", "edgefold bench FILE --json"),
    "InstructionCount": ("instruction counts", "edgefold bench FILE --count instructions --json"),
}


def load_measurements(path: Path) -> list[Measurement]:
    """The measurements in a file.

    Raises:
        ArtifactError: it is missing, not JSON, or of another kind or version.
    """
    return _load(path, Measurement)


def load_counts(path: Path) -> list[InstructionCount]:
    """The instruction counts in a file.

    Raises:
        ArtifactError: it is missing, not JSON, or of another kind or version.
    """
    return _load(path, InstructionCount)


def save_measurements(path: Path, measurements: Sequence[Measurement], *, force: bool = False) -> None:
    """Writes measurements as a list, atomically.

    Raises:
        OutputError: the file exists and ``force`` is not set, or cannot be written.
    """
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(json.dumps([to_dict(each) for each in measurements]) + "\n", encoding="utf-8")


def _load(path: Path, kind: type[T]) -> list[T]:
    name, command = KINDS[kind.__name__]
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{name} '{path}' do not exist; make them with: {command} >'{path}'") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"'{path}' is not a file of {name} ({error}); make one with: {command}") from error
    entries = data if isinstance(data, list) else [data]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ArtifactError(f"'{path}' is not a file of {name}; make one with: {command}")
    return [from_dict(kind, entry) for entry in entries]
