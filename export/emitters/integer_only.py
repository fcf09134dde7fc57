"""Files that are integer from input to output, as NPUs and microcontrollers need them: what stands in the way is named.

The graph is asked first, where every op still has its module; the runtime's own view of the written file has the last word.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.artifact import Precision
from edgefold.errors import UnsupportedError
from edgefold.export.inspect import read
from edgefold.export.inspectors.base import Kind
from edgefold.quantize.annotate import WEIGHTED, is_fused_with_clip
from edgefold.quantize.graph import module_path
from edgefold.quantize.scheme import WEIGHT_SCALE, Q
from edgefold.schemes import scheme_of

_REMEDY = "replace it, or use precision int8, which computes it in float"


def refuse_float_ops(graph: GraphModule, precision: Precision) -> None:
    """Refuses a graph with an op that stays float.

    Args:
        graph: ATen graph whose nodes carry their quantization and their values in ``meta``.
        precision: for the message.

    Raises:
        UnsupportedError: the first such op, and the module that it comes from.
    """
    for node in graph.graph.nodes:
        if node.op == "call_function" and _is_float(node):
            where = _where(module_path(node), node.name)
            raise UnsupportedError(f"op '{node.target}'{where} has no integer form, and '{precision}' allows no other; {_REMEDY}")


def check_integer_only(path: Path, precision: Precision) -> None:
    """Refuses a file in which the runtime computes anything in float, if the precision allows no float.

    Raises:
        UnsupportedError: the first such op, or the first conversion from or to float, with its module where the file tells it.
    """
    if not scheme_of(precision).integer_only:
        return
    found = [op for op in read(path).ops if op.kind is not Kind.INTEGER]
    # Conversions stand around what is computed in float: that is what can be replaced.
    for op in sorted(found, key=lambda op: op.kind is Kind.CONVERSION)[:1]:
        what = "converts from or to float" if op.kind is Kind.CONVERSION else "is computed in float"
        where = _where(op.module, op.name)
        raise UnsupportedError(f"op '{op.name}'{where} {what} in this format, and '{precision}' allows only integers; {_REMEDY}")


def _is_float(node: Node) -> bool:
    """Whether a node makes real numbers that no integers stand for, which are not those that a fused activation clips."""
    value = node.meta["val"]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False  # a split's parts carry the parameters
    if Q in node.meta:
        return False
    return not is_fused_with_clip(node) or (node.target in WEIGHTED and WEIGHT_SCALE not in node.meta)


def _where(module: str, name: str) -> str:
    return f" of module '{module}'" if module and module != name else ""
