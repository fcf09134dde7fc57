"""Results of stages that are kept for the next run: a folder each, named after a hash of all that the result depends on.

    FOLDER/STAGE-HASH/record.json   the whole hash, and the SHA-256 of every other file of the folder
    FOLDER/STAGE-HASH/…             what the stage made

A result counts only if its hash and those of its files are as recorded; what is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from edgefold.artifact import sha256_of
from edgefold.errors import ArtifactError, OutputError, UnsupportedError

RECORD: Final = "record.json"
_SCHEMA: Final = "edgefold.kept/1"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where results are kept; nowhere, if there is no folder.

    ``state`` stands for the network that all of them are of. ``anew`` names stages whose results are made again and replaced.
    """

    folder: Path | None = None
    state: str = ""
    anew: frozenset[str] = frozenset()

    def key(self, stage: str, *content: object) -> str:
        """The SHA-256 of a stage of this network and of all else that its result depends on (plain data, data classes, paths)."""
        text = json.dumps([_SCHEMA, self.state, stage, *content], sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()

    def take(
        self,
        stage: str,
        key: str,
        make: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
        *,
        worth: Callable[[T], bool] = lambda made: True,
    ) -> T:
        """The result that is kept under ``key``, or a new one, which is kept then.

        Args:
            stage: a word for the folder's name.
            key: of `key`.
            make: makes the result.
            save: writes it into a folder; what cannot be written (`UnsupportedError`, ``ValueError``) is not kept.
            load: reads it from there.
            worth: whether a new result is to be kept.

        Raises:
            OutputError: the folder cannot be written.
            Exception: whatever ``make`` raises.
        """
        if self.folder is None:
            return make()
        place = self.folder / f"{stage}-{key[:12]}"
        if stage not in self.anew and _whole(place, key):
            try:
                return load(place)
            except (ArtifactError, OSError, ValueError, KeyError):  # of another version
                pass
        made = make()
        if worth(made):
            _keep(place, key, lambda folder: save(made, folder))
        return made


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"a key is made of plain data, not of a {type(value).__name__}")


def _whole(place: Path, key: str) -> bool:
    """Whether a result is there, and is what was written."""
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in record["files"].items()}
        return record["key"] == key and all(sha256_of(place / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _keep(place: Path, key: str, save: Callable[[Path], None]) -> None:
    """Writes a result, whole or not at all."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
    except OSError as error:
        raise OutputError(
            f"folder '{place.parent}' cannot be written: {error.strerror}; choose an output that you may write to"
        ) from error
    try:
        save(folder)
        files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        (folder / RECORD).write_text(json.dumps({"key": key, "files": files}, indent=2) + "\n", encoding="utf-8")
        folder.chmod(0o755)  # mkdtemp makes private folders
        shutil.rmtree(place, ignore_errors=True)
        folder.replace(place)
    except (UnsupportedError, ValueError):
        pass
    except OSError as error:
        raise OutputError(f"result '{place}' cannot be kept: {error.strerror}; make room, or choose another output") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
