"""What a model file says about itself, read without any runtime.

A damaged file can crash the runtime that parses it, so format and metadata are read here, in Python, with every offset checked.
ONNX is protobuf (metadata_props of ModelProto); TFLite and ExecuTorch are FlatBuffers (a Metadata entry that names a buffer; a
constant method that returns a string). A FlatBuffers table starts with the distance back to its vtable, which holds the offset of
each field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgefold.artifact import Format
from edgefold.errors import ArtifactError

METADATA_KEY = "edgefold"
METADATA_METHOD = "edgefold_metadata"

MODEL_IR_VERSION, MODEL_GRAPH, MODEL_METADATA_PROPS = 1, 7, 14  # onnx.ModelProto
TFLITE_BUFFERS, TFLITE_METADATA = 4, 6  # tflite.Model
PTE_PLANS, PLAN_NAME, PLAN_VALUES, PLAN_OUTPUTS, PTE_STRING = 1, 0, 2, 4, 6  # executorch_flatbuffer.Program and below


def format_of(path: Path) -> Format:
    """The format that the file's suffix stands for.

    Raises:
        ArtifactError: the file is missing, or its suffix is not one of an artifact.
    """
    if not path.is_file():
        raise ArtifactError(f"model file '{path}' does not exist; give the path of an .onnx, .tflite or .pte file")
    for each in Format:
        if path.suffix.lower() == each.suffix:
            return each
    raise ArtifactError(f"'{path}' has the suffix '{path.suffix}', expected .onnx, .tflite or .pte")


def read_metadata(path: Path) -> str | None:
    """The text that Edgefold stored in the file; ``None`` for a file of another maker.

    Raises:
        ArtifactError: the file is missing or not a model of its suffix's format.
    """
    reader = {Format.ONNX: _onnx_metadata, Format.TFLITE: _tflite_metadata, Format.EXECUTORCH: _pte_metadata}[format_of(path)]
    try:
        return reader(path.read_bytes())
    except (struct.error, IndexError, ValueError) as error:
        what = {".onnx": "an ONNX model", ".tflite": "a TFLite model", ".pte": "an ExecuTorch program"}[path.suffix.lower()]
        raise ArtifactError(f"'{path}' is not {what} or is damaged ({error}); export it again or fetch it again") from error


def _onnx_metadata(data: bytes) -> str | None:
    fields = list(_protobuf_fields(data))
    numbers = {number for number, _ in fields}
    if not {MODEL_IR_VERSION, MODEL_GRAPH} <= numbers:
        raise ValueError("it has no graph")
    for number, value in fields:
        if number == MODEL_METADATA_PROPS:
            entry = dict(_protobuf_fields(value))
            if entry.get(1) == METADATA_KEY.encode():
                return entry.get(2, b"").decode()
    return None


def _protobuf_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field of one message; a number's bytes are left empty."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        value = b""
        match key & 7:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                size, position = _varint(data, position)
                value = data[position : position + size]
                position += size
            case 5:
                position += 4
            case kind:
                raise ValueError(f"wire type {kind} at byte {position}")
        if position > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A protobuf varint and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return result, position
    raise ValueError(f"endless number at byte {position}")


class _Table:
    """One FlatBuffers table; a missing field reads as ``None``."""

    def __init__(self, data: bytes, position: int) -> None:
        if not 0 <= position < len(data):
            raise ValueError(f"offset {position} outside the file")
        self._data, self._position = data, position
        self._vtable = position - self._number("<i", position)
        self._size = self._number("<H", self._vtable)

    @classmethod
    def root(cls, data: bytes, identifier: bytes) -> _Table:
        """The root table of a buffer whose bytes 4 to 8 begin with the identifier."""
        if not data[4:8].startswith(identifier):
            raise ValueError(f"it starts with {data[4:8]!r}, expected {identifier.decode()}")
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _number(self, form: str, position: int) -> int:
        if position < 0:
            raise ValueError(f"offset {position} outside the file")
        return int(struct.unpack_from(form, self._data, position)[0])

    def _field(self, index: int) -> int | None:
        slot = 4 + 2 * index
        offset = self._number("<H", self._vtable + slot) if slot < self._size else 0
        return self._position + offset if offset else None

    def _target(self, position: int) -> int:
        return position + self._number("<I", position)

    def number(self, index: int, form: str = "<I") -> int:
        """A scalar field, 0 when missing."""
        position = self._field(index)
        return 0 if position is None else self._number(form, position)

    def table(self, index: int) -> _Table | None:
        """A field that is a table."""
        position = self._field(index)
        return None if position is None else _Table(self._data, self._target(position))

    def tables(self, index: int) -> list[_Table]:
        """A field that is a vector of tables."""
        start, count = self._vector(index, 4)
        return [_Table(self._data, self._target(start + 4 * i)) for i in range(count)]

    def integers(self, index: int) -> list[int]:
        """A field that is a vector of int32."""
        start, count = self._vector(index, 4)
        return [self._number("<i", start + 4 * i) for i in range(count)]

    def data(self, index: int) -> bytes:
        """A field that is a string or a vector of bytes."""
        start, count = self._vector(index, 1)
        return self._data[start : start + count]

    def _vector(self, index: int, item_size: int) -> tuple[int, int]:
        position = self._field(index)
        if position is None:
            return 0, 0
        start = self._target(position)
        count = self._number("<I", start)
        if start + 4 + count * item_size > len(self._data):
            raise ValueError("it ends too early")
        return start + 4, count


def _tflite_metadata(data: bytes) -> str | None:
    model = _Table.root(data, b"TFL3")
    buffers = model.tables(TFLITE_BUFFERS)
    for entry in model.tables(TFLITE_METADATA):
        if entry.data(0) == METADATA_KEY.encode():
            # A converter may pad the buffer.
            return buffers[entry.number(1)].data(0).rstrip(b"\0").decode()
    return None


def _pte_metadata(data: bytes) -> str | None:
    program = _Table.root(data, b"ET")
    for plan in program.tables(PTE_PLANS):
        if plan.data(PLAN_NAME) == METADATA_METHOD.encode():
            value = plan.tables(PLAN_VALUES)[plan.integers(PLAN_OUTPUTS)[0]]
            text = value.table(1)
            if value.number(0, "<B") != PTE_STRING or text is None:
                raise ValueError(f"its method {METADATA_METHOD} does not return a text")
            return text.data(0).decode()
    return None
