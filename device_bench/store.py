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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefold.errors import ArtifactError, OutputError
from edgefold.results import Code, Measurement, from_dict, to_dict

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
    """One measurement in short. ``changed`` tells that the file is another one than in the entry before."""

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
    artifact: str | None = None, device: str | None = None, *, limit: int = 1000, path: Path | None = None
) -> list[HistoryEntry]:
    """Past measurements from old to new; of an artifact (a file name, or the beginning of its SHA-256) and a device if given.

    Raises:
        ArtifactError: the file is not a history.
    """
    query = (
        "SELECT id, date, artifact, sha256, format, device, runtime, threads, median_ns, low_ns, high_ns, codes FROM measurements"
        " WHERE (?1 IS NULL OR artifact = ?1 OR (length(?1) >= 8 AND substr(sha256, 1, length(?1)) = ?1))"
        " AND (?2 IS NULL OR device = ?2) ORDER BY date DESC, id DESC LIMIT ?3"
    )
    rows = _read(path or history_file(), query, (artifact, device, limit))
    entries: list[HistoryEntry] = []
    before: dict[tuple[str, str, str], str] = {}
    for row in reversed(rows):
        key = (row[2], row[4], row[5])
        codes = tuple(Code(word) for word in row[11].split())
        values: list[Any] = [*row[:11], codes, before.get(key, row[3]) != row[3]]
        entries.append(HistoryEntry(*values))
        before[key] = row[3]
    return entries


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
