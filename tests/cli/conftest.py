"""The command line as its user meets it: arguments in, exit code, stdout and stderr out."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgefold.cli import main

if TYPE_CHECKING:
    from edgefold.device_bench.race import Race, RaceOptions

TINY = Path(__file__).parents[1] / "data" / "tiny"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.stdout)


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs `edgefold ARGS` in this process, in an empty folder; its words are taken at the file descriptors."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEFOLD_HISTORY", str(tmp_path / "history.sqlite3"))
    monkeypatch.setenv("EDGEFOLD_COSTS", str(tmp_path / "costs"))

    def call(*args: str | Path) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["edgefold", *(str(arg) for arg in args)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        stdout, stderr = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, stdout, stderr)

    return call


@pytest.fixture
def tiny() -> Path:
    """A folder of small model files in all formats."""
    return TINY


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring and racing in one short process: these tests look at the flow, not at the figures."""
    import edgefold.device_bench as device_bench
    from edgefold.device_bench import closing
    from edgefold.device_bench.race import race

    def race_once(cases: Any, runner: Any, launchers: Any, options: RaceOptions) -> Race:
        return race(cases, runner, launchers, replace(options, processes=1, blocks=2, turn_s=0.0))

    short = partial(device_bench.BenchOptions, processes=1, min_samples=2, min_time_s=0.01)
    monkeypatch.setattr(device_bench, "BenchOptions", lambda **options: short(**{**options, "max_secs": 1.0}))
    monkeypatch.setattr(closing, "RACES", 1)
    monkeypatch.setattr(closing, "race", race_once)
