"""One cell of `int8_matrix`: one network in one format, in a process of its own.

    python benchmarks/int8_cell.py MODEL FORMAT FOLDER

prints one JSON line. The files go to FOLDER. All files of the cell are loaded into one process and run in turn, on one thread; a
sample is the CPU time of one call, which does not count what other processes take, and the lowest of all rounds counts.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from int8_models import Case, make_case
from int8_native import RECIPES, quantize_native

from edgefold.artifact import Format, Precision
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.emitters.quiet import converter
from edgefold.export.inspect import inspect
from edgefold.export.lower.lower import lower
from edgefold.pipeline import fold, quantize_model
from edgefold.runtime.worker import MODELS

ROUNDS: Final = 60
ROUND_NS: Final = 4_000_000  # for each file


def cell(name: str, format: Format, folder: Path) -> dict[str, Any]:
    """All figures of one cell."""
    case = make_case(name)
    example = case.calibration[0]
    start = time.monotonic()
    folded = fold(case.module, example)
    program = quantize_model(folded, example, calibration=case.calibration)
    result: dict[str, Any] = {"weights": case.weights, "input_shape": list(example.shape), "observer": program.table.observer}
    result["quantize_s"] = round(time.monotonic() - start, 1)
    emitter, options = get_emitter(format), EmitOptions(force=True)
    files = {key: folder / f"{key}{format.suffix}" for key in ("fp32", "int8")}
    for key, what, precision in (("fp32", folded.program, Precision.FP32), ("int8", program.program, Precision.INT8)):
        emitter.emit(lower(what, format=format, precision=precision), options, files[key])
    for recipe in RECIPES[format]:
        out = folder / f"native-{recipe}{format.suffix}"
        try:
            with converter("native tool", format):
                quantize_native(format, recipe, files["fp32"], folded.program.graph, case.calibration, out)
            files[f"native-{recipe}"] = out
        except Exception as error:  # whatever another tool raises is its result
            result.setdefault("native_failures", {})[recipe] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return result | measure(case, format, files)


def measure(case: Case, format: Format, files: dict[str, Path]) -> dict[str, Any]:
    """Times, accuracy and what the runtime makes of each file."""
    with torch.no_grad():
        expected = [case.module(image).numpy() for image in case.judged]
    models: dict[str, Any] = {}
    sqnr: dict[str, float] = {}
    failures: dict[str, str] = {}
    for key, path in files.items():
        model = MODELS[format.value]()
        try:
            model.load(str(path), 1)
            outputs = []
            for image in case.judged:
                outputs.append(run_float(model, image.numpy()))
        except Exception as error:  # whatever a runtime throws at a file is its answer
            failures[key] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            continue
        sqnr[key] = round(sqnr_db(expected, outputs), 2)
        models[key] = model
    times = lowest_ns(models)
    inspected = {key: inspect(files[key]) for key in models}
    return {
        "latency_us": {key: round(ns / 1000, 2) for key, ns in times.items()},
        "sqnr_db": sqnr,
        "failures": failures,
        "inspection": {
            key: {
                "integer_mac_share": round(found.integer_mac_share or 0.0, 4),
                "float_ops": found.float_ops,
                "conversions_inside": found.conversions_inside,
                "partitions": found.partitions,
                "delegated_share": None if found.accelerated_share is None else round(found.accelerated_share, 4),
                "fallbacks": sorted({op.rpartition(" (")[2].rstrip(")") for op in found.fallback_modules}),
                "size_bytes": found.size_bytes,
            }
            for key, found in inspected.items()
        },
    }


def run_float(model: Any, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output for a float image, also of a file whose ends are integers (LiteRT's own tool makes such)."""
    (inputs,), outputs = model.specs()
    if inputs["dtype"] != "float32":
        limits = np.iinfo(inputs["dtype"])
        image = np.clip(np.rint(image / inputs["scale"]) + inputs["zero_point"], limits.min, limits.max).astype(inputs["dtype"])
    model.bind([image])
    model.invoke()
    result = np.array(model.outputs()[0], dtype=np.float64)
    if outputs[0]["dtype"] != "float32":
        result = (result - outputs[0]["zero_point"]) * outputs[0]["scale"]
    return result


def lowest_ns(models: dict[str, Any]) -> dict[str, float]:
    """The lowest CPU time of a call of each model, over rounds in which every model has its turn."""
    best = dict.fromkeys(models, float("inf"))
    gc.collect()
    for _ in range(ROUNDS):
        for key, model in models.items():
            until = time.process_time_ns() + ROUND_NS
            while True:
                start = time.process_time_ns()
                model.invoke()
                end = time.process_time_ns()
                best[key] = min(best[key], end - start)
                if end > until:
                    break
    return best


def sqnr_db(expected: list[Any], outputs: list[Any]) -> float:
    """10 log10(sum y^2 / sum (y - q)^2) of the float outputs y and the outputs q; at most 200."""
    signal = sum(float(np.square(y, dtype=np.float64).sum()) for y in expected)
    noise = sum(float(np.square(y - q).sum()) for y, q in zip(expected, outputs, strict=True))
    return float(10 * np.log10(signal / max(noise, signal * 1e-20)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[3])
    place.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps(cell(sys.argv[1], Format(sys.argv[2]), place)) + "\n")
