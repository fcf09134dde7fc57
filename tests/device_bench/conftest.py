"""Cases and devices that exist in memory only."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "data" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the tiny models."""
    return TINY
