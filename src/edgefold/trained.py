"""The result of quantization-aware training: kept as a file, and turned into a network that is ready for every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from edgefold.artifact import Precision, atomic_path
from edgefold.errors import ArtifactError, DataError, UsageError
from edgefold.schemes import DEFAULT_EXPONENT_BITS, scheme_of

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.batch import Batch
    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network
    from edgefold.preprocess import Preprocessing
    from edgefold.quantize.calibrate import ScaleTable

SCHEMA: Final = "edgefold.qat/1"
_REMEDY: Final = "give the file that 'edgefold train --qat' wrote"


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """The result of a training by the names of the canonical graph: its weights and biases, and its scales."""

    weights: Mapping[str, Tensor]
    table: ScaleTable


def trained_program(
    folded: FoldResult, trained: TrainedWeights, scheme: Precision = Precision.INT8, *, pixels: Preprocessing | None = None
) -> QuantizedProgram:
    """The network of a fold result with trained weights and scales, ready for every format.

    With ``pixels`` it takes camera pixels: the first layer is divided by their deviation and rounded anew, the rest stays.

    Raises:
        UsageError: the weights are of another network.
        UnsupportedError: its input, as camera pixels, goes elsewhere than into a plain convolution.
    """
    from edgefold.export.program import Program, QuantizedProgram
    from edgefold.quantize.calibrate import attach
    from edgefold.quantize.pixels import PixelInput, absorb, with_pixel_scales
    from edgefold.quantize.qat import load_weights

    source = folded.program
    names = {node.name for node in source.graph.graph.nodes}
    strange = sorted(name for name in trained.table.activations if name not in names)
    if strange:
        raise UsageError(f"the trained weights have scales for '{strange[0]}', which this network lacks; train this network")
    graph = load_weights(source.graph, trained.weights)
    base = Program(graph, source.example_inputs, source.input_names, source.output_names)
    table, camera = trained.table, None
    if pixels is not None:
        camera = PixelInput.of(pixels)
        base = replace(base, graph=absorb(graph, camera), example_inputs=camera.first(base.example_inputs))
        table = with_pixel_scales(base.graph, table)
    program = replace(base, graph=attach(base.graph, table))
    return QuantizedProgram(program, table, scheme, folded.plan, base, pixels=camera)


def quantize_network(
    network: Network,
    folded: FoldResult,
    calibration: Iterable[Batch] | Tensor | None,
    scheme: Precision,
    *,
    observer: str = "auto",
    equalize: bool = False,
    exclude: Sequence[str] = (),
    pixels: Preprocessing | None = None,
    io: Literal["float32", "int8", "uint8"] = "float32",
    exponent_bits: int = DEFAULT_EXPONENT_BITS,
    progress: Callable[[], None] = lambda: None,
) -> QuantizedProgram:
    """The network in integers: with the weights and scales of its training as INT8, if it had one, or else calibrated.

    Args:
        network: brings its trained weights, if there are any.
        folded: the same network, folded.
        calibration: as the arguments that follow, see `edgefold.pipeline.quantize_model`.
        scheme: see there.
        observer: see there.
        equalize: see there.
        exclude: see there.
        pixels: see there.
        io: see there.
        exponent_bits: see there.
        progress: see there.

    Raises:
        UsageError: options of the calibration for a network that is trained, or a scheme that its scales are not for.
    """
    from edgefold.batch import samples_like
    from edgefold.pipeline import quantize_model
    from edgefold.quantizing import JUDGED, coarse

    if network.trained is None:
        return quantize_model(
            folded,
            network.example_inputs,
            calibration=calibration,
            scheme=scheme,
            observer=observer,
            equalize=equalize,
            exclude=exclude,
            pixels=pixels,
            io=io,
            exponent_bits=exponent_bits,
            progress=progress,
        )
    if not scheme_of(scheme).trainable:
        raise UsageError(
            f"--qat brings scales of 8-bit weights and activations, which '{scheme}' does not have; leave --qat out or use int8"
        )
    given = {
        "--observer": observer != "auto",
        "--equalize": equalize,
        "--exclude": bool(exclude),
    }
    if any(given.values()):
        names = ", ".join(name for name, there in given.items() if there)
        raise UsageError(
            f"--qat brings scales that the weights were trained for, which {names} would change; leave one of them out"
        )
    program = trained_program(folded, network.trained, scheme, pixels=pixels)
    data = network.calibration if calibration is None else calibration
    if network.calibration is None or data is None:  # else there is nothing but random numbers to look with
        return program
    samples = islice(samples_like(data, folded.program.example_inputs, "calibration"), JUDGED)
    judged = [program.takes(sample) for sample in samples]
    return replace(program, findings=coarse(program.canonical.graph, program.table, judged))


def save_trained(trained: TrainedWeights, path: Path, *, force: bool = False) -> None:
    """Writes weights and scales as one safetensors file.

    Raises:
        OutputError: it exists and ``force`` is not set, or cannot be written.
    """
    from safetensors.torch import save_file

    table = trained.table
    scales = {
        "activations": {name: asdict(params) for name, params in table.activations.items()},
        "branches": {layer: {part: asdict(params) for part, params in pair.items()} for layer, pair in table.branches.items()},
        "observer": table.observer,
        "samples": table.samples,
    }
    tensors = {f"weight:{name}": value.contiguous() for name, value in trained.weights.items()}
    tensors |= {f"scale:{name}": value.contiguous() for name, value in table.weights.items()}
    with atomic_path(path, force=force) as temporary:
        save_file(tensors, temporary, metadata={"schema": SCHEMA, "scales": json.dumps(scales)})


def load_trained(path: Path) -> TrainedWeights:
    """What `save_trained` wrote.

    Raises:
        DataError: there is no such file.
        ArtifactError: it is another file.
    """
    from safetensors import SafetensorError, safe_open

    from edgefold.quantize.calibrate import ScaleTable
    from edgefold.quantize.scheme import QParams

    if not path.is_file():
        raise DataError(f"file '{path}' does not exist; {_REMEDY}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ArtifactError(f"'{path}' is no safetensors file ({error}); {_REMEDY}") from error
    if metadata.get("schema") != SCHEMA:
        raise ArtifactError(f"'{path}' has schema '{metadata.get('schema')}', expected '{SCHEMA}'; {_REMEDY}")
    scales: dict[str, Any] = json.loads(metadata["scales"])
    table = ScaleTable(
        activations={name: QParams(**entry) for name, entry in scales["activations"].items()},
        weights=_part(tensors, "scale:"),
        branches={layer: {part: QParams(**entry) for part, entry in pair.items()} for layer, pair in scales["branches"].items()},
        observer=scales["observer"],
        samples=scales["samples"],
    )
    return TrainedWeights(_part(tensors, "weight:"), table)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
