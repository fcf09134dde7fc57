"""How the worker times a model: a warm-up that goes on until the times have settled, then steady state; of one model or of two in
turns.

A part of `worker`, with its limits: standard library only, syntax of Python 3.9. All times are ns of a monotonic clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

# Two moving averages of the samples, a fast and a slow one, agree when the times have stopped falling
# (AndroidX Microbenchmark's warm-up).
FAST, SLOW, TOLERANCE, AGREEING, RECENT = 0.1, 0.005, 0.04, 40, 5
# Where they never agree (another process keeps stepping in), it ends after this time and this many samples.
WARMUP_S, WARMUP_SAMPLES = 3.0, 60
# A turn of one of two models, once the caches have settled: at least so long and so many samples.
TURN_NS, TURN_SAMPLES = 2_000_000, 3
# A model finds the caches full of another. On a Xeon with models of 6 MB, the first run of a turn took 1.7 times as long as the
# seventh, the fourth still 1.1 times. Slow models are let off early: a few of their runs touch all that a cache can hold.
SETTLING_SAMPLES, SETTLING_NS = 6, 100_000_000


class WarmUp:
    """Says when the times have settled: `add` is true once both averages have agreed for long enough."""

    def __init__(self) -> None:
        self.fast = self.slow = 0.0
        self.agreeing = 0
        self.recent: list[int] = []

    def add(self, sample_ns: int) -> bool:
        """Takes the next sample."""
        # A sample that another process interrupted would keep the fast average away for many more: hence the median of the last
        # few, and a bound.
        self.recent = [*self.recent[1 - RECENT :], sample_ns]
        sample = float(sorted(self.recent)[len(self.recent) // 2])
        if not self.slow:
            self.fast = self.slow = sample
        sample = min(sample, 2 * self.slow)
        self.fast += FAST * (sample - self.fast)
        self.slow += SLOW * (sample - self.slow)
        self.agreeing = self.agreeing + 1 if abs(self.fast / max(self.slow, 1.0) - 1) <= TOLERANCE else 0
        return self.agreeing >= AGREEING


def timed(call: Callable[[], None]) -> int:
    """How long a call takes, in ns."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def sample(model: Any, inputs: list[Any]) -> int:
    """The time of one run."""
    # The input is bound again before each run: a runtime may plan other data into its memory.
    model.bind(inputs)
    return timed(model.invoke)


def settle(model: Any, inputs: list[Any]) -> None:
    """Runs a model that comes after another until its own data are back in the caches."""
    spent_ns = 0
    for _ in range(SETTLING_SAMPLES):
        spent_ns += sample(model, inputs)
        if spent_ns >= SETTLING_NS:
            break


def warm_up(model: Any, inputs: list[Any], limit_s: float) -> dict[str, Any]:
    """The first inference, and those until the times settle."""
    start = time.perf_counter()
    first_ns = sample(model, inputs)
    settle, converged = WarmUp(), False
    warmup: list[int] = []
    while not converged:
        warmup.append(sample(model, inputs))
        converged = settle.add(warmup[-1])
        spent = time.perf_counter() - start
        if spent >= limit_s or (spent >= WARMUP_S and len(warmup) >= WARMUP_SAMPLES):
            break
    return {"first_ns": first_ns, "warmup_ns": warmup, "converged": converged}


def bench(model: Any, inputs: list[Any], job: dict[str, Any]) -> dict[str, Any]:
    """First inference, warm-up, then steady state; every sample is kept."""
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    result = warm_up(model, inputs, job["warmup_max_s"])
    samples: list[int] = []
    total_ns = 0
    while len(samples) < job["min_samples"] or total_ns < job["min_time_s"] * 1e9:
        samples.append(sample(model, inputs))
        total_ns += samples[-1]
        if time.perf_counter() - start >= job["max_s"]:
            break
    gc.enable()
    return dict(result, samples_ns=samples)


def pair(models: list[Any], inputs: list[list[Any]], jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for two models, whose steady state is sampled in turns A B B A of some milliseconds, each once it has settled.

    Whatever else the machine does then meets both alike. ``turns`` has the number of samples of each turn.
    """
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    results = [warm_up(models[side], inputs[side], jobs[side]["warmup_max_s"]) for side in (0, 1)]
    samples: list[list[int]] = [[], []]
    turns: list[list[int]] = [[], []]
    late = False
    while not late and any(
        len(samples[side]) < jobs[side]["min_samples"] or sum(samples[side]) < jobs[side]["min_time_s"] * 1e9 for side in (0, 1)
    ):
        for side in (0, 1, 1, 0):
            settle(models[side], inputs[side])
            count, spent_ns = 0, 0
            while count < TURN_SAMPLES or spent_ns < TURN_NS:
                samples[side].append(sample(models[side], inputs[side]))
                spent_ns += samples[side][-1]
                count += 1
            turns[side].append(count)
        late = time.perf_counter() - start >= sum(job["max_s"] for job in jobs)
    gc.enable()
    return [dict(results[side], samples_ns=samples[side], turns=turns[side]) for side in (0, 1)]
