"""Which ATen ops are affine in the tensors that depend on the input, given which of their operands do.

A map is affine iff f(a x + (1 - a) z) = a f(x) + (1 - a) f(z). Compositions and sums of affine maps are affine, and so is the
product of one affine map with a constant; the product of two is not. So a function is affine *by construction* when each op
that it runs on input-dependent tensors is one of the rules below. Anything else is refused, by the op's name: an op is never
admitted because it looked linear on samples.

The same rules judge a running module (operands are tensors) and a captured graph (operands are nodes): an operand is
anything for which ``dependent`` answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch._ops import OpOverload, OpOverloadPacket

Dependent = Callable[[Any], bool]
Rule = Callable[[Sequence[Any], dict[str, Any], Dependent], str | None]


def admit(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    """Why ``op`` may make the result other than affine, or None.

    At least one operand must depend on the input.
    """
    rule = _rule_of(op)
    name = f"{op.namespace}.{op._opname}"
    kwargs = {key: value for key, value in kwargs.items() if key != "out"}  # is overwritten
    if rule is None:
        return _READS.get(op._opname) or f"applies {name}, which is not affine"
    reason = rule(args, kwargs, dependent)
    return None if reason is None else f"applies {name} {reason}"


def is_rounded(result: torch.dtype, source: torch.dtype) -> bool:
    """Whether values of the type ``result`` are rounded or cut off where those of ``source`` are not: no affine step.

    Both are floating types. What is as exact as the input is rounded like every sum.
    """
    if result == source:
        return False
    one, two = torch.finfo(result), torch.finfo(source)
    return one.eps > two.eps or one.max < two.max or one.smallest_normal > two.smallest_normal


def keeps_own_state(op: OpOverload) -> bool:
    """Whether the op is no one of PyTorch's own: its code may keep state between calls."""
    return op.namespace not in ("aten", "prim", "prims")


def is_shape_only(op: OpOverload) -> bool:
    """Whether the result depends on the shape and type of the operands, never on their values."""
    return op._opname in _SHAPE_ONLY


