"""`edgefold quantize --scheme log2`: what weights that are powers of two cost, against int8 ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgefold.artifact import Precision
from edgefold.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from edgefold.export.fold import FoldResult
    from edgefold.network import Network
    from edgefold.quantize.power_study import PowerStudy

JUDGED_SAMPLES = 16


@dataclass(frozen=True)
class Top1:
    """The share of right answers on the evaluation data."""

    images: int
    log2: float
    int8: float
    reference: float


@dataclass(frozen=True)
class PowerComparison:
    """The study of one network; ``calibrated`` samples gave the scales, ``judged`` ones the SQNR."""

    calibrated: int
    judged: int
    observer: str
    study: PowerStudy
    top1: Top1 | None = None
    findings: tuple[str, ...] = ()  # on the calibration data


def refuse(given: dict[str, bool], bits: int | None, scheme: Precision) -> None:
    """Refuses options that do not go with the scheme.

    Args:
        given: options that need a file, and whether they were given.
        bits: of the exponents, if they were given.
        scheme: what is asked for.

    Raises:
        UsageError: see there.
    """
    if scheme is not Precision.LOG2:
        if bits is not None:
            raise UsageError(f"--exponent-bits is for --scheme log2, and the scheme is '{scheme}'; leave it out")
        return
    names = [name for name, there in given.items() if there]
    if names:
        raise UsageError(f"--scheme log2 is a study in torch that writes no file, so {names[0]} has nothing to do; leave it out")


def compare_powers(
    network: Network,
    folded: FoldResult,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    observer: str,
    equalize: bool,
    exclude: Sequence[str],
    exponent_bits: int,
    say: Callable[[str], None],
) -> PowerComparison:
    """Calibrates once, and compares weights that are powers of two with int8 ones."""
    from edgefold.quantize.power_study import compare, int8_table
    from edgefold.quantizing import JUDGED
    from edgefold.trained import quantize_network

    say(f"calibrating with {len(samples)} samples")
    program = quantize_network(
        network,
        folded,
        samples,
        Precision.LOG2,
        observer=observer,
        equalize=equalize,
        exclude=exclude,
        exponent_bits=exponent_bits,
    )
    graph = program.canonical.graph
    integers = int8_table(graph, program.table, samples[:JUDGED])
    judged = samples[:: max(1, len(samples) // JUDGED_SAMPLES)][:JUDGED_SAMPLES]
    say("comparing the layers")
    study = compare(graph, program.table, integers, judged)
    found = PowerComparison(len(samples), len(judged), program.table.observer, study)
    evaluation = network.evaluation
    if evaluation is None:
        return found
    say(f"evaluating on {evaluation.data}")
    from edgefold.export.verify import reference_outputs, top1
    from edgefold.quantize.calibrate import attach
    from edgefold.quantize.insert import insert_qdq

    batch = len(folded.program.example_inputs[0])
    networks = (program.reference(), insert_qdq(attach(graph, integers), fold_weights=True), folded.program.graph)
    log2, int8, reference = (
        top1(reference_outputs(net, evaluation.inputs, batch=batch)[0], evaluation.labels) for net in networks
    )
    return replace(found, top1=Top1(len(evaluation.labels), log2, int8, reference))


def compared(found: PowerComparison) -> Iterable[RenderableType]:
    """The parts of a comparison, as the terminal shows them."""
    from edgefold.cli.output import table
    from edgefold.report.table import percent

    study = found.study
    columns = ("weights int8", "weights log2", "alone int8", "alone log2", "log2 loses")
    yield table(
        ("layer", *columns),
        [
            (
                layer.name,
                *(
                    f"{value:.1f} dB"
                    for value in (layer.int8_weight_db, layer.log2_weight_db, layer.int8_alone_db, layer.log2_alone_db)
                ),
                f"{layer.int8_alone_db - layer.log2_alone_db:.1f} dB",
            )
            for layer in study.layers
        ],
        "l" + "r" * len(columns),
    )
    yield (
        f"whole network: {study.log2_db:.1f} dB with log2 weights (exponents of {study.exponent_bits} bits), "
        f"{study.int8_db:.1f} dB with int8 weights, over {found.judged} samples; ranges by {found.observer}"
    )
    if found.top1 is not None:
        one = found.top1
        yield (
            f"top-1 on {one.images:,} images: {percent(one.log2)} log2, {percent(one.int8)} int8, "
            f"{percent(one.reference)} float network"
        )
    yield from (f"Note: {text}" for text in found.findings)
    yield "Note: log2 is a study in torch; no runtime has kernels for it, so there is no file"
