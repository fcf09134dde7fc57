"""The data that a network was calibrated with, for the readers of its files.

What it was, what is wrong with it, and whether it is the data that a bundle tells of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

    from edgefold.artifact import Precision
    from edgefold.bundle.manifest import Calibration
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network

RANDOM: Final = "calibrated with random data: sizes and latencies hold, INT8 accuracy does not"


def calibration_record(network: Network, samples: Sequence[tuple[Tensor, ...]]) -> Calibration | None:
    """What a manifest says of the samples that gave the scales; ``None`` where none did.

    Args:
        network: says where the samples are from and how they are prepared; scales of a training are not from them.
        samples: the calibration samples, as the network takes them.
    """
    from edgefold.batch import digest
    from edgefold.bundle.manifest import Calibration
    from edgefold.quantize.lint import lint

    if not samples or network.trained is not None:
        return None
    return Calibration(
        samples=len(samples),
        sha256=digest(samples),
        random=network.random_calibration,
        source=network.calibration_source,
        findings=(RANDOM,) if network.random_calibration else lint(samples, network.preprocessing),
    )


def calibration_notes(record: Calibration | None) -> tuple[str, ...]:
    """What a reader of any figure must know of the calibration, as sentences."""
    return () if record is None else tuple(f"{text[0].upper()}{text[1:]}." for text in record.findings)


def join_notes(programs: Mapping[Precision, QuantizedProgram]) -> tuple[str, ...]:
    """What a reader must know of values that were joined with larger ones, for each precision."""
    return tuple(f"{precision}: {text}." for precision, program in programs.items() for text in program.findings)


def calibration_difference(found: Calibration | None, recorded: Calibration | None) -> str:
    """How the data at hand differs from the data that a bundle was made with, as a sentence; empty where it does not."""
    if found is None or recorded is None or found.sha256 == recorded.sha256:
        return ""
    return (
        f"The calibration data is not that of the bundle: found {_named(found)}, expected {_named(recorded)}; "
        "the integers that the artifacts are compared with are others, so give the data that the bundle was made with."
    )


def _named(record: Calibration) -> str:
    source = f" of {record.source}" if record.source else ""
    return f"{record.samples} samples{source} (SHA-256 {record.sha256[:16]}…)"
