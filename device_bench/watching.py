"""A device's state while it works: between two processes its cores rest, and their clocks have gone down."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

from edgefold.device_bench.runners.base import Runner
from edgefold.device_bench.runners.client import stop_clients
from edgefold.results import DeviceInfo

STEP_S = 0.25

T = TypeVar("T")


def while_it_works(runner: Runner, work: Callable[[], T]) -> tuple[T, DeviceInfo]:
    """What the work gave, and the device as it was last seen meanwhile, with the highest frequency that each core had.

    Looking is work on the device too: what is timed should not be watched.

    Raises:
        DeviceError: the device cannot be reached any more; or what the work raises.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(work)
        try:
            states = [runner.info()]
            while not wait([running], timeout=STEP_S).done:
                states.append(runner.info())
        except KeyboardInterrupt:
            stop_clients()  # or the pool would wait for the work's end
            raise
        found = running.result()
    cores = [max(seen, key=lambda core: core.current_khz or 0) for seen in zip(*(state.cores for state in states), strict=False)]
    return found, replace(states[-1], cores=tuple(cores))
