"""Arguments of ops that converters drop or refuse, written as ops of their own.

``torch.onnx`` drops the divisor of an average pooling, LiteRT's converter takes no ``alpha`` and swaps the operands of
``1 - x``. All of it is plain arithmetic, so that the captured graph has it written out, for every format and for calibration:

    avg_pool(x, …, divisor_override=d)      avg_pool(x, …) · k/d, k the size of the window, padding included
    add(x, y, alpha=a), sub(x, y, alpha=a)  x ± a·y
    rsub(x, y, alpha=a)                     y − a·x
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.quantize.graph import add_buffer

_ATEN: Final = torch.ops.aten
_POOLS: Final[dict[object, int]] = {_ATEN.avg_pool2d.default: 2, _ATEN.avg_pool3d.default: 3}  # -> dimensions of space
_SUMS: Final = frozenset({_ATEN.add.Tensor, _ATEN.sub.Tensor})
_REVERSED: Final = frozenset({_ATEN.rsub.Scalar, _ATEN.rsub.Tensor})
_POOL_DEFAULTS: Final[tuple[Any, ...]] = (None, (), 0, False, True, None)  # of all arguments after the input


def plain_ops(module: GraphModule) -> None:
    """Rewrites every such op, in place; needs ``meta["val"]``."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.args[0], Node):
            continue
        with module.graph.inserting_before(node):
            if node.target in _POOLS:
                _pool(module, node)
            elif node.target in _SUMS:
                _sum(module, node)
            elif node.target in _REVERSED:
                _reversed(module, node)


def _pool(module: GraphModule, node: Node) -> None:
    given: tuple[Any, ...] = node.args[1:]
    kernel, stride, padding, ceil, _, divisor = given + _POOL_DEFAULTS[len(given) :]
    if divisor is None:
        return
    target: Any = node.target
    dims = _POOLS[target]
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]  # a node, as `plain_ops` has checked
    ones = torch.ones(1, 1, *shape[-dims:], dtype=torch.float64)
    node.args = (node.args[0], kernel, list(stride), padding, ceil, True)
    # Windows that reach over the end (``ceil_mode``) are smaller than the others.
    factor = target(ones, *node.args[1:], divisor) / target(ones, *node.args[1:])
    first = float(factor.flatten()[0])
    if bool((factor - first).abs().max() > 1e-12 * abs(first)):
        scale = factor.reshape(*[1] * (len(shape) - dims), *factor.shape[2:]).to(node.meta["val"].dtype)
        _times(module, node, scale)
    elif first != 1:
        _times(module, node, torch.tensor(first, dtype=node.meta["val"].dtype))


def _times(module: GraphModule, node: Node, factor: Tensor) -> None:
    """Multiplies what a node gives to all its readers."""
    with module.graph.inserting_after(node):
        constant = add_buffer(module, f"{node.name}_factor", factor)
    with module.graph.inserting_after(constant):
        product = module.graph.call_function(_ATEN.mul.Tensor, (node, constant))
    product.meta = dict(node.meta)
    node.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)


def _sum(module: GraphModule, node: Node) -> None:
    if "alpha" in node.kwargs:
        node.args = (node.args[0], _scaled(module, node, node.args[1], node.kwargs["alpha"]))
        node.kwargs = {}


def _reversed(module: GraphModule, node: Node) -> None:
    subtrahend, value = node.args[:2]
    assert isinstance(subtrahend, Node)
    dtype = node.meta["val"].dtype
    if subtrahend.meta["val"].dtype != dtype:
        return  # an integer tensor from a fraction: nothing that networks compute, and both sides would need a conversion
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    if not isinstance(value, Node):
        value = add_buffer(module, f"{node.name}_from", torch.tensor(value, dtype=dtype))
    node.target, node.kwargs = _ATEN.sub.Tensor, {}
    node.args = (value, _scaled(module, node, subtrahend, alpha))


def _scaled(module: GraphModule, node: Node, value: Any, alpha: Any) -> Any:
    """``alpha`` times an operand of ``node``, a node or a number."""
    if alpha == 1 or not isinstance(value, Node):
        return value if alpha == 1 else value * alpha
    source: Tensor = value.meta["val"]
    constant = add_buffer(module, f"{node.name}_alpha", torch.tensor(alpha, dtype=source.dtype))
    product = module.graph.call_function(_ATEN.mul.Tensor, (value, constant))
    product.meta = {**node.meta, "val": source}
    return product
