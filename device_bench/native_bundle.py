"""The native runner as it was built: a folder with one program for each format, and how to start it on a device."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefold.artifact import Format, sha256_of
from edgefold.device_bench.runners.base import RemotePath, Runner
from edgefold.errors import ArtifactError

NATIVE = Path(__file__).with_name("native")
MANIFEST = "runner.json"
# Grows with what the programs can do.
MANIFEST_SCHEMA = "edgefold.runner/2"


@dataclass(frozen=True, slots=True)
class NativeBundle:
    """One built runner."""

    folder: Path
    machine: str
    loader: str
    programs: Mapping[Format, tuple[str, tuple[str, ...]]]  # the program and all files that it needs
    hashes: Mapping[str, str]


def default_bundle() -> Path:
    """Where the runner is built to and looked for: EDGEFOLD_RUNNER, or else the user's cache."""
    value = os.environ.get("EDGEFOLD_RUNNER")
    if value:
        return Path(value)
    from platformdirs import user_cache_path

    return user_cache_path("edgefold") / "runner-aarch64"


def load_bundle(folder: Path | None = None) -> NativeBundle | None:
    """The runner in a folder, by default the user's; ``None`` where none was built.

    Raises:
        ArtifactError: it is damaged or of another version.
    """
    folder = folder or default_bundle()
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != MANIFEST_SCHEMA:
            raise ValueError(f"schema {data['schema']}")
        programs = {Format(form): (str(entry["program"]), tuple(entry["files"])) for form, entry in data["programs"].items()}
        bundle = NativeBundle(folder, str(data["machine"]), str(data["loader"]), programs, dict(data["sha256"]))
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"runner '{folder}' cannot be read ({error}); build it again with: edgefold runner build --force"
        ) from error
    for name, digest in bundle.hashes.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise ArtifactError(
                f"'{name}' of runner '{folder}' is missing or damaged; build it again with: edgefold runner build --force"
            )
    return bundle


class NativeLauncher:
    """One program of the bundle, pushed to a device, started by the loader that comes with it. It holds one model at a time."""

    racer = None

    def __init__(self, runner: Runner, bundle: NativeBundle, form: Format) -> None:
        program, files = bundle.programs[form]
        self._program, self._loader = program, bundle.loader
        with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
            folder = Path(temporary) / "runner"
            folder.mkdir()
            for name in files:
                (folder / name).symlink_to((bundle.folder / name).resolve())
            self._remote = runner.push(folder)

    def files(self) -> list[Path]:
        """Nothing: the program lies in a folder of its own."""
        return []

    def job(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def argv(self, folder: RemotePath, *jobs: str) -> list[str]:
        """The command: a program of another C library only starts through its own loader."""
        remote = self._remote
        own = [f"{remote}/{self._loader}", "--library-path", remote, f"{remote}/{self._program}"]
        return [*own, *(f"{folder}/{job}" for job in jobs)]
