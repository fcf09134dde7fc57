"""Every measurement that was made here, in one SQLite file that can be asked for a model's history on a device.

The columns are what one asks for; the whole result lies beside them as compressed versioned JSON.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgefold.artifact import sha256_of
from edgefold.device_bench.named import named_devices
from edgefold.device_bench.runners import SCHEMES
from edgefold.errors import ArtifactError, OutputError, unknown_name
from edgefold.results import NO_LATENCY, Code, Measurement, from_dict, to_dict

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    id INTEGER PRIMARY KEY,
    date TEXT NOT NULL,
    artifact TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    format TEXT NOT NULL,
    device TEXT NOT NULL,
    runtime TEXT NOT NULL,
    threads INTEGER NOT NULL,
    median_ns REAL NOT NULL,
    low_ns REAL NOT NULL,
    high_ns REAL NOT NULL,
    codes TEXT NOT NULL,
    result BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_artifact ON measurements (artifact, device, date);
"""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One measurement in short. ``changed`` tells that the file is another one than in the entry before of the same series."""

    id: int
    date: str
    artifact: str
    artifact_sha256: str
    format: str
    device: str
    runtime: str
    threads: int
    median_ns: float
    low_ns: float
    high_ns: float
    codes: tuple[Code, ...]
    changed: bool

    @property
    def series(self) -> tuple[str, str, str, int]:
        """Artifact, device, runtime and threads: only entries that agree in all of them may stand in one line."""
        return (self.artifact, self.device, self.runtime, self.threads)

    @property
    def is_latency(self) -> bool:
        """Whether the median is the latency of a real device, and would repeat."""
        return not NO_LATENCY & set(self.codes)


def history_file() -> Path:
    """Where the history is: EDGEFOLD_HISTORY, or else the user's data folder."""
    value = os.environ.get("EDGEFOLD_HISTORY")
    if value:
        return Path(value)
    from platformdirs import user_data_path

    return user_data_path("edgefold") / "history.sqlite3"


def remember(measurements: Sequence[Measurement], path: Path | None = None) -> None:
    """Adds measurements to the history.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = [
        (
            each.date, each.artifact, each.artifact_sha256, each.format.value, each.device.url, each.runtime, each.threads,
            each.median_ns, *each.interval_ns, " ".join(each.codes), zlib.compress(json.dumps(to_dict(each)).encode()),
        )
        for each in measurements
    ]  # fmt: skip
    path = path or history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(path) as database, database:
            database.executemany(
                "INSERT INTO measurements (date, artifact, sha256, format, device, runtime, threads, median_ns, low_ns, high_ns,"
                " codes, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
    except (OSError, sqlite3.Error) as error:
        raise OutputError(f"history '{path}' cannot be written ({error}); name another file with EDGEFOLD_HISTORY") from error


def history(
    artifact: Path | str | None = None, device: str | None = None, *, limit: int = 1000, path: Path | None = None
) -> list[HistoryEntry]:
    """Past measurements from old to new, of one artifact and one device if given.

    Args:
        artifact: a file, of which all measurements of this content or under this name count, whatever folder it was in; or a
            file name; or the beginning of a SHA-256.
        device: its URL, or its name in the devices file; ``adb://`` is the phone of ANDROID_SERIAL, or every phone.
        limit: the newest so many.
        path: the history's file.

    Raises:
        ArtifactError: the file is not a history.
        UsageError: there is no device of this name.
    """
    conditions, values = ["1"], []
    for condition, some in (_of_artifact(artifact), _of_device(device)):
        conditions.append(condition)
        values += some
    query = (
        "SELECT id, date, artifact, sha256, format, device, runtime, threads, median_ns, low_ns, high_ns, codes FROM measurements"
        f" WHERE {' AND '.join(conditions)} ORDER BY date DESC, id DESC LIMIT ?"
    )
    entries: list[HistoryEntry] = []
    before: dict[tuple[str, str, str, int], str] = {}
    for row in reversed(_read(path or history_file(), query, (*values, limit))):
        columns: list[Any] = [*row[:11], tuple(Code(word) for word in row[11].split()), False]
        entry = HistoryEntry(*columns)
        changed = before.get(entry.series, entry.artifact_sha256) != entry.artifact_sha256
        entries.append(replace(entry, changed=changed))
        before[entry.series] = entry.artifact_sha256
    return entries


def remembered(path: Path | None = None) -> list[tuple[str, str]]:
    """Every artifact with every device that it was measured on, the newest first.

    Raises:
        ArtifactError: the file is not a history.
    """
    query = "SELECT artifact, device FROM measurements GROUP BY artifact, device ORDER BY max(date) DESC"
    return [(row[0], row[1]) for row in _read(path or history_file(), query, ())]


def _of_artifact(artifact: Path | str | None) -> tuple[str, list[str]]:
    """The condition for an artifact and its values."""
    if artifact is None:
        return "1", []
    text, name = str(artifact), Path(artifact).name
    digest = sha256_of(Path(artifact)) if Path(artifact).is_file() else text.lower()
    # Eight digits: what is shorter is more likely a name.
    return "(artifact IN (?, ?) OR (length(?) >= 8 AND substr(sha256, 1, length(?)) = ?))", [text, name, *[digest] * 3]


def _of_device(device: str | None) -> tuple[str, list[str]]:
    """The condition for a device and its values."""
    if device is None:
        return "1", []
    url = device
    if "://" not in device and device not in SCHEMES:
        named = named_devices()
        if device not in named:
            raise unknown_name("device", device, ["host", "ssh://user@board", "adb://SERIAL", *named])
        url = named[device].url
    if url != "adb://":
        return "device = ?", [url]
    # Measurements are kept under the serial that adb gave.
    serial = os.environ.get("ANDROID_SERIAL")
    return ("device = ?", [url + serial]) if serial else ("substr(device, 1, 6) = ?", [url])


def recall(number: int, path: Path | None = None) -> Measurement:
    """The whole measurement of a `HistoryEntry`.

    Raises:
        ArtifactError: there is none with this number, or the file is not a history.
    """
    path = path or history_file()
    rows = _read(path, "SELECT result FROM measurements WHERE id = ?", (number,))
    if not rows:
        raise ArtifactError(f"history '{path}' has no measurement {number}; list them with: edgefold history")
    return from_dict(Measurement, json.loads(zlib.decompress(rows[0][0])))


def _read(path: Path, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
    if not path.is_file():
        return []
    try:
        with _open(path) as database:
            return database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise ArtifactError(
            f"'{path}' is not a history of measurements ({error}); name another file with EDGEFOLD_HISTORY"
        ) from error


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """The database in the version of this program; several processes may write to it."""
    with closing(sqlite3.connect(path, timeout=30)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise sqlite3.DatabaseError(f"version {version}, this program knows {VERSION}")
        database.executescript(SCHEMA)
        database.execute(f"PRAGMA user_version = {VERSION}")
        yield database
