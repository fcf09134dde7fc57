"""The zip of a bundle: written so that equal content gives equal bytes, and read as a file from a stranger."""

from __future__ import annotations

import errno
import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from edgefold.bundle.manifest import MANIFEST, RESULTS, Manifest, PayloadFile, parse_manifest
from edgefold.errors import ArtifactError

MAX_MANIFEST_BYTES = 64 << 20
MAX_RESULTS_BYTES = 1 << 30
MAX_PAYLOAD_BYTES = 8 << 30
MAX_FILES = 10_000
_CHUNK = 1 << 20
# What zipfile raises on damaged archives, and (RuntimeError) on encrypted ones and on methods of other tools.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, OverflowError, EOFError, RuntimeError)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date that zip can hold


def write_zip(folder: Path, out: Path) -> None:
    """Write all files below ``folder`` to the zip ``out``: sorted, without dates, owners or machine-dependent modes."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
                info.create_system = 3  # Unix, also where it is not, so that the mode below means the same
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                    for chunk in _chunks(source):
                        target.write(chunk)


def extract_zip(source: Path, target: Path) -> Manifest:
    """Check the zip ``source`` and write its files below ``target``, an empty folder.

    Nothing is written whose size and hash the manifest does not promise, except ``results/``, which is bounded in size.

    Raises:
        ArtifactError: not a zip, not a bundle, a hostile entry, or content that differs from the manifest.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            entries = _entries(archive, source)
            if MANIFEST not in entries:
                raise ArtifactError(f"'{source}' is a zip without {MANIFEST}; expected a bundle that edgefold wrote")
            with archive.open(entries[MANIFEST]) as file:
                text = file.read(MAX_MANIFEST_BYTES + 1)
            if len(text) > MAX_MANIFEST_BYTES:
                raise ArtifactError(
                    f"manifest of bundle '{source}' is larger than {MAX_MANIFEST_BYTES} bytes; it is not a real one"
                )
            manifest = parse_manifest(text, str(source))
            check_listing(manifest, {name: info.file_size for name, info in entries.items()}, source)
            (target / MANIFEST).write_bytes(text)
            promised = {file.path: file for file in manifest.payload}
            for name, info in entries.items():
                if name != MANIFEST:
                    with archive.open(info) as stream:
                        _extract(stream, target / name, info.file_size, promised.get(name), source)
            return manifest
    except (*_DAMAGE, OSError) as error:
        # EINVAL: an offset before the start of the file. All other errors of the system are about disks, not about the zip.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ArtifactError(f"'{source}' is not a readable zip ({error}); expected a bundle that edgefold wrote") from error


def check_listing(manifest: Manifest, sizes: dict[str, int], source: Path) -> None:
    """The files that are there (name to size in bytes) are those that the manifest lists, in their sizes, and ``results/``.

    Raises:
        ArtifactError: a file is missing, not listed or of another size, or all are too large together.
    """
    promised = {file.path: file.size_bytes for file in manifest.payload}
    if sum(promised.values()) > MAX_PAYLOAD_BYTES:
        raise ArtifactError(f"bundle '{source}' promises more than {MAX_PAYLOAD_BYTES} bytes; it is not a real one")
    for path, size in promised.items():
        if path not in sizes:
            raise ArtifactError(f"bundle '{source}' lacks the file '{path}' that its manifest lists; get a complete copy")
        if sizes[path] != size:
            raise ArtifactError(f"file '{path}' of bundle '{source}' has {sizes[path]} bytes, expected {size}; get a clean copy")
    extra = [name for name in sizes if name not in promised and name != MANIFEST and not name.startswith(f"{RESULTS}/")]
    if extra:
        raise ArtifactError(f"bundle '{source}' holds '{extra[0]}', which its manifest does not list; get a clean copy")
    if sum(size for name, size in sizes.items() if name.startswith(f"{RESULTS}/")) > MAX_RESULTS_BYTES:
        raise ArtifactError(f"results of bundle '{source}' are larger than {MAX_RESULTS_BYTES} bytes; they are not real ones")


def _entries(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by name; folders are left out."""
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise ArtifactError(f"'{source}' has {len(infos)} entries, expected at most {MAX_FILES}; it is not a bundle")
    entries: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    for info in infos:
        # The entry's own name: ZipInfo.filename is cut at a NUL and has its separators replaced.
        name = info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArtifactError(f"entry '{name}' of '{source}' is not a plain file; a bundle holds plain files only")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArtifactError(f"entry '{name}' of '{source}' is compressed in a way that bundles are not; get a clean copy")
        if name.endswith("/"):
            continue
        try:
            PayloadFile(path=name, size_bytes=0, sha256="0" * 64)
        except ValueError as error:
            raise ArtifactError(
                f"entry {name!r} of '{source}' is not a plain path below the bundle; it is not safe to unpack"
            ) from error
        if name.casefold() in seen:
            raise ArtifactError(f"entry '{name}' of '{source}' is there twice; get a clean copy")
        seen.add(name.casefold())
        entries[name] = info
    for name in entries:
        if any(parent.as_posix().casefold() in seen for parent in PurePosixPath(name).parents):
            raise ArtifactError(f"entry '{name}' of '{source}' lies below another file; get a clean copy")
    return entries


def _extract(stream: IO[bytes], target: Path, size: int, promised: PayloadFile | None, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    written = 0
    with target.open("xb") as file:
        for chunk in _chunks(stream):
            written += len(chunk)
            if written > size:
                break
            digest.update(chunk)
            file.write(chunk)
    if written != size or (promised is not None and digest.hexdigest() != promised.sha256):
        raise ArtifactError(
            f"file '{target.name}' of bundle '{source}' has other content than its manifest promises; get a clean copy"
        )


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