def operands(values: Any) -> Iterator[Any]:
    """The leaves of an op's arguments that may be tensors or nodes: values and members of lists."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from operands(value)
        else:
            yield value


def _depends(value: Any, dependent: Dependent) -> bool:
    return any(dependent(leaf) for leaf in operands((value,)))


def _only(*allowed: int) -> Rule:
    """Affine jointly in the arguments at the ``allowed`` positions; the others must be constants."""

    def rule(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
        late = [value for index, value in enumerate(args) if index not in allowed]
        if any(_depends(value, dependent) for value in (*late, *kwargs.values())):
            return "with an operand that depends on the input where only a constant keeps it affine"
        return None

    return rule


def _product(first: int, second: int, *free: int) -> Rule:
    """Bilinear in two arguments, of which exactly one may depend on the input; affine in the ``free`` ones."""
    constants = _only(first, second, *free)

    def rule(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
        left = len(args) > first and _depends(args[first], dependent)
        right = len(args) > second and _depends(args[second], dependent)
        if left and right:
            return "to two operands that both depend on the input"
        return constants(args, kwargs, dependent)

    return rule


def _any(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    """Affine in all operands together; a scalar factor such as ``alpha`` is a constant."""
    if any(_depends(value, dependent) for key, value in kwargs.items() if key not in ("other", "tensors", "src")):
        return "with a factor that depends on the input"
    return None


def _quotient(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    if kwargs.get("rounding_mode") is not None:
        return "with rounding"
    return _only(0)(args, kwargs, dependent)


def _view(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    if any(isinstance(value, torch.dtype) for value in (*args[1:], *kwargs.values())):
        return "to another type: it reads the bits of a number as another number"
    return _only(0)(args, kwargs, dependent)


def _scatter(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    if kwargs.get("reduce", "add") != "add":
        return f"with reduce='{kwargs['reduce']}'"
    return _only(0, 3)(args, kwargs, dependent)


def _convolution(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    weights = (*args[1:3], *kwargs.values())
    return "with weights that depend on the input" if any(_depends(value, dependent) for value in weights) else None


def _dropout(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    if kwargs.get("train", args[2] if len(args) > 2 else False):
        return "in training mode"
    return _only(0)(args, kwargs, dependent)


def _norm(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    """Affine in the first argument where mean and variance (the fourth and the fifth) are given and used."""
    if any(value is None or isinstance(value, bool | int | float) for value in args[3:5]):
        return "in training mode: with the statistics of the batch"
    if kwargs.get("training", args[5] if len(args) > 5 else False):
        return "in training mode"
    return _only(0)(args, kwargs, dependent)


def _einsum(args: Sequence[Any], kwargs: dict[str, Any], dependent: Dependent) -> str | None:
    if sum(_depends(value, dependent) for value in args[1]) > 1:
        return "to two operands that both depend on the input"
    return None


_FIRST = """
alias clone contiguous detach lift_fresh lift_fresh_copy _to_copy to _unsafe_view reshape _reshape_alias flatten unflatten
permute transpose transpose_ t t_ movedim squeeze squeeze_ unsqueeze unsqueeze_ expand expand_as slice select narrow as_strided
diagonal unfold im2col col2im flip roll index_select gather index constant_pad_nd pad reflection_pad1d reflection_pad2d
replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle split split_with_sizes
unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split unbind sum mean neg neg_ cumsum avg_pool1d avg_pool2d
_adaptive_avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_linear1d
upsample_bilinear2d upsample_bicubic2d tril triu repeat tile repeat_interleave fill fill_ zero_ masked_fill masked_fill_
"""
_BOTH = """
add add_ sub sub_ subtract subtract_ rsub cat concat concatenate stack copy_ copy slice_scatter select_scatter
"""
_PRODUCTS: Final[dict[str, Rule]] = {
    **dict.fromkeys(("mul", "mul_", "multiply", "multiply_", "mm", "bmm", "matmul", "mv", "dot", "tensordot"), _product(0, 1)),
    "linear": _product(0, 1, 2),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "addcmul", "addcmul_"), _product(1, 2, 0)),
    "einsum": _einsum,
}
_CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable", "_conv_depthwise2d", "conv1d", "conv2d", "conv3d")
_NORMS = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_impl_index")
_OTHERS: Final[dict[str, Rule]] = {
    **dict.fromkeys(("div", "div_", "divide", "true_divide"), _quotient),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_NORMS, _norm),
    "_native_batch_norm_legit_no_training": _only(0),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(("index_put", "index_put_"), _only(0, 2)),
    **dict.fromkeys(("index_add", "index_add_", "index_copy", "index_copy_", "scatter_add", "scatter_add_"), _only(0, 3)),
    **dict.fromkeys(("scatter", "scatter_"), _scatter),
    **dict.fromkeys(("view", "view_copy"), _view),
    "where": _only(1, 2),
    **dict.fromkeys(("lerp", "lerp_", "addcdiv", "addcdiv_"), _only(0, 1)),
}
_RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_FIRST.split(), _only(0)),
    **dict.fromkeys(_BOTH.split(), _any),
    **_PRODUCTS,
    **_OTHERS,
}
_SHAPE_ONLY: Final = frozenset(
    {
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zero"),
        *("sym_size", "sym_numel", "sym_stride", "size", "numel", "is_contiguous", "_assert_tensor_metadata"),
    }
)
_READS: Final = {
    "_local_scalar_dense": "reads values of a tensor that depends on the input (item, int, float, bool or if)",
    "equal": "compares values of a tensor that depends on the input",
    "is_nonzero": "branches on values of a tensor that depends on the input",
}


@cache
def _rule_of(op: OpOverload) -> Rule | None:
    if op.namespace != "aten":
        return None
    assert isinstance(op.overloadpacket, OpOverloadPacket)
    return _RULES.get(op._opname)


@cache
def is_random(op: OpOverload) -> bool:
    """Whether the op draws random numbers."""
    return torch.Tag.nondeterministic_seeded in op.tags


@cache
def written_positions(op: OpOverload) -> tuple[tuple[int, str], ...]:
    """The arguments that an op writes into, as (position, name)."""
    found = enumerate(op._schema.arguments)
    return tuple((index, argument.name) for index, argument in found if argument.alias_info and argument.alias_info.is_write)
