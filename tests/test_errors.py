"""The words of errors."""

from __future__ import annotations

import pytest

from edgefold.errors import first_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("\n  two sizes differ.\nat line 3"), "two sizes differ"),
        (RuntimeError(), "RuntimeError"),
        (KeyError(" "), "' '"),
        (AssertionError(" \n"), "AssertionError"),
    ],
)
def test_the_first_line_of_an_error_with_and_without_text(error: Exception, words: str) -> None:
    assert first_line(error) == words
