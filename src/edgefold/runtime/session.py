"""Describes and runs artifacts on this machine, each in a subprocess.

`execute` speaks the file's own types and layouts. `run` speaks torch's: float32 in NCHW order on both sides, with
q = clip(round(x / scale) + zero_point) on the way in and x = scale * (q - zero_point) on the way out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.artifact import MAX_BATCH, Artifact, Format, Precision, TensorSpec, sha256_of
from edgefold.errors import ArtifactError, ModelError
from edgefold.runtime.container import format_of, read_metadata
from edgefold.runtime.protocol import ask

Array = NDArray[Any]

METADATA_SCHEMA = "edgefold.artifact/1"
DESCRIBE_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Description:
    """What a model file takes and gives. ``precision`` is ``None`` for a file of another maker, which does not say."""

    format: Format
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision | None = None


def check_hash(path: Path, expected: str) -> None:
    """Compares a file's SHA-256 with the one it should have.

    Raises:
        ArtifactError: they differ.
    """
    found = sha256_of(path)
    if found != expected:
        raise ArtifactError(
            f"'{path}' has SHA-256 {found[:16]}…, expected {expected[:16]}…: it was changed or damaged; fetch it again"
        )


def describe(path: Path | str, *, sha256: str | None = None) -> Description:
    """What the file takes and gives: from its Edgefold metadata, or else as its runtime sees it.

    Raises:
        ArtifactError: not a model file, a hash that does not match, or metadata that cannot be read.
        RuntimeFailure: the runtime cannot load a file of another maker.
    """
    path = Path(path)
    form = format_of(path)
    if sha256 is not None:
        check_hash(path, sha256)
    text = read_metadata(path)
    if text is not None:
        return _from_metadata(path, form, text)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        job = {"mode": "describe", "format": form.value, "model": str(path.resolve()), "threads": 1}
        answer = ask(job, Path(folder), timeout_s=DESCRIBE_TIMEOUT_S)
    return Description(form, _specs(answer["inputs"]), _specs(answer["outputs"]))


def _from_metadata(path: Path, form: Format, text: str) -> Description:
    try:
        data = json.loads(text)
        if data["schema"] != METADATA_SCHEMA:
            raise ValueError(f"schema '{data['schema']}', expected '{METADATA_SCHEMA}'")
        return Description(form, _specs(data["inputs"]), _specs(data["outputs"]), Precision(data["precision"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the Edgefold metadata in '{path}' cannot be read ({type(error).__name__}: {error}); "
            "export it again with this version"
        ) from error


def _specs(entries: Sequence[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_dict(entry) for entry in entries)


def execute(
    path: Path | str,
    inputs: Sequence[Array],
    *,
    threads: int = 1,
    timeout_s: float = RUN_TIMEOUT_S,
    sha256: str | None = None,
) -> tuple[Array, ...]:
    """Runs the file once a sample, in one process, with its own types and layouts.

    ``inputs`` has one array an input, (samples, *the file's shape); the outputs are stacked in the same way.

    Raises:
        ArtifactError: not a model file, a hash that does not match, or inputs that do not fit the file.
        RuntimeFailure: the runtime crashed, refused the file, or took longer than ``timeout_s``.
    """
    path = Path(path)
    form = format_of(path)
    if sha256 is not None:
        check_hash(path, sha256)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as temporary:
        folder = Path(temporary)
        names = save_inputs(folder, inputs)
        job = {"mode": "run", "format": form.value, "model": str(path.resolve()), "threads": threads, "inputs": names}
        answer = ask(job, folder, timeout_s=timeout_s)
        return tuple(np.load(folder / name, allow_pickle=False) for name in answer["outputs"])


def save_inputs(folder: Path, inputs: Sequence[Array]) -> list[str]:
    """Writes stacked inputs as a worker reads them; the names of the files."""
    names = [f"input_{position}.npy" for position in range(len(inputs))]
    for name, array in zip(names, inputs, strict=True):
        np.save(folder / name, np.ascontiguousarray(array), allow_pickle=False)
    return names


def run(
    artifact: Artifact | Path | str,
    inputs: Array | Sequence[Array],
    *,
    threads: int = 1,
    timeout_s: float = RUN_TIMEOUT_S,
    batch: int | None = None,
) -> tuple[Array, ...]:
    """The outputs of an artifact for inputs in torch's layout.

    ``inputs`` has one array an input (or is the only one) whose first dimension is any multiple of the file's batch size;
    quantized inputs are given as float32. A file that takes any batch gets ``batch`` samples at once, by default the largest
    divisor of their number within its limit and `edgefold.artifact.MAX_BATCH`. Outputs have the same number of samples, in
    torch's layout, float32 where the file's are float or quantized.

    Raises:
        ArtifactError: not a model file, or a hash that does not match.
        ModelError: inputs of another number or shape than the file takes, or a ``batch`` that it does not take.
        RuntimeFailure: the runtime crashed, refused the file, or took longer than ``timeout_s``.
    """
    arrays = [inputs] if isinstance(inputs, np.ndarray) else [np.asarray(array) for array in inputs]
    if isinstance(artifact, Artifact):
        path, sha256 = artifact.path, artifact.sha256
        wants, gives = artifact.inputs, artifact.outputs
    else:
        path, sha256 = Path(artifact), None
        description = describe(path)
        wants, gives = description.inputs, description.outputs
    stacked = to_file(wants, arrays, name=path.name, batch=batch)
    outputs = execute(path, stacked, threads=threads, timeout_s=timeout_s, sha256=sha256)
    if len(outputs) != len(gives):
        raise ArtifactError(f"'{path.name}' gave {len(outputs)} outputs, its metadata names {len(gives)}; export it again")
    return tuple(from_file(spec, output) for spec, output in zip(gives, outputs, strict=True))


def torch_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a file's input or output in torch's order."""
    if spec.layout == "nhwc" and len(spec.shape) == 4:
        n, h, w, c = spec.shape
        return (n, c, h, w)
    return spec.shape


def to_file(specs: Sequence[TensorSpec], arrays: Sequence[Array], *, name: str, batch: int | None = None) -> list[Array]:
    """Inputs in torch's layout, (samples * batch, ...), as the file takes them: (samples, batch, ...); see `run`.

    Raises:
        ModelError: another number of inputs, or a shape that does not fit.
    """
    if len(arrays) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise ModelError(f"{len(arrays)} inputs given, '{name}' takes {len(specs)}: {names}")
    stacked = [_stack(spec, array, name, batch) for spec, array in zip(specs, arrays, strict=True)]
    counts = {spec.name: len(array) for spec, array in zip(specs, stacked, strict=True)}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{key}: {count}" for key, count in counts.items())
        raise ModelError(f"the inputs of '{name}' have different numbers of samples ({found}); give the same number of each")
    return stacked


def _stack(spec: TensorSpec, array: Array, name: str, asked: int | None) -> Array:
    wanted = torch_shape(spec)
    fits = array.ndim == len(wanted) and all(want in (-1, size) for want, size in zip(wanted[1:], array.shape[1:], strict=True))
    batch = wanted[0] if wanted else 1
    if fits and batch == -1:
        batch = _batch(len(array), spec.max_batch, asked)
    if not fits or (wanted and (len(array) == 0 or len(array) % batch)):
        samples = "any number" if batch == -1 else f"any multiple of {batch}"
        expected = f"({', '.join((samples, *(str(size) for size in wanted[1:])))})"
        raise ModelError(f"input '{spec.name}' of '{name}' has shape {array.shape}, expected {expected} in torch's order")
    array = as_pixels(spec, array)
    stacked = array.reshape(-1, batch, *array.shape[1:]) if wanted else array.reshape(1)
    if spec.layout == "nhwc" and len(wanted) == 4:
        stacked = stacked.transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(quantize(spec, stacked))


def _batch(count: int, limit: int | None, asked: int | None) -> int:
    """How many of ``count`` samples a file that takes any number gets at once."""
    if asked is not None:
        if not 1 <= asked <= (limit or asked):
            raise ModelError(f"batch is {asked}, expected 1 to {limit or 'any'}; give a number that the file takes")
        return asked
    most = min(limit or MAX_BATCH, MAX_BATCH)
    return next((size for size in range(min(most, count), 0, -1) if count % size == 0), 1)


def as_pixels(spec: TensorSpec, array: Array) -> Array:
    """Float inputs of the network, (N, C, H, W), as the camera pixels that a file takes; all else, and pixels, as they are."""
    if spec.pixel_mean is None or spec.pixel_std is None or not np.issubdtype(array.dtype, np.floating):
        return array
    mean, std = (np.array(values).reshape(1, -1, 1, 1) for values in (spec.pixel_mean, spec.pixel_std))
    pixels: Array = np.clip(array.astype(np.float64) * std + mean, 0, 255).astype(np.float32)
    return pixels


def from_file(spec: TensorSpec, output: Array) -> Array:
    """A file's stacked output, (samples, batch, ...), in torch's layout, (samples * batch, ...)."""
    values = dequantize(spec, output)
    if spec.layout == "nhwc" and values.ndim == 5:
        values = values.transpose(0, 1, 4, 2, 3)
    if values.ndim > 1:
        values = values.reshape(-1, *values.shape[2:])
    return np.ascontiguousarray(values)


def quantize(spec: TensorSpec, values: Array) -> Array:
    """Values as the file's own type: quantized where it has a scale, else converted.

    Raises:
        ModelError: NaN or infinity for a quantized input, or floats for an integer one.
    """
    dtype = np.dtype(spec.dtype)
    if spec.scale is not None and np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise ModelError(
                f"input '{spec.name}' holds NaN or infinity, which an integer input cannot take; give finite numbers"
            )
        limits = np.iinfo(dtype)
        steps = np.rint(values / np.float32(spec.scale)) + (spec.zero_point or 0)
        integers: Array = np.clip(steps, limits.min, limits.max).astype(dtype)
        return integers
    if values.dtype != dtype and np.issubdtype(dtype, np.integer) and not np.issubdtype(values.dtype, np.integer):
        raise ModelError(f"input '{spec.name}' is {values.dtype}, expected integers ({dtype}) since it is not quantized")
    converted: Array = values.astype(dtype, copy=False)
    return converted


def dequantize(spec: TensorSpec, values: Array) -> Array:
    """Values of the file's own type as float32 where they stand for real numbers; other integers stay."""
    if spec.scale is not None and np.issubdtype(values.dtype, np.integer):
        real: Array = (values.astype(np.int32) - (spec.zero_point or 0)).astype(np.float32) * np.float32(spec.scale)
        return real
    as_float: Array = values.astype(np.float32, copy=False) if np.issubdtype(values.dtype, np.floating) else values
    return as_float
