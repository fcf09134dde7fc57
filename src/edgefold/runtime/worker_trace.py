"""LiteRT's own times of ops, through the C API of the library in ai-edge-litert: its Python classes do not give them.

A part of `worker`, with its limits: standard library and numpy only, syntax of Python 3.9. Ops inside a delegate are told by
their kernels' names (``Convolution (NHWC, F32) IGEMM``), the others by those of the file, with their position in it. The clock
has steps of a microsecond, so the mean over the runs is taken, not the median.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

CPU, RANKED, READ, WRITE = 1, 0, 0, 1
# The events of the profiler that are ops: of the file, and inside a delegate.
FILE_OP, DELEGATE_OP = 2, 8
Handle = ctypes.c_void_p
FREE = ctypes.CFUNCTYPE(None, Handle)
Size = ctypes.c_size_t


class TensorType(ctypes.Structure):
    """Element type, rank in the low seven bits, dimensions, strides."""

    _fields_ = [
        ("element_type", ctypes.c_int32),
        ("rank_and_flags", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    ]


class Event(ctypes.Structure):
    """One event of the profiler; for an op ``position`` is that in the file, or in the delegate's own list."""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", Size * 6),
        ("position", ctypes.c_uint64),
        ("more", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class TracedLitert:
    """A model in LiteRT's compiled form, with its profiler on; the interface is that of the worker's models."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        self.runtime = plain.runtime
        self.library = ctypes.CDLL(str(Path(plain.module.__file__).with_name("libLiteRt.so")))
        self.kept: list[Any] = []
        self.runs = 0

    def call(self, name: str, *arguments: Any) -> None:
        """Calls one function of the library.

        Raises:
            RuntimeError: its status is not 0.
        """
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with status {status}")

    def made(self, name: str, *arguments: Any) -> Any:
        """Calls a function whose last argument takes what it makes."""
        handle = Handle()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle

    def load(self, path: str, threads: int, trace: str = "") -> None:
        """Loads the file."""
        self.plain.load(path, threads)
        environment = self.made("LiteRtCreateEnvironment", 0, None)
        model = self.made("LiteRtCreateModelFromFile", environment, path.encode())
        options = self.made("LiteRtCreateOptions")
        self.call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
        for name, text in (("runtime_options_string", "enable_profiling = true"), ("xnnpack", f"num_threads = {threads}")):
            payload, free = ctypes.create_string_buffer(text.encode() + b"\n"), FREE(lambda data: None)
            self.kept += [payload, free]
            self.call("LiteRtAddOpaqueOptions", options, self.made("LiteRtCreateOpaqueOptions", name.encode(), payload, free))
        self.compiled = self.made("LiteRtCreateCompiledModel", environment, model, options)
        self.profiler = self.made("LiteRtCompiledModelGetProfiler", self.compiled)
        signature = self.made("LiteRtGetModelSignature", model, Size(0))
        subgraph = self.made("LiteRtGetSignatureSubgraph", signature)
        self.inputs, self.input_list = self.buffers("Input", environment, signature, subgraph)
        self.results, self.output_list = self.buffers("Output", environment, signature, subgraph)
        self.call("LiteRtStartProfiler", self.profiler)

    def buffers(self, side: str, environment: Any, signature: Any, subgraph: Any) -> tuple[list[Any], Any]:
        """A buffer for each input or output: in the file's order, and as the list in the signature's order that a run takes."""
        count = Size()
        self.call(f"LiteRtGetNumSubgraph{side}s", subgraph, ctypes.byref(count))
        by_tensor = {}
        listed = []
        for position in range(count.value):
            tensor = self.made(f"LiteRtGetSignature{side}TensorByIndex", signature, Size(position))
            described = TensorType()
            self.call("LiteRtGetRankedTensorType", tensor, ctypes.byref(described))
            wanted = self.made(f"LiteRtGetCompiledModel{side}BufferRequirements", self.compiled, Size(0), Size(position))
            make = "LiteRtCreateManagedTensorBufferFromRequirements"
            by_tensor[tensor.value] = self.made(make, environment, ctypes.byref(described), wanted)
            listed.append(by_tensor[tensor.value])
        order = [self.made(f"LiteRtGetSubgraph{side}", subgraph, Size(position)) for position in range(count.value)]
        return [by_tensor[tensor.value] for tensor in order], (Handle * count.value)(*listed)

    def specs(self) -> Any:
        """The file's inputs and outputs."""
        return self.plain.specs()

    def locked(self, buffer: Any, mode: int, size: int) -> Any:
        """The memory of a buffer, which must be unlocked again."""
        data = Handle()
        self.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(data), mode)
        return (ctypes.c_char * size).from_address(data.value or 0)

    def bind(self, inputs: list[Any]) -> None:
        """Sets the inputs of the next run."""
        for position, array in enumerate(inputs):
            self.locked(self.inputs[position], WRITE, array.nbytes)[:] = array.tobytes()
            self.call("LiteRtUnlockTensorBuffer", self.inputs[position])

    def invoke(self) -> None:
        """Runs once."""
        self.runs += 1
        sides = [(Size(len(each)), each) for each in (self.input_list, self.output_list)]
        self.call("LiteRtRunCompiledModel", self.compiled, Size(0), *sides[0], *sides[1])

    def outputs(self) -> list[Any]:
        """The outputs of the last run."""
        arrays = []
        for position, spec in enumerate(self.specs()[1]):
            array = np.empty(spec["shape"], spec["dtype"])
            data = self.locked(self.results[position], READ, array.nbytes)
            arrays.append(np.frombuffer(bytes(data), array.dtype).reshape(array.shape))
            self.call("LiteRtUnlockTensorBuffer", self.results[position])
        return arrays

    def trace(self) -> dict[str, Any]:
        """The mean time in ns of each op over the runs, in the order of execution; ``position`` is that in the file, or -1."""
        self.call("LiteRtStopProfiler", self.profiler)
        count = ctypes.c_int()
        self.call("LiteRtGetNumProfilerEvents", self.profiler, ctypes.byref(count))
        events = (Event * count.value)()
        self.call("LiteRtGetProfilerEvents", self.profiler, count, events)
        found = [event for event in events if event.kind in (FILE_OP, DELEGATE_OP) and event.tag]
        number = len(found) // max(1, self.runs)
        if not number or len(found) % number:
            raise RuntimeError(f"LiteRT told {len(found)} ops in {self.runs} runs, which are not the same in each")
        ops = []
        for index, event in enumerate(found[:number]):
            elapsed_ns = [1000 * each.elapsed_us for each in found[index::number]]
            tag, position = event.tag.decode(), event.position if event.kind == FILE_OP else -1
            ops.append({"name": tag, "op": tag, "position": position, "ns": int(np.mean(elapsed_ns))})
        return {"ops": ops}
