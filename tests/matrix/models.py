"""Models that behave and misbehave, as a user's file."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

example_inputs = torch.zeros(1, 1, 8, 8)


def small() -> nn.Module:
    """A network that works."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


def crashes() -> nn.Module:
    """Takes the process with it."""
    os._exit(7)


def killed() -> nn.Module:
    """Is killed by somebody, while it holds 800 MB."""
    assert len(b"1" * 800_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leaves() -> nn.Module:
    """Ends as a script would."""
    raise SystemExit(5)


def hangs() -> nn.Module:
    """Never comes back."""
    time.sleep(3600)
    raise AssertionError


def hungry() -> nn.Module:
    """Wants eight gigabytes."""
    return nn.Linear(2**16, 2**15)


class _Twice(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """A convolution."""
        y: Tensor = self.conv(x)
        return y


def counted(path: str) -> nn.Module:
    """A network that leaves a line in a file each time that it is made."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("made\n")
    return _Twice(path)


def dies_once(path: str) -> nn.Module:
    """A network whose first cell ends as it begins."""

    def die() -> None:
        mark = Path(f"{path}.mark")
        if not mark.exists():
            mark.touch()
            os._exit(9)

    os.register_at_fork(after_in_child=die)
    return counted(path)
