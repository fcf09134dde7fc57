"""The figures of an inspection, computed in one way for all formats from a list of ops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from edgefold.artifact import Format, Precision


class Kind(StrEnum):
    """In what an op computes."""

    INTEGER = "integer"
    FLOAT = "float"
    CONVERSION = "conversion"  # between real numbers and integers: quantize, dequantize
    MOVE = "move"  # nothing: the channels of a float input change their place before it becomes integers


@dataclass(frozen=True, slots=True)
class Op:
    """One op as the runtime runs it.

    ``module`` is the PyTorch module path (or the op's name in the captured graph) that it comes from, empty when the file does
    not say; ``accelerated`` says whether a delegate runs it, ``at_end`` whether a conversion stands at an end of the file.
    ``moved_bytes`` are those of its inputs, weights and outputs, each once; 0 where the file has no shapes. ``dynamic`` ops
    multiply integers whose scales are found at run time.
    """

    name: str
    kind: Kind
    module: str = ""
    macs: int = 0
    is_conv: bool = False
    accelerated: bool = True
    at_end: bool = False
    moved_bytes: int = 0
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found: the ops in order, and into how many delegate calls they are cut (``None``: no delegates)."""

    ops: tuple[Op, ...]
    partitions: int | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a file. MACs are multiply-accumulates of convolutions and matrix products for one run."""

    file: str
    format: Format
    precision: Precision | None
    size_bytes: int
    nodes: int
    convs: int
    integer_ops: int
    float_ops: int
    conversions_inside: int  # quantize/dequantize ops that are not at an input or output
    macs: int
    integer_macs: int
    partitions: int | None  # delegate calls; None for a runtime without delegates
    accelerated_ops: int
    ops: dict[str, int] = field(default_factory=dict)  # op name -> count
    dynamic_macs: int = 0  # those of the integer ones whose activations get their scales at run time
    float_mac_modules: tuple[str, ...] = ()  # where MACs are computed in float
    fallback_modules: tuple[str, ...] = ()  # ops outside the delegate, as "module (op)"
    float_modules: tuple[str, ...] = ()  # float ops in a file with integer ones, as "module (op, op)"
    conversion_modules: tuple[str, ...] = ()  # conversions inside the file, as "module (op)"
    random_calibration: bool = False  # the scales come from random data, as the file itself says

    @property
    def integer_mac_share(self) -> float | None:
        """Share of the MACs in integer kernels; ``None`` without any MACs."""
        return self.integer_macs / self.macs if self.macs else None

    @property
    def accelerated_share(self) -> float | None:
        """Share of the ops that delegates run; ``None`` for a runtime without delegates."""
        return None if self.partitions is None or not self.nodes else self.accelerated_ops / self.nodes


def summarize(file: str, format: Format, precision: Precision | None, size_bytes: int, reading: Reading) -> Inspection:
    """The figures of a list of ops."""
    ops = reading.ops
    delegated = reading.partitions is not None
    return Inspection(
        file=file,
        format=format,
        precision=precision,
        size_bytes=size_bytes,
        nodes=len(ops),
        convs=sum(op.is_conv for op in ops),
        integer_ops=_count(ops, Kind.INTEGER),
        float_ops=_count(ops, Kind.FLOAT),
        conversions_inside=sum(op.kind is Kind.CONVERSION and not op.at_end for op in ops),
        macs=sum(op.macs for op in ops),
        integer_macs=sum(op.macs for op in ops if op.kind is Kind.INTEGER),
        partitions=reading.partitions,
        accelerated_ops=sum(op.accelerated for op in ops) if delegated else 0,
        ops=dict(Counter(op.name for op in ops).most_common()),
        dynamic_macs=sum(op.macs for op in ops if op.kind is Kind.INTEGER and op.dynamic),
        float_mac_modules=tuple(dict.fromkeys(op.module or op.name for op in ops if op.macs and op.kind is Kind.FLOAT)),
        float_modules=_by_module([op for op in ops if op.kind is Kind.FLOAT]) if _count(ops, Kind.INTEGER) else (),
        conversion_modules=_by_module([op for op in ops if op.kind is Kind.CONVERSION and not op.at_end]),
        fallback_modules=tuple(f"{op.module or '?'} ({op.name})" for op in ops if delegated and not op.accelerated),
    )


def _by_module(ops: Sequence[Op]) -> tuple[str, ...]:
    """Modules in their order, each with the kinds of its ops; a question mark where the file does not say."""
    found: dict[str, dict[str, None]] = {}
    for op in ops:
        found.setdefault(op.module or "?", {})[op.name] = None
    return tuple(f"{module} ({', '.join(names)})" for module, names in found.items())


def _count(ops: Sequence[Op], kind: Kind) -> int:
    return sum(op.kind is kind for op in ops)
