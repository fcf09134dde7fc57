"""What INT8 costs the trained networks, calibrated and trained: top-1 on the 10,000 test images of Fashion-MNIST.

Every built-in checkpoint is written in fp32 and INT8 for the three runtimes as ``edgefold ship`` does, and each file runs all
test images in its runtime. Then the network is trained on as INT8, with the defaults of ``edgefold train --qat``, and its
integer files run them again. A loss is in points (hundredths) of the float network in torch; a negative loss is a gain.

    python benchmarks/trained_int8.py [--resume]

needs Debian's ``dataset-fashion-mnist``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from record import earlier, write_result

from edgefold.artifact import Format, Precision
from edgefold.models.data import FASHION_MNIST_FOLDER, load_training_data
from edgefold.models.inputs import read_evaluation
from edgefold.models.recipe import checkpoint_names
from edgefold.network import Evaluation, Network, Quiet, ShipOptions
from edgefold.pipeline import fold
from edgefold.qat_training import QatOptions, train_qat
from edgefold.shipping import named_network
from edgefold.variants import emit_all, quantize_all, verify_all

NAME: Final = "trained_int8"
OPTIONS: Final = ShipOptions(timing=False, explain=False)  # time has no part in this
TRAINING: Final = QatOptions()


def top1(network: Network, precisions: Iterable[Precision]) -> dict[str, dict[str, float]]:
    """Top-1 shares by precision and format, each of a file in its own runtime."""
    options = replace(OPTIONS, precisions=tuple(precisions))
    folded = fold(network.module, network.example_inputs)
    quantized, _ = quantize_all(network, folded, options, Quiet())
    shares: dict[str, dict[str, float]] = {precision.value: {} for precision in options.precisions}
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        variants = emit_all(folded, quantized, options, Path(folder), Quiet())
        for variant in verify_all(variants, network, folded, quantized, options, Quiet())[0]:
            if variant.accuracy is None:
                raise SystemExit(f"{network.name}, {variant.format} {variant.precision}: {variant.failure}")
            shares[variant.precision.value][variant.format.value] = variant.accuracy.value
    return shares


def measure(name: str) -> dict[str, Any]:
    """The figures of one checkpoint."""
    network = named_network(name)
    evaluation = Evaluation(*read_evaluation(str(FASHION_MNIST_FOLDER), network.preprocessing, network.labels))
    network = replace(network, evaluation=evaluation)
    calibrated = top1(network, OPTIONS.precisions)
    result, weights = train_qat(network, load_training_data(), TRAINING, progress=print)
    trained = top1(replace(network, trained=weights), [Precision.INT8])
    reference = result.float_top1
    shares = {"fp32": calibrated["fp32"], "int8": calibrated["int8"], "int8_qat": trained["int8"]}
    return {
        "network": name,
        "test_images": result.test_images,
        "float_top1": reference,
        "top1": shares,
        "lost_points": {
            kind: {form: round(100 * (reference - share), 2) for form, share in of.items()} for kind, of in shares.items()
        },
        "training_s": result.time_s,
    }


def summary(networks: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The largest loss of each kind in each runtime, in points."""
    return {
        kind: {form.value: max(network["lost_points"][kind][form.value] for network in networks) for form in Format}
        for kind in ("fp32", "int8", "int8_qat")
    }


def main() -> None:
    """Measures the checkpoints that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--resume", action="store_true", help="keep the networks that the result has")
    networks: list[dict[str, Any]] = earlier(NAME).get("networks", []) if parser.parse_args().resume else []
    torch.set_num_threads(1)
    done = {network["network"] for network in networks}
    for name in checkpoint_names():
        if name in done:
            continue
        networks.append(measure(name))
        print(json.dumps(networks[-1]), flush=True)
        figures = {"training": asdict(TRAINING), "largest_loss_points": summary(networks), "networks": networks}
        write_result(NAME, figures, command="python benchmarks/trained_int8.py")


if __name__ == "__main__":
    main()
