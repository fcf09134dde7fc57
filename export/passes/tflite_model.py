"""A TFLite flatbuffer as an editable object tree, and back to bytes.

The generated object API loses the 16-byte alignment that the schema demands of buffer data (kernels read float and int32
weights in place), so buffers are packed here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.errors import ArtifactError

_ALIGNMENT = 16
_IDENTIFIER = b"TFL3"


def schema() -> Any:
    """The module of generated flatbuffer classes, which has no type information."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@dataclass(slots=True)
class TfliteModel:
    """A model whose one subgraph holds the whole network. ``root`` is the generated ``ModelT``."""

    root: Any

    @property
    def graph(self) -> Any:
        """The subgraph (``SubGraphT``)."""
        return self.root.subgraphs[0]

    def tensor(self, index: int) -> Any:
        """The tensor (``TensorT``) at an index."""
        return self.graph.tensors[index]

    def kind(self, operator: Any) -> str:
        """The operator's name, e.g. ``CONV_2D``; custom operators by their own name."""
        code = self.root.operatorCodes[operator.opcodeIndex]
        if code.customCode is not None:
            return str(code.customCode.decode())
        return operator_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def constant(self, index: int) -> NDArray[Any] | None:
        """The value of a constant tensor; ``None`` for a tensor that is computed."""
        tensor = self.tensor(index)
        data = self.root.buffers[tensor.buffer].data
        if data is None:
            return None
        shape = tuple(tensor.shape) if tensor.shape is not None else ()
        return np.frombuffer(np.asarray(data, np.uint8).tobytes(), numpy_type(tensor.type)).reshape(shape)

    def add_buffer(self, data: bytes) -> int:
        """A new buffer; returns its index."""
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.root.buffers.append(buffer)
        return len(self.root.buffers) - 1

    def add_empty_buffer(self) -> int:
        """A new buffer for a computed tensor; returns its index."""
        self.root.buffers.append(schema().BufferT())
        return len(self.root.buffers) - 1

    def release(self, buffer: int) -> None:
        """Empty a buffer that no tensor has any more: it would be written out."""
        if all(tensor.buffer != buffer for tensor in self.graph.tensors):
            self.root.buffers[buffer].data = None

    def add_tensor(self, tensor: Any) -> int:
        """Append a tensor; returns its index."""
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add_constant(self, name: str, value: NDArray[Any]) -> int:
        """A new constant tensor; returns its index."""
        tensor = schema().TensorT()
        tensor.name = name
        tensor.shape = list(value.shape)
        tensor.type = _TYPES[value.dtype.name]
        tensor.buffer = self.add_buffer(value.tobytes())
        return self.add_tensor(tensor)

    def tensor_like(self, index: int, shape: Sequence[int]) -> int:
        """A new computed tensor with the type, name and scale of another; returns its index."""
        made = copy.copy(self.tensor(index))
        made.shape, made.shapeSignature, made.buffer = list(shape), None, self.add_empty_buffer()
        return self.add_tensor(made)

    def insert(self, operator: Any, kind: str, inputs: list[int], result: int, *, version: int = 1, after: bool = False) -> None:
        """Puts an operator without options before another, or after it."""
        made = schema().OperatorT()
        made.opcodeIndex = self.opcode(kind, version)
        made.inputs, made.outputs = inputs, [result]
        place = next(index for index, one in enumerate(self.graph.operators) if one is operator)
        self.graph.operators.insert(place + after, made)

    def insert_reshape(self, operator: Any, source: int, result: int, *, after: bool = False) -> None:
        """Puts a RESHAPE to the shape of ``result`` before an operator, or after it; a dimension of any size stays open."""
        tensor = self.tensor(result)
        sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        shape = self.add_constant("", np.array(sizes, np.int32))
        self.insert(operator, "RESHAPE", [source, shape], result, after=after)

    def opcode(self, name: str, version: int = 1) -> int:
        """The index of a builtin operator code at a version, added if need be."""
        number = {text: number for number, text in operator_names().items()}[name]
        for index, code in enumerate(self.root.operatorCodes):
            if code.builtinCode == number and code.version == version:
                return index
        code = schema().OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
        self.root.operatorCodes.append(code)
        return len(self.root.operatorCodes) - 1

    def drop_unused_opcodes(self) -> None:
        """Remove the entries of the list of operator kinds and versions that no operator has."""
        used = sorted({operator.opcodeIndex for operator in self.graph.operators})
        self.root.operatorCodes = [self.root.operatorCodes[index] for index in used]
        for operator in self.graph.operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)

    def consumers(self, index: int) -> list[Any]:
        """The operators that read a tensor."""
        return [operator for operator in self.graph.operators if index in operator.inputs]

    def producer(self, index: int) -> Any | None:
        """The operator that writes a tensor."""
        return next((operator for operator in self.graph.operators if index in operator.outputs), None)

    def operators(self, kind: str) -> Iterator[Any]:
        """The operators of one kind."""
        return (operator for operator in list(self.graph.operators) if self.kind(operator) == kind)


