"""How a network would be computed in several formats and precisions, with what each form has in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from torch.fx import Node

from edgefold.artifact import Format, Precision
from edgefold.export.fold.cost import CONVOLUTIONS, graph_totals
from edgefold.export.fold.regions import op_name
from edgefold.export.lower.lower import lower
from edgefold.export.lower.nodes import record_values
from edgefold.export.plan import LoweringPlan
from edgefold.export.program import LoweredProgram, Program
from edgefold.quantize.scheme import WEIGHT_SCALE
from edgefold.schemes import combinations, scheme_of

FLOAT_BYTES: Final = 4


def lowering_plans(
    program: Program, formats: Sequence[Format], precisions: Sequence[Precision], *, lowering: str = "auto", device: str = "host"
) -> tuple[LoweringPlan, ...]:
    """The choice layer by layer for each format and precision, with the totals of the networks.

    ``program`` need not be calibrated: the choice needs no scales. The timing of the whole network comes with its export.

    Raises:
        UsageError: ``lowering`` is unknown.
        UnsupportedError: a precision is in none of the formats.
    """
    return tuple(
        counted(lower(program, format=format, precision=precision, lowering=lowering, device=device))
        for format, precision in combinations(formats, precisions)
    )


def counted(lowered: LoweredProgram) -> LoweringPlan:
    """The plan with the totals of its network. Without scales (before calibration) every layer counts as quantized."""
    graph = lowered.program.graph
    record_values(graph, lowered.program.example_inputs)
    scheme = scheme_of(lowered.precision)
    calibrated = any(WEIGHT_SCALE in node.meta for node in graph.graph.nodes)

    def weighs(user: Node, constant: Node) -> bool:
        """Whether the constant is the weight of a layer that has the precision's numbers."""
        first = len(user.args) > 1 and user.args[1] is constant
        return first and op_name(user) in CONVOLUTIONS and (not calibrated or WEIGHT_SCALE in user.meta)

    def element_bytes(constant: Node) -> int:
        rounded = not scheme.rounded or any(weighs(user, constant) for user in constant.users)
        return scheme.weight_bytes if rounded else FLOAT_BYTES

    return replace(lowered.plan, totals=graph_totals(graph, element_bytes))
