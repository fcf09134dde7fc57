"""`edgefold fold` shows the whole plan, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefold.cli.progress import BarStages

Cli = Callable[..., Any]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.het = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 8, 3)

    def forward(self, x):
        x = torch.relu(self.het(x) + self.point(x))
        return self.last(x)

example_inputs = torch.randn(1, 16, 14, 14)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    """A network with one layer that has several forms."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return f"{path}:Net"


def test_the_plan_is_shown_for_every_format_and_precision(cli: Cli, net: str) -> None:
    ended = cli("fold", net, "--json")
    assert ended.code == 0, ended.stderr
    plans = ended.data["lowerings"]
    assert [(plan["format"], plan["precision"]) for plan in plans] == [
        (form, numbers) for form in ("onnx", "tflite", "executorch") for numbers in ("fp32", "int8")
    ]
    shown = cli("fold", net).stdout
    _, _, totals = shown.partition("whole network")
    for plan in plans:
        line = next(line for line in totals.splitlines() if line.lstrip().startswith(f"{plan['format']} {plan['precision']}"))
        assert f"{plan['totals']['nodes']:,}" in line
        (het,) = (layer for layer in plan["layers"] if len(layer["candidates"]) > 1)
        assert {one["lowering"] for one in het["candidates"]} == {"dense", "grouped", "split"}
        assert het["structure"] in shown
        chosen = next(one for one in het["candidates"] if one["lowering"] == het["choice"])
        assert chosen["numeric_class"] in shown
        assert chosen["cost_ns"] > 0
    assert "as written" in shown
    assert "folded" in shown
    assert "the weight has no separate channel groups" in " ".join(shown.split())


def test_a_device_without_a_table_gets_estimates_and_says_so(cli: Cli, net: str) -> None:
    arguments = ("fold", net, "-f", "onnx", "-p", "int8", "--device", "ssh://nobody@nowhere")
    (plan,) = cli(*arguments, "--json").data["lowerings"]
    assert plan["device"] == "ssh://nobody@nowhere"
    assert {one["source"] for layer in plan["layers"] for one in layer["candidates"]} == {"estimated"}
    shown = cli(*arguments).stdout
    assert "cheapest (estimated)" in " ".join(shown.split())
    assert "fp32" not in shown


def test_a_lowering_that_is_asked_for_still_shows_what_the_others_cost(cli: Cli, net: str) -> None:
    arguments = ("fold", net, "-f", "onnx", "-p", "fp32", "--device", "ssh://nobody@nowhere", "--lowering", "split")
    shown = " ".join(cli(*arguments).stdout.split())
    assert "asked for split (times: estimated)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--costs", "host", "--device", "ssh://a@b"), "give one of them"),
        (("--device", "printer"), "printer"),
        (("--draw", "plan.png"), "picture 'plan.png' ends in '.png', and is written as SVG"),
        (("-f", "executorch", "-p", "int8-weight-only"), "has no form in executorch"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_the_work(
    cli: Cli, net: str, arguments: tuple[str, ...], message: str
) -> None:
    ended = cli("fold", net, *arguments)
    assert ended.code == 2, ended.stderr
    assert message in ended.stderr
    assert "folding" not in ended.stderr


def test_progress_is_one_line_in_a_log(cli: Cli, net: str) -> None:
    assert cli("fold", net, "--json").stderr == f"folding {net}\n"


def test_progress_is_bars_on_a_terminal(cli: Cli, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(BarStages, "stage", lambda self, name, steps=None: told.append(name))
    monkeypatch.setattr("edgefold.cli.progress.sys.stderr.isatty", lambda: True)
    assert cli("fold", net, "--json").code == 0
    assert told == ["fold: record", "fold: modules", "fold: capture", "fold: graph"]
