"""What channel pruning does to files: size, and time in turns with the whole network.

Two built-in networks are pruned to half their multiply-accumulates, without fine-tuning, since weights have no part in size and
time. Whole and pruned network are exported for the three runtimes in fp32 and INT8 as ``edgefold export --no-timing`` does, and
the two files of a cell run against each other in one process (one thread, turns A B B A, see `edgefold.device_bench.race`). The
pruned file may not be larger than the whole one (``--max-size``): of fewer channels a dense form, which is larger, can be the
fastest. A ratio is pruned over whole, with its 95 % interval; below 1 the pruned file is smaller or faster.

    python benchmarks/pruning.py [--cores 1] [--resume]

needs the extra ``prune``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from record import earlier, write_result
from torch import nn

import edgefold
from edgefold.artifact import Artifact, Format, Precision
from edgefold.batch import as_tensors
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import RaceOptions, race
from edgefold.device_bench.runners import open_runner
from edgefold.models.prune import macs_target, prune_channels
from edgefold.network import Network
from edgefold.shipping import named_network

NAME: Final = "pruning"
NETWORKS: Final = ("hetnet-fmnist", "mobilenet_v1-fmnist")
PRECISIONS: Final = (Precision.FP32, Precision.INT8)
SHARE: Final = 0.5
CALIBRATED: Final = 64


def export(
    network: Network, module: nn.Module, form: Format, precision: Precision, out: Path, max_size: int | None = None
) -> Artifact:
    """One file of the network with these layers, of at most ``max_size`` bytes."""
    calibration = network.calibration
    assert isinstance(calibration, torch.Tensor), "built-in checkpoints bring images"
    return edgefold.export_model(
        module,
        network.example_inputs,
        format=form,
        precision=precision,
        calibration=calibration[:CALIBRATED] if precision is Precision.INT8 else None,
        timing=False,
        max_size=max_size,
        out=out,
    )


def cell(network: Network, modules: tuple[nn.Module, nn.Module], form: Format, precision: Precision, cores: str | None) -> Any:
    """Size and time of the pruned file beside the whole one."""
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder, open_runner("host") as host:
        whole = export(network, modules[1], form, precision, Path(folder) / f"whole{form.suffix}")
        pruned = export(network, modules[0], form, precision, Path(folder) / f"pruned{form.suffix}", whole.size_bytes)
        cases = [make_case(file, seed=0) for file in (pruned, whole)]
        turns = race(cases, host, Launchers(host), RaceOptions(processes=4, cores=cores))
        return {
            "format": form.value,
            "precision": precision.value,
            "size_bytes": pruned.size_bytes,
            "whole_size_bytes": whole.size_bytes,
            "size_ratio": round(pruned.size_bytes / whole.size_bytes, 4),
            "median_ns": round(turns.median_ns(0)),
            "whole_median_ns": round(turns.median_ns(1)),
            "time_ratio": {key: round(value, 4) for key, value in asdict(turns.ratio(0, 1)).items()},
            "blocks": turns.blocks,
            "runtime": turns.runtime,
        }


def measure(name: str, cores: str | None) -> dict[str, Any]:
    """All cells of one network."""
    network = named_network(name)
    inputs = as_tensors(network.example_inputs)
    pruned = prune_channels(network.module, inputs, macs_target(network.module, inputs, SHARE))
    report = pruned.report
    return {
        "network": name,
        "macs": report.macs,
        "whole_macs": report.macs_before,
        "parameters": report.parameters,
        "whole_parameters": report.parameters_before,
        "cells": [
            cell(network, (pruned.module, network.module), form, precision, cores) for form in Format for precision in PRECISIONS
        ],
    }


def main() -> None:
    """Measures the networks that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cores", help="pin the races to these cores, e.g. 1")
    parser.add_argument("--resume", action="store_true", help="keep the networks that the result has")
    chosen = parser.parse_args()
    networks: list[dict[str, Any]] = earlier(NAME).get("networks", []) if chosen.resume else []
    torch.set_num_threads(1)
    done = {network["network"] for network in networks}
    for name in NETWORKS:
        if name in done:
            continue
        networks.append(measure(name, chosen.cores))
        print(json.dumps(networks[-1]), flush=True)
        figures = {"share_of_macs": SHARE, "threads": 1, "cores": chosen.cores, "networks": networks}
        write_result(NAME, figures, command=f"python benchmarks/pruning.py{f' --cores {chosen.cores}' if chosen.cores else ''}")


if __name__ == "__main__":
    main()
