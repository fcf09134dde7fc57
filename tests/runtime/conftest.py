"""The tiny models and what they compute, from their weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

TINY = Path(__file__).parents[1] / "data" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the tiny models."""
    return TINY


@pytest.fixture(scope="session")
def images() -> NDArray[np.float32]:
    """Three inputs in torch's layout."""
    return np.random.default_rng(1).uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)


def conv(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float64]:
    """A 3x3 convolution with padding 1: y[n, o, i, j] = sum w[o, m, a, b] x[n, m, i + a - 1, j + b - 1]."""
    height, width = x.shape[2:]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    result = np.zeros((len(x), len(weight), height, width))
    for a in range(3):
        for b in range(3):
            window = padded[:, :, a : a + height, b : b + width]
            result += np.einsum("nmij,om->noij", window, weight[:, :, a, b].astype(np.float64))
    return result


@pytest.fixture(scope="session")
def expected(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the tiny models compute, in float64."""
    with np.load(TINY / "weights.npz") as weights:
        return conv(np.maximum(conv(images, weights["first"]), 0), weights["second"])
