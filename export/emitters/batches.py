"""The last word on a file for any batch: its runtime must give the same for many samples at once as for each of them alone.

Converters write a file for one sample, where a size of 1 hides much: an axis that is dropped, or one that is repeated, changes
nothing. With as many samples as an inner axis is long, the same fault gives wrong numbers without an error. So the samples are as
many as divide no size of the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from edgefold.artifact import Artifact
from edgefold.errors import ArtifactError, RuntimeFailure, UnsupportedError
from edgefold.export.verify import sqnr_db
from edgefold.runtime import run
from edgefold.schemes import scheme_of

_THRESHOLDS: Final = frozenset({16})  # torch chooses its kernel of a convolution by "at least 16 samples"
_PRIMES: Final = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
# Of integers that no scale stands for, such as the place of the largest score, those that two close scores may not change.
_EQUAL: Final = 0.9
_REMEDY: Final = "leave --dynamic-batch out, or write the network in another way"


def check_batches(artifact: Artifact, samples: Sequence[Tensor]) -> None:
    """Runs a file with all samples at once and one by one; a file of one batch size has none and passes.

    Args:
        artifact: the file.
        samples: one tensor an input, in torch's layout; see `trial`.

    Raises:
        UnsupportedError: the runtime refuses the file or the batch, or a sample's result depends on the others.
    """
    if not artifact.dynamic_batch:
        return
    count, arrays = len(samples[0]), [tensor.numpy() for tensor in samples]
    alone = _run(artifact, arrays, 1, "does not run the file, not even with one sample")
    together = _run(artifact, arrays, count, f"runs the file with one sample, but not with {count} at once")
    for spec, one, many in zip(artifact.outputs, alone, together, strict=True):
        if one.shape != many.shape:
            reason = f"its shape for {count} samples is {many.shape}, expected {one.shape}"
        elif not _close(one, many, artifact):
            reason = f"of {count} samples at once, a sample's result depends on the others"
        else:
            continue
        raise UnsupportedError(
            f"the batch size cannot be left open in {artifact.format}: output '{spec.name}': {reason}; {_REMEDY}"
        )


def _run(artifact: Artifact, arrays: list[NDArray[Any]], batch: int, fault: str) -> tuple[NDArray[Any], ...]:
    try:
        return run(artifact, arrays, batch=batch)
    except (ArtifactError, RuntimeFailure) as error:
        raise UnsupportedError(
            f"the batch size cannot be left open in {artifact.format}: its runtime {fault}; {_REMEDY}"
        ) from error


def trial(graph: GraphModule, examples: Sequence[Tensor], most: int | None = None) -> tuple[Tensor, ...]:
    """Seeded samples like the examples, at most ``most``; their number divides no size of a value in the graph, if one such does.

    Needs ``meta["val"]``. Integers are those of the examples in another order.
    """
    sizes = _sizes(graph)
    allowed = [prime for prime in _PRIMES if most is None or prime <= most] or [2]
    count = next((prime for prime in allowed if all(size % prime for size in sizes)), allowed[-1])
    generator = torch.Generator().manual_seed(0)
    return tuple(_samples(example, count, generator) for example in examples)


def capacity(graph: GraphModule, most: int) -> int:
    """The fewest samples, at least ``most``, that are no size of a value in the graph; needs ``meta["val"]``.

    A converter that compares an open batch with such a size takes the batch for it, or one less for the limit. The same happens
    with a number that torch compares the batch with: at least 16, and at most 16, is 16.
    """
    sizes = _sizes(graph) | _THRESHOLDS
    return next(count for count in itertools.count(most) if count not in sizes)


def _sizes(graph: GraphModule) -> set[int]:
    values = [node.meta.get("val") for node in graph.graph.nodes]
    return {size for value in values if isinstance(value, Tensor) for size in value.shape}


def _samples(example: Tensor, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype)
    return example.reshape(-1)[torch.randint(example.numel(), shape, generator=generator)]


def _close(one: NDArray[Any], many: NDArray[Any], artifact: Artifact) -> bool:
    if not np.issubdtype(one.dtype, np.floating):
        return float((one == many).mean()) >= _EQUAL
    scheme = scheme_of(artifact.precision)
    if scheme.tolerance is None:
        noise = sqnr_db(one, many)
        return noise is None or noise >= scheme.sqnr_db
    apart = float(np.abs(one.astype(np.float64) - many).max(initial=0.0))
    return apart <= scheme.tolerance * (float(np.ptp(one)) or 1.0)
