"""How far the INT8 files of one calibration are apart in the three runtimes, where the formats agree on each layer's form.

    python benchmarks/agreement.py [--models NAME ...] [--resume]

The networks of `int8_matrix` are written as ``edgefold ship --agree`` does, and run on the images that they are judged on. For
each pair of runtimes: the largest difference of an output in quantization steps, and the share of outputs that differ at all.
The class that a runtime names is compared with that of ONNX Runtime where ONNX Runtime's best two outputs are more than two steps
apart; images where they are nearer are counted. Nothing is timed. The result is written after every network.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from int8_matrix import MODELS
from int8_models import make_case
from numpy.typing import NDArray
from record import earlier, write_result

from edgefold.artifact import Format, Precision
from edgefold.device_bench.closing import Request, emit_fastest
from edgefold.errors import EdgefoldError
from edgefold.export.emitters.base import EmitOptions
from edgefold.export.lower.agree import agree
from edgefold.export.verify import agreement, output_steps
from edgefold.pipeline import fold, quantize_model
from edgefold.runtime import run

NAME: Final = "agreement"
NEAR_STEPS: Final = 2  # best two outputs this near may change places


def measure(name: str) -> dict[str, Any]:
    """The figures of one network."""
    case = make_case(name)
    example = case.calibration[0]
    quantized = quantize_model(fold(case.module, example), example, calibration=case.calibration)
    choices = agree(quantized.program, formats=tuple(Format), precision=Precision.INT8)
    images = [torch.cat(case.judged).numpy()]
    outputs: dict[Format, NDArray[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        for format in Format:
            request = Request(format, Precision.INT8, choices=choices[format])
            out = Path(folder) / f"int8{format.suffix}"
            written = emit_fastest(quantized.program, request, EmitOptions(), out, lambda: None)
            outputs[format] = run(written.artifact, images, batch=1)[0]
    (step,) = output_steps(quantized)
    assert not isinstance(step, np.ndarray)  # of classes that nothing is joined with
    pairs = [
        asdict(agreement(first.value, second.value, (outputs[first],), (outputs[second],), (step,)))
        for first, second in combinations(Format, 2)
    ]
    return {"model": name, "images": len(images[0]), "output_step": step, "pairs": pairs, **classes(outputs, step)}


def classes(outputs: dict[Format, NDArray[Any]], step: float | None) -> dict[str, Any]:
    """How many images have a clear class, and in how many of those another runtime than ONNX Runtime names another one."""
    first = outputs[Format.ONNX]
    best_two = np.sort(first, axis=1)[:, -2:]
    clear = (best_two[:, 1] - best_two[:, 0]) > NEAR_STEPS * (step or 0.0)
    named = {format.value: array.argmax(axis=1) for format, array in outputs.items()}
    other = np.zeros(len(first), dtype=bool)
    for array in named.values():
        other |= array != named[Format.ONNX.value]
    return {
        "images_near": int((~clear).sum()),
        "images_near_with_other_class": int((other & ~clear).sum()),
        "images_clear_with_other_class": int((other & clear).sum()),
    }


def summary(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the networks amount to."""
    found = [network for network in networks if "failure" not in network]
    steps: dict[str, list[float]] = {}
    for network in found:
        for pair in network["pairs"]:
            steps.setdefault(f"{pair['first']} and {pair['second']}", []).append(pair["max_steps"])
    return {
        "networks": len(networks),
        "failed": len(networks) - len(found),
        "bit_identical": {pair: sum(step == 0 for step in some) for pair, some in steps.items()},
        "within_2_steps": {pair: sum(step <= 2 for step in some) for pair, some in steps.items()},
        "largest_steps": {pair: max(some) for pair, some in steps.items()},
        **{
            key: sum(network[key] for network in found)
            for key in ("images", "images_near", "images_near_with_other_class", "images_clear_with_other_class")
        },
    }


def main() -> None:
    """Measures the networks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="NAME", help="built-in, timm:NAME or torchvision:NAME"
    )
    parser.add_argument("--resume", action="store_true", help="keep the networks that are there, the failed ones excepted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks: list[dict[str, Any]] = earlier(NAME).get("networks", []) if arguments.resume else []
    networks = [network for network in networks if "failure" not in network]
    done = {network["model"] for network in networks}
    for name in arguments.models:
        if name in done:
            continue
        try:
            networks.append(measure(name))
        except EdgefoldError as error:  # a result, too
            networks.append({"model": name, "failure": str(error)})
        print(networks[-1], flush=True)
        write_result(NAME, {"summary": summary(networks), "networks": networks}, command="python benchmarks/agreement.py")


if __name__ == "__main__":
    main()