def load(data: bytes) -> TfliteModel:
    """Parse a flatbuffer.

    Raises:
        ArtifactError: not a TFLite file, or one with several subgraphs.
    """
    if data[4:8] != _IDENTIFIER:
        raise ArtifactError("content is not a TFLite model (no 'TFL3' mark); give a .tflite file")
    root = schema().ModelT.InitFromPackedBuf(data, 0)
    if len(root.subgraphs or ()) != 1:
        raise ArtifactError(f"TFLite model has {len(root.subgraphs or ())} subgraphs, expected one without control flow")
    model = TfliteModel(root)
    for owner in (model.graph, *model.graph.operators):
        # The parser gives read-only arrays.
        owner.inputs, owner.outputs = ([int(index) for index in indices] for indices in (owner.inputs, owner.outputs))
    return model


def dump(model: TfliteModel) -> bytes:
    """The bytes of the file."""
    import flatbuffers

    root = model.root
    sizes = [0 if buffer.data is None else len(buffer.data) for buffer in root.buffers]
    plain = root.buffers
    root.buffers = [_AlignedBuffer(buffer) for buffer in plain]
    try:
        builder = flatbuffers.Builder(sum(sizes) + 2**16)
        builder.Finish(root.Pack(builder), file_identifier=_IDENTIFIER)
    finally:
        root.buffers = plain
    return bytes(builder.Output())


@dataclass(slots=True)
class _AlignedBuffer:
    """Packs a ``BufferT`` with its data on a 16-byte boundary."""

    buffer: Any

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that the generated code calls
        data = self.buffer.data
        vector = None
        if data is not None:
            raw = np.asarray(data, np.uint8).tobytes()
            builder.StartVector(1, len(raw), _ALIGNMENT)
            builder.head -= len(raw)
            builder.Bytes[builder.head : builder.head + len(raw)] = raw
            vector = builder.EndVector()
        generated = schema()
        generated.BufferStart(builder)
        if vector is not None:
            generated.BufferAddData(builder, vector)
        return int(generated.BufferEnd(builder))


def operator_names() -> dict[int, str]:
    """Builtin operator number to name."""
    return {number: name for name, number in vars(schema().BuiltinOperator).items() if isinstance(number, int)}


def numpy_type(number: int) -> Any:
    """The numpy type of a ``TensorType``."""
    return np.dtype({value: key for key, value in _TYPES.items()}[number])


# TensorType of the schema; the names are numpy's.
_TYPES = {
    "float32": 0,
    "float16": 1,
    "int32": 2,
    "uint8": 3,
    "int64": 4,
    "bool": 6,
    "int16": 7,
    "complex64": 8,
    "int8": 9,
    "float64": 10,
    "uint64": 12,
    "uint32": 15,
    "uint16": 16,
}


def type_number(name: str) -> int:
    """The ``TensorType`` of a numpy type name."""
    return _TYPES[name]


def type_name(number: int) -> str:
    """The numpy name of a ``TensorType``; its number in words where numpy has none."""
    return {value: key for key, value in _TYPES.items()}.get(number, f"type {number}")
