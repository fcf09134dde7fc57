"""IDX files: arrays of unsigned bytes, as MNIST's.

An IDX file is a big-endian header (two zero bytes, type code 0x08 for unsigned bytes, the number of dimensions, one 32-bit size a
dimension) and then the raw values, last dimension fastest (Y. LeCun, "The MNIST database").
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgefold.errors import DataError


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of an IDX file, plain or gzipped (told apart by content, not by name).

    Raises:
        DataError: there is no such file, it is not IDX of unsigned bytes, or its length does not fit its header.
    """
    raw = _read_maybe_gzip(path)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise DataError(
            f"'{path}' is not an IDX file: it starts with {raw[:4].hex() or 'nothing'}, expected 0000 08 0N; "
            "give an IDX file, an .npy, an .npz or a folder of pictures"
        )
    if raw[2] != 0x08:
        raise DataError(f"'{path}' holds values of IDX type 0x{raw[2]:02x}, expected 0x08 (unsigned bytes)")
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(raw) < start:
        raise DataError(
            f"'{path}' has an IDX header of {dimensions} dimensions in {len(raw)} bytes, expected at least one, complete"
        )
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    expected = math.prod(shape)
    if len(raw) - start != expected:
        raise DataError(
            f"'{path}' holds {len(raw) - start} values, but its header promises {'×'.join(map(str, shape))} = {expected}; "
            "the file is damaged, get it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _read_maybe_gzip(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}; give the path of an IDX file") from error
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' is a damaged gzip file: {error}; get it again") from error
