"""A case: one model with its inputs and its jobs, in one folder that is pushed to a device as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefold.artifact import Artifact, Format, Precision, TensorSpec, sha256_of
from edgefold.device_bench.options import BenchOptions
from edgefold.errors import ArtifactError
from edgefold.runtime.container import read_metadata
from edgefold.runtime.session import check_hash, describe, save_inputs, to_file, torch_shape

Array = NDArray[Any]

BENCH_JOB, MEMORY_JOB, PROFILE_JOB, WATCH_JOB = "bench.json", "memory.json", "profile.json", "watch.json"
# How long a process works of which nothing but the device's state is wanted, half of it in its warm-up.
WATCH_S = 1.0
# A worker ends itself this long after its budget, also where nobody can reach it any more.
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """One model to be measured. ``inputs`` are stacked in the file's own types: (1, *shape) an input."""

    path: Path
    format: Format
    sha256: str
    precision: Precision | None
    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]
    inputs: tuple[Array, ...]
    fallback_ops: tuple[str, ...] = ()  # what no delegate takes

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


def make_case(artifact: Artifact | Path | str, *, seed: int, inputs: Sequence[Array] | None = None) -> Case:
    """A case for an artifact or any model file.

    ``inputs`` are in torch's layout, of which the first sample is used; without them seeded ones are made, the same for every
    format. A file that takes any batch gets one of a single sample.

    Raises:
        ArtifactError: not a model file, or a hash that does not match.
        ModelError: inputs that do not fit.
    """
    precision: Precision | None
    if isinstance(artifact, Artifact):
        path, form, precision = artifact.path, artifact.format, artifact.precision
        wants, gives = artifact.inputs, artifact.outputs
        check_hash(path, artifact.sha256)
    else:
        path = Path(artifact)
        found = describe(path)
        form, precision, wants, gives = found.format, found.precision, found.inputs, found.outputs
    arrays = seeded_inputs(wants, seed) if inputs is None else list(inputs)
    stacked = tuple(array[:1] for array in to_file(wants, arrays, name=path.name, batch=1))
    return Case(path.resolve(), form, sha256_of(path), precision, wants, gives, stacked)


def seeded_inputs(specs: Sequence[TensorSpec], seed: int) -> list[Array]:
    """One input of each kind in torch's layout: uniform in [-1, 1), or 0 and 1 where it is not a real number."""
    rng = np.random.default_rng(seed)
    arrays: list[Array] = []
    for spec in specs:
        shape = tuple(size if size > 0 else 1 for size in torch_shape(spec))
        values = rng.random(shape)
        real = spec.scale is not None or np.issubdtype(np.dtype(spec.dtype), np.floating)
        arrays.append((2 * values - 1).astype(np.float32) if real else (values < 0.5).astype(spec.dtype))
    return arrays


def _weight_files(case: Case) -> list[str]:
    """The files beside an ONNX model of another maker that hold its weights.

    Raises:
        ArtifactError: one is missing, or its path leads elsewhere.
    """
    if case.format is not Format.ONNX or read_metadata(case.path) is not None:  # ours hold all that they need
        return []
    import onnx
    from onnx.external_data_helper import uses_external_data

    tensors = onnx.load(case.path, load_external_data=False).graph.initializer
    entries = [entry for tensor in tensors if uses_external_data(tensor) for entry in tensor.external_data]
    names = sorted({entry.value for entry in entries if entry.key == "location"})
    for name in names:
        if Path(name).name != name or not (case.path.parent / name).is_file():
            raise ArtifactError(f"'{case.name}' keeps weights in '{name}', which is not a file beside it; put both in one folder")
    return names


def write_case(case: Case, folder: Path, options: BenchOptions, extra: dict[str, Any]) -> None:
    """Writes everything that a worker needs into an empty folder; ``extra`` goes into each job."""
    model = f"model{case.format.suffix}"
    (folder / model).symlink_to(case.path)
    for name in _weight_files(case):
        # ONNX Runtime takes no link to a file that lies outside of the model's folder.
        shutil.copyfile(case.path.parent / name, folder / name)
    budget_s = options.max_secs / options.processes
    job = {
        "format": case.format.value,
        # The device sees a name of ours; the user's own is only told.
        "model": model,
        "artifact": case.name,
        "threads": options.threads,
        "cores": options.core_list(),
        "inputs": save_inputs(folder, case.inputs),
        "min_samples": options.min_samples,
        "min_time_s": options.min_time_s,
        "warmup_max_s": budget_s / 2,
        "max_s": budget_s,
        "limit_s": budget_s + GRACE_S,
        **extra,
    }
    watch = {"min_samples": 1, "min_time_s": WATCH_S / 2, "warmup_max_s": WATCH_S / 2, "max_s": WATCH_S}
    for name, own in (
        (BENCH_JOB, {"mode": "bench"}),
        (MEMORY_JOB, {"mode": "memory"}),
        (PROFILE_JOB, {"mode": "profile"}),
        (WATCH_JOB, {"mode": "bench", **watch}),
    ):
        (folder / name).write_text(json.dumps({**job, **own}), encoding="utf-8")
