"""Measurements in files: what ``edgefold bench --json`` prints, one or a list of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgefold.artifact import atomic_path
from edgefold.errors import ArtifactError
from edgefold.results import Measurement, from_dict, to_dict


def load_measurements(path: Path) -> list[Measurement]:
    """The measurements in a file.

    Raises:
        ArtifactError: it is missing, not JSON, or of another kind or version.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"measurements '{path}' do not exist; make them with: edgefold bench FILE --json >'{path}'"
        ) from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"'{path}' is not a file of measurements ({error}); make one with: edgefold bench --json") from error
    entries = data if isinstance(data, list) else [data]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ArtifactError(f"'{path}' is not a file of measurements; make one with: edgefold bench --json")
    return [from_dict(Measurement, entry) for entry in entries]


def save_measurements(path: Path, measurements: Sequence[Measurement], *, force: bool = False) -> None:
    """Writes measurements as a list, atomically.

    Raises:
        OutputError: the file exists and ``force`` is not set, or cannot be written.
    """
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(json.dumps([to_dict(each) for each in measurements]) + "\n", encoding="utf-8")
