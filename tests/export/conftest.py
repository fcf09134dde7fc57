"""What the tests of folding, lowering and files share."""

from __future__ import annotations

import pytest

from tests.lookups import look_up_once


@pytest.fixture(autouse=True, scope="session")
def _quick_converters() -> None:
    """See `look_up_once`."""
    look_up_once()
