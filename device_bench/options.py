"""How a measurement is made."""

from __future__ import annotations

from dataclasses import dataclass

from edgefold.errors import UsageError


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """One configuration, the same for all formats, so that they compare.

    ``cores`` pins the process: ``"4-7"`` or ``"0,2"``. ``max_secs`` bounds all processes of one artifact together; steady
    state ends earlier once each of ``processes`` fresh processes has ``min_samples`` samples and ``min_time_s`` of them.
    ``gate_c`` is the temperature to wait for before each artifact (or the device's own idle one, if that is higher), for
    ``gate_max_s`` at most.
    """

    threads: int = 1
    cores: str | None = None
    processes: int = 5
    min_samples: int = 64
    min_time_s: float = 0.5
    max_secs: float = 120.0
    seed: int = 0
    gate_c: float = 37.0
    gate_max_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("threads", "processes", "min_samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("min_time_s", "gate_max_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 or more seconds")
        if self.max_secs <= 0:
            raise UsageError(f"max_secs is {self.max_secs}, expected more than 0 seconds")
        self.core_list()

    def core_list(self) -> list[int]:
        """The numbers in ``cores``, in rising order; empty where the process is not pinned.

        Raises:
            UsageError: it is not a list of numbers and ranges.
        """
        found: set[int] = set()
        for part in (self.cores or "").split(",") if self.cores else ():
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise UsageError(f"cores '{self.cores}' cannot be read; expected numbers and ranges like '0,2-3'")
            found.update(range(int(first), int(last or first) + 1))
        return sorted(found)
