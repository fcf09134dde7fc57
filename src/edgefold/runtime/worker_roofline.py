"""How fast this machine can compute and move data at best: the two limits of the roofline model.

A part of `worker`, with its limits: standard library and numpy only, syntax of Python 3.9. The first is that of a float32 matrix
product as numpy's BLAS reaches it, two operations a multiply-accumulate; the second counts bytes read and written by a copy
between arrays that no cache holds. BLAS takes its number of threads when it is loaded, so a process of its own measures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":  # an isolated process finds numpy where the one that started it does
    sys.path.extend(json.loads(sys.argv[2]))

import numpy as np

SIZE, COPY_BYTES = 512, 64 << 20
LEAST_S, LEAST_TIMES = 0.4, 5


def best_s(call: Callable[[], Any]) -> float:
    """The shortest time of a call, of as many as fit."""
    times: list[float] = []
    call()
    while sum(times) < LEAST_S or len(times) < LEAST_TIMES:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def limits(threads: int) -> dict[str, float]:
    """Operations and bytes a second with so many threads."""
    a = np.random.default_rng(0).random((SIZE, SIZE), np.float32)
    product = np.empty_like(a)
    pairs = [(np.ones(COPY_BYTES // threads, np.uint8), np.empty(COPY_BYTES // threads, np.uint8)) for _ in range(threads)]

    def copy() -> None:
        workers = [threading.Thread(target=np.copyto, args=(target, source)) for source, target in pairs[1:]]
        for each in workers:
            each.start()
        np.copyto(pairs[0][1], pairs[0][0])
        for each in workers:
            each.join()

    moved = 2 * sum(source.nbytes for source, _ in pairs)
    return {
        "operations_per_s": 2 * SIZE**3 / best_s(lambda: np.matmul(a, a, out=product)),
        "bytes_per_s": moved / best_s(copy),
    }


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own."""
    threads = str(int(job.get("threads", 1)))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, threads)}
    argv = [sys.executable, "-I", __file__, threads, json.dumps(sys.path)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"mode": "roofline", "runtime": "numpy " + np.__version__, **found}


if __name__ == "__main__":
    print(json.dumps(limits(int(sys.argv[1]))))
