"""Camera pixels as the input of a network: the declared normalisation becomes part of the first convolution, exactly.

The network takes x = (p − m) / s per channel, p the pixels in 0…255, m and s in pixels. Its first convolution pads x with zeros,
which are the mean in pixels: a pixel value that no integer need have. So the pixels get one more channel that is 255 everywhere,
which the zero padding of the convolution cuts off like the others, and

    W ⋆ x  =  (W / s) ⋆ p  +  (−Σ_c W_c m_c / s_c / 255) ⋆ [255],

with the same zero padding on both sides: at the border as well, and for any m. Without padding the second term is constant and
goes into the bias. The integers of the input are then the pixels themselves (scale 1, zero point 0 as uint8): nothing is rounded.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgefold.errors import UnsupportedError, UsageError
from edgefold.preprocess import Preprocessing
from edgefold.quantize.graph import add_buffer, constant_of, groups_of, is_constant
from edgefold.quantize.pairs import weight_scale
from edgefold.quantize.scheme import FIXED, QParams

if TYPE_CHECKING:
    from edgefold.quantize.calibrate import ScaleTable

_ATEN = torch.ops.aten
PIXELS: Final = QParams(1.0, -128)  # as int8; uint8 ends move the zero point to 0
_FULL: Final = 255.0


@dataclass(frozen=True, slots=True)
class PixelInput:
    """x[c] = (pixel[c] − mean[c]) / std[c], all in pixels of 0…255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, prepare: Preprocessing) -> PixelInput:
        """What a network's preprocessing does to a pixel."""
        return cls(tuple(m * prepare.divisor for m in prepare.mean), tuple(s * prepare.divisor for s in prepare.std))

    def pixels(self, x: Tensor) -> Tensor:
        """The pixels, float32 integers in 0…255, that became the network inputs ``x`` (N, C, H, W)."""
        shape = (1, -1, 1, 1)
        std, mean = (torch.tensor(values, dtype=torch.float64).view(shape) for values in (self.std, self.mean))
        return torch.round(x.double() * std + mean).clamp(0, _FULL).float()

    def first(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Inputs of the network with the first one as pixels."""
        return (self.pixels(inputs[0]), *inputs[1:])


def absorb(graph: GraphModule, pixels: PixelInput) -> GraphModule:
    """A copy of the canonical graph whose first input is pixels.

    Raises:
        UnsupportedError: the first input goes elsewhere than into one convolution over all channels.
        UsageError: another number of channels than the normalisation has.
    """
    result = copy.deepcopy(graph)
    inputs = result.graph.find_nodes(op="placeholder")
    source = inputs[0]
    pad, conv = _first_conv(source)
    weight = constant_of(result, _argument(conv, 1))  # (N, C, kh, kw)
    if weight.shape[1] != len(pixels.mean):
        raise UsageError(
            f"the first conv takes {weight.shape[1]} channels and the declared normalisation has {len(pixels.mean)}; "
            "declare one mean and std a channel"
        )
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (pixels.mean, pixels.std))
    scaled = weight.double() / std.view(1, -1, 1, 1)
    offset = -(scaled * mean.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)  # (N, 1, kh, kw)
    source.meta[FIXED] = PIXELS
    if pad is not None or _padded(conv):
        with result.graph.inserting_after(inputs[-1]):
            plane = result.graph.call_function(_ATEN.constant_pad_nd.default, (source, [0, 0, 0, 0, 0, 1], _FULL))
        plane.meta = {key: value for key, value in source.meta.items() if key != FIXED}
        plane.meta["val"] = _ATEN.constant_pad_nd.default(source.meta["val"], [0, 0, 0, 0, 0, 1], _FULL)
        source.replace_all_uses_with(plane, delete_user_cb=lambda user: user is not plane)
        _replace(result, conv, 1, torch.cat([scaled, offset / _FULL], dim=1).to(weight.dtype))
    else:
        _replace(result, conv, 1, scaled.to(weight.dtype))
        bias = _argument(conv, 2) if len(conv.args) > 2 and is_constant(conv.args[2]) else None
        before = constant_of(result, bias).double() if bias is not None else torch.zeros(len(weight), dtype=torch.float64)
        _replace(result, conv, 2, (before + offset.sum(dim=(1, 2, 3))).to(weight.dtype))
    result.graph.lint()
    result.recompile()
    return result


def with_pixel_scales(graph: GraphModule, table: ScaleTable) -> ScaleTable:
    """A table of the network as it was, for the graph of `absorb`: only the scales of its first layer are others."""
    path = [graph.graph.find_nodes(op="placeholder")[0]]
    while path[-1].target is not _ATEN.conv2d.default:
        (following,) = path[-1].users
        path.append(following)
    conv = path.pop()
    scale = weight_scale(constant_of(graph, _argument(conv, 1)).float())
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return replace(
        table,
        activations={**table.activations, **{node.name: PIXELS for node in path}},
        weights={**table.weights, conv.name: scale},
    )


def _first_conv(source: Node) -> tuple[Node | None, Node]:
    """The zero padding before the first convolution, if it is an op of its own, and the convolution."""
    users = list(source.users)
    pad = users[0] if len(users) == 1 and _pads_with_zeros(users[0]) else None
    if pad is not None:
        users = list(pad.users)
    conv = users[0] if len(users) == 1 else None
    if conv is None or conv.target is not _ATEN.conv2d.default or groups_of(conv) != 1 or not is_constant(conv.args[1]):
        names = ", ".join(sorted(str(getattr(user.target, "__name__", user.target)) for user in users))
        raise UnsupportedError(
            f"camera pixels need a plain convolution first, but the input goes to {names or 'nothing'}; "
            "use --io int8, or normalise in the app"
        )
    return pad, conv


def _pads_with_zeros(node: Node) -> bool:
    if node.target is _ATEN.constant_pad_nd.default:
        return all(value in (None, 0) for value in node.args[2:])
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return bool(node.target is _ATEN.pad.default and mode == "constant" and value in (None, 0))


def _padded(conv: Node) -> bool:
    padding = conv.args[4] if len(conv.args) > 4 else 0
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _argument(node: Node, position: int) -> Node:
    value = node.args[position]
    assert isinstance(value, Node)
    return value


def _replace(module: GraphModule, node: Node, position: int, value: Tensor) -> None:
    with module.graph.inserting_before(node):
        constant = add_buffer(module, f"{node.name}_pixels_{position}", value)
    if position < len(node.args):
        node.args = (*node.args[:position], constant, *node.args[position + 1 :])
    else:
        node.args = (*node.args, constant)
