"""Reading the structure of a convolution from the zeros of its weight.

Each kernel (n, m) of a weight W of shape (N, M, *K) is zero, one tap only (the centre, as a rule), or full. The full kernels
are the edges of a bipartite graph between input and output channels; its connected components are the groups of a group
convolution, after a permutation of inputs and outputs. In HetConv (Singh et al., CVPR 2019) with part P, kernel (n, m) is full
iff (m - n) mod P = 0, which gives P groups of M/P inputs and N/P outputs; the other kernels are one 1x1 convolution.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from edgefold.export.plan import KernelMap


def centre_tap(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """The index of the tap that counts as the centre; of the two middle ones of an even kernel the first."""
    return tuple((size - 1) // 2 for size in kernel_size)


def point_tap(weight: Tensor) -> tuple[int, ...]:
    """The index of the tap that most kernels with a single tap have, at the middle or before it; the centre if there are none.

    A 1×1 beside a kernel that is padded at its end only, as a stride of 2 with TensorFlow's "same", is its first tap. Beside a
    kernel of even size that is padded more at its start, it is the second one of the two in the middle.
    """
    shape = tuple(weight.shape[2:])
    centre = centre_tap(shape)
    taps = weight.detach().ne(0).flatten(2)
    counts = taps[taps.sum(dim=2) == 1].sum(dim=0).reshape(shape)[tuple(slice(0, size // 2 + 1) for size in shape)]
    best = int(counts.max())
    if counts[centre] == best:
        return centre
    return tuple(int(index) for index in np.unravel_index(int(counts.argmax()), tuple(counts.shape)))


def read_structure(weight: Tensor, groups: int = 1) -> KernelMap:
    """The kernel map of a weight of shape (N, M / groups, *kernel).

    Channels of the map are those of the whole convolution: kernels outside the given groups count as zero.
    """
    tap = point_tap(weight)
    full, centre = masks(weight, groups, tap)
    out_channels, in_channels = full.shape
    rows, columns = np.nonzero(full)
    graph = coo_array(
        (np.ones(len(rows), dtype=np.int8), (rows, columns + out_channels)), shape=(out_channels + in_channels,) * 2
    )
    count, labels = connected_components(graph, directed=False)
    return KernelMap(
        out_channels=out_channels,
        in_channels=in_channels,
        kernel_size=tuple(weight.shape[2:]),
        full=len(rows),
        centre=int(centre.sum()),
        zero=out_channels * in_channels - len(rows) - int(centre.sum()),
        groups=_components(labels, count, out_channels),
        tap=tap,
    )


def masks(weight: Tensor, groups: int = 1, tap: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Boolean arrays of shape (N, M): which kernels are full, and which hold ``tap`` only (by default that of `point_tap`).

    A 1x1 weight has only such taps, which count as full: there is nothing beside them.
    """
    flat = weight.detach().ne(0).flatten(2)  # (N, M / groups, taps)
    taps = flat.shape[2]
    shape = tuple(weight.shape[2:])
    centre = int(np.ravel_multi_index(point_tap(weight) if tap is None else tap, shape))
    others = torch.arange(taps) != centre
    off = flat[:, :, others].any(dim=2) if taps > 1 else flat[:, :, 0]
    only = flat[:, :, centre] & ~off
    return _spread(off.numpy(), groups), _spread(only.numpy(), groups)


def _spread(block: np.ndarray, groups: int) -> np.ndarray:
    """(N, M / groups) of a group convolution as the (N, M) of the whole one."""
    if groups == 1:
        return block
    rows, columns = block.shape
    whole = np.zeros((rows, columns * groups), dtype=bool)
    step = rows // groups
    for group in range(groups):
        part = slice(group * step, (group + 1) * step)
        whole[part, group * columns : (group + 1) * columns] = block[part]
    return whole


def _components(labels: np.ndarray, count: int, out_channels: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The components that hold inputs and outputs, by their first output."""
    inputs: list[list[int]] = [[] for _ in range(count)]
    outputs: list[list[int]] = [[] for _ in range(count)]
    for index, label in enumerate(labels.tolist()):
        if index < out_channels:
            outputs[label].append(index)
        else:
            inputs[label].append(index - out_channels)
    pairs = [(tuple(one), tuple(two)) for one, two in zip(inputs, outputs, strict=True) if one and two]
    return tuple(sorted(pairs, key=lambda pair: pair[1][0]))
