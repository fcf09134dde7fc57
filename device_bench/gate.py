"""The thermal gate: a measurement begins on a cool device, or says that it did not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median

from edgefold.device_bench.options import BenchOptions
from edgefold.device_bench.runners.base import Runner
from edgefold.results import DeviceInfo

Wait = Callable[[float], object]  # seconds

STEP_S = 2.0
# What a reading may lie above the idle level: sensors tell whole degrees, and looking is work too.
IDLE_MARGIN_C = 2.0
# A temperature has settled when the medians of both halves of half a minute agree.
SETTLED_READINGS, SETTLED_WITHIN_C = 16, 0.5
# A device that stays above this is not idle: other work or its surroundings heat it, and its clock may soon go down.
MAX_IDLE_C = 60.0


class ThermalGate:
    """Waits until a device is as cool as ``options.gate_c``, or as its own idle level where that is higher.

    One for all cases on an open runner: what it learns of the idle level counts for the next case. The level is where the
    temperature stayed for half a minute without work, and no higher than `MAX_IDLE_C`; the first reading alone is none, for
    it may come right after other work. ``wait`` takes the seconds of a pause.
    """

    def __init__(self, runner: Runner, options: BenchOptions, wait: Wait | None = None) -> None:
        self._runner, self._options = runner, options
        self._pause = wait or time.sleep
        self._idle_c: float | None = None

    def cool_down(self) -> tuple[DeviceInfo, bool]:
        """Waits for ``options.gate_max_s`` at most; the device's state then, and whether it is cool.

        A device that tells no temperature is not held up.
        """
        state = self._runner.info()
        readings = [state.temperature_c]
        for _ in range(math.ceil(self._options.gate_max_s / STEP_S)):
            if self._is_cool(readings):
                break
            self._pause(STEP_S)
            state = self._runner.info()
            readings.append(state.temperature_c)
        return state, self._is_cool(readings)

    def _is_cool(self, readings: list[float | None]) -> bool:
        """Whether the last of the readings, in degrees Celsius, is low enough; learns the idle level from them."""
        now = readings[-1]
        if now is None:
            return True
        known = [value for value in readings if value is not None]
        if self._idle_c is not None:
            self._idle_c = min(self._idle_c, now)
        elif _settled(known) and now <= MAX_IDLE_C:
            self._idle_c = now
        return now <= max(self._options.gate_c, -math.inf if self._idle_c is None else self._idle_c + IDLE_MARGIN_C)


def _settled(readings: list[float]) -> bool:
    """Whether the temperature neither falls nor rises any more."""
    last = readings[-SETTLED_READINGS:]
    half = SETTLED_READINGS // 2
    return len(last) == SETTLED_READINGS and abs(median(last[:half]) - median(last[half:])) <= SETTLED_WITHIN_C
