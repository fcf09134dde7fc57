"""Channel axes that were tried: what the graph of channels does not tell, a run without some of the channels does.

Code that counts its channels (a slice ``x[:, :32]``, a constant of one number a channel, a norm of as many groups as channels) is
no layer that could be cut. A network without some channels of such an axis does not run, or gives outputs of another shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgefold.errors import ModelError, first_line
from edgefold.models.prune_graph import Axis, channel_axes, remove_channels


def tried_axes(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """As `channel_axes`, without the axes whose channels cannot go, each with the reason.

    Raises:
        InputError: see `channel_axes`.
    """
    axes, skipped = channel_axes(module, example_inputs)
    reasons: list[str] = []
    found = _sound(module, example_inputs, (), axes, reasons)
    return found, (*skipped, *reasons)


def _sound(
    module: nn.Module, inputs: tuple[Tensor, ...], known: tuple[Axis, ...], axes: tuple[Axis, ...], reasons: list[str]
) -> tuple[Axis, ...]:
    """Those of ``axes`` of which channels can go beside those of ``known``; halves are tried apart where all together fail."""
    if not axes:
        return ()
    problem = _problem(module, inputs, (*known, *axes))
    if not problem:
        return axes
    if len(axes) == 1:
        reasons.append(f"the axis of '{axes[0].root}' meets code that counts its channels ({problem})")
        return ()
    middle = len(axes) // 2
    first = _sound(module, inputs, known, axes[:middle], reasons)
    return (*first, *_sound(module, inputs, (*known, *first), axes[middle:], reasons))


def _problem(module: nn.Module, inputs: tuple[Tensor, ...], axes: Sequence[Axis]) -> str:
    """What goes wrong without one unit of each axis, or without every second one; empty if nothing does."""
    for pick in (slice(0, 1), slice(1, None, 2)):
        channels = {axis.root: [channel for unit in axis.units[pick] for channel in unit] for axis in axes if len(axis.units) > 1}
        try:
            remove_channels(module, inputs, channels)
        except ModelError as error:
            return first_line(error.__cause__ or error)
        except Exception as error:  # of Torch-Pruning, on what it cannot cut
            return first_line(error)
    return ""
