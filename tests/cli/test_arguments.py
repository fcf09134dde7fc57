"""Arguments of models on the command line: pairs, and JSON objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgefold.cli.sources import arguments
from edgefold.errors import UsageError


def test_pairs_and_objects() -> None:
    assert arguments(["width=32", "conv=dual", "blocks=[1, 2]"]) == {"width": 32, "conv": "dual", "blocks": [1, 2]}
    assert arguments(['{"width": 32, "conv": "dual"}', "width=16"]) == {"width": 16, "conv": "dual"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("width", "argument 'width' is neither KEY=VALUE nor a JSON object"),
        ("[1]", "neither KEY=VALUE nor a JSON object"),
        ("{width: 32}", r"no JSON object \(Expecting property name"),
    ],
)
def test_what_is_neither(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        arguments([given])


def test_kwargs_on_the_command_line(cli: Callable[..., Any]) -> None:
    made = cli("fold", "hetnet", "--kwargs", '{"width": 8, "blocks": [1], "p": 2}', "--json")
    assert made.code == 0, made.stderr
    assert made.data == cli("fold", "hetnet", "--arg", "width=8", "-a", "blocks=[1]", "-a", "p=2", "--json").data
    wrong = cli("fold", "hetnet", "--kwargs", '{"widht": 8}')
    assert wrong.code == 2
    assert "did you mean 'width'" in wrong.stderr
