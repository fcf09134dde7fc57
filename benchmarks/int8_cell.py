"""One row of `int8_matrix`: one network in some formats, folded and calibrated once, in a process of its own.

    python benchmarks/int8_cell.py MODEL FOLDER FORMAT [FORMAT ...]

prints a JSON line with the figures or the failure of each format. The files go to FOLDER. All files of a format are loaded into
one process and run in turn, on one thread; a sample is the CPU time of one call, which does not count what other processes take,
and the lowest of all rounds counts.
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
from edgefold.device_bench.closing import Request, emit_fastest
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.emitters.quiet import converter
from edgefold.export.inspect import inspect
from edgefold.export.program import Program
from edgefold.pipeline import fold, quantize_model
from edgefold.runtime.worker import MODELS

ROUNDS: Final = 60
ROUNDS_S: Final = 12  # after which slow networks get no more rounds than MIN_ROUNDS
MIN_ROUNDS: Final = 8
ROUND_NS: Final = 4_000_000  # for each file
RUNS: Final = 8  # at least, of which the first six or so find the caches full of another file


def row(name: str, folder: Path, formats: list[Format]) -> dict[str, dict[str, Any]]:
    """All figures of each format, or ``failure``."""
    case = make_case(name)
    example = case.calibration[0]
    start = time.monotonic()
    folded = fold(case.module, example)
    fold_s = time.monotonic() - start
    quantized = quantize_model(folded, example, calibration=case.calibration)
    common = {
        "weights": case.weights,
        "input_shape": list(example.shape),
        "observer": quantized.table.observer,
        "fold_s": round(fold_s, 1),
        "quantize_s": round(time.monotonic() - start - fold_s, 1),
    }
    programs = {Precision.FP32: folded.program, Precision.INT8: quantized.program}
    cells: dict[str, dict[str, Any]] = {}
    for format in formats:
        try:
            cells[format.value] = common | cell(case, programs, format, folder)
        except Exception as error:  # one format must not cost the others
            cells[format.value] = common | {"failure": one_line(error)}
    return cells


def cell(case: Case, programs: dict[Precision, Program], format: Format, folder: Path) -> dict[str, Any]:
    """The files of one format, ours as ``edgefold export --device host`` writes them and its runtime's own tool's."""
    files: dict[str, Path] = {}
    failures: dict[str, str] = {}
    for precision, program in programs.items():
        out = folder / f"{precision.value}{format.suffix}"
        try:
            emit_fastest(program, Request(format, precision, native=True), EmitOptions(force=True), out, lambda: None)
            files[precision.value] = out
        except Exception as error:  # a file that cannot be written is a result
            failures[precision.value] = one_line(error)
    for recipe in RECIPES[format] if "fp32" in files else ():
        out = folder / f"native-{recipe}{format.suffix}"
        try:
            with converter("native tool", format):
                quantize_native(format, recipe, files["fp32"], programs[Precision.FP32].graph, case.calibration, out)
            files[f"native-{recipe}"] = out
        except Exception as error:  # whatever another tool raises is its result
            failures[f"native-{recipe}"] = one_line(error)
    return measure(case, format, files, failures)


def one_line(error: Exception) -> str:
    """What an error says first."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def measure(case: Case, format: Format, files: dict[str, Path], failures: dict[str, str]) -> dict[str, Any]:
    """Times, accuracy and what the runtime makes of each file; files that it refuses join the failures."""
    with torch.no_grad():
        expected = [case.module(image).numpy() for image in case.judged]
    models: dict[str, Any] = {}
    sqnr: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, path in files.items():
        model = MODELS[format.value]()
        try:
            model.load(str(path), 1)
            outputs = []
            for image in case.judged:
                outputs.append(run_float(model, image.numpy()))
        except Exception as error:  # whatever a runtime throws at a file is its answer
            failures[key] = one_line(error)
            continue
        sqnr[key] = round(sqnr_db(expected, outputs), 2)
        errors[key] = range_error(expected, outputs)
        models[key] = model
    times = lowest_ns(models)
    inspected = {key: inspect(files[key]) for key in models}
    return {
        "latency_us": {key: round(ns / 1000, 2) for key, ns in times.items()},
        "sqnr_db": sqnr,
        "largest_error_of_range": errors,
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
    begin = time.monotonic()
    for done in range(ROUNDS):
        if done >= MIN_ROUNDS and time.monotonic() - begin > ROUNDS_S:
            break
        for key, model in models.items():
            until, runs, end = time.process_time_ns() + ROUND_NS, 0, 0
            while runs < RUNS or end < until:
                start = time.process_time_ns()
                model.invoke()
                end = time.process_time_ns()
                best[key] = min(best[key], end - start)
                runs += 1
    return best


def sqnr_db(expected: list[Any], outputs: list[Any]) -> float:
    """10 log10(sum y^2 / sum (y - q)^2) of the float outputs y and the outputs q; at most 200."""
    signal = sum(float(np.square(y, dtype=np.float64).sum()) for y in expected)
    noise = sum(float(np.square(y - q).sum()) for y, q in zip(expected, outputs, strict=True))
    return float(10 * np.log10(signal / max(noise, signal * 1e-20)))


def range_error(expected: list[Any], outputs: list[Any]) -> float:
    """The largest difference over the range of the expected outputs."""
    largest = max(float(np.abs(y - q).max()) for y, q in zip(expected, outputs, strict=True))
    return float(f"{largest / (max(y.max() for y in expected) - min(y.min() for y in expected)):.3g}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps(row(sys.argv[1], place, [Format(name) for name in sys.argv[3:]])) + "\n")
