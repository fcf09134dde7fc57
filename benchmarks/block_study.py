"""Every block in the same small network: accuracy, size, multiply-adds, INT8, latency in three runtimes, ARM instructions.

The networks are those of `block_nets`, trained by one recipe (`OPTIONS`) on the 60,000 training images of Fashion-MNIST and
judged on its 10,000 test images. For each network and training seed: top-1 of the float network, and of its INT8 files in ONNX
Runtime, LiteRT and ExecuTorch. For the first seed also fp32 and INT8 latency, file sizes, and the instructions of INT8 on a
Cortex-A76.

- multiply-adds (the FLOPs of the papers) and parameters are effective ones: the weights that a block keeps at zero do not count;
- latency is that of single images on one thread. All files of a format and precision are loaded into one process and take
  turns A B C C B A (`edgefold.device_bench.race`), so that the ratios to the standard convolution hold on a busy machine too;
- files are what ``edgefold export --no-timing`` writes, each layer in the form that the cost tables call the fastest;
- instructions are counted under emulation and are no times. They need qemu-user and the native runner, and are left out without.

The result is written after every network; what is there is not measured again with ``--resume``. Weights and files are kept in
--cache. A row of an earlier run that lacks the accuracy of a format gets it from the cached weights; where they are gone it stays
null, with a remark, as nothing is trained for it again.

    python benchmarks/block_study.py [--resume] [--max-minutes 60] [--nets hetconv:4 ...] [--seeds 3] [--again latency]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import block_nets
import block_picture
import numpy as np
import torch
from record import earlier, write_result
from torch import nn

import edgefold
from edgefold.artifact import Format, Precision
from edgefold.device_bench import count_instructions
from edgefold.device_bench.cases import make_case
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import RaceOptions, race
from edgefold.device_bench.runners import open_runner
from edgefold.errors import UsageError
from edgefold.models.count import count_cost
from edgefold.models.data import ImageSet, TrainingData, load_training_data
from edgefold.models.evaluate import top1
from edgefold.models.packing import load_weights, save_weights
from edgefold.models.train import train
from edgefold.models.train_options import TrainOptions

NAME: Final = "block_study"
OPTIONS: Final = TrainOptions(epochs=2, batch_size=128, learning_rate=0.1, warmup_epochs=0.2, ema_decay=0.99)
CALIBRATION: Final = 64  # images
PRECISIONS: Final = (Precision.FP32, Precision.INT8)
RACE: Final = RaceOptions(processes=4, blocks=6, max_s=120)
BASELINE: Final = "standard"
CPU: Final = "cortex-a76"
COUNTED: Final = tuple((form, Precision.INT8) for form in Format)
FULL_SEED: Final = 0  # whose files are measured

Cells = dict[str, dict[str, Any]]


class Maker:
    """Trained networks and their files, each made once and kept in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.data: TrainingData = load_training_data()

    def network(self, name: str, seed: int) -> nn.Module:
        """The network in eval mode with its trained weights; see `train_cpu_s`."""
        path = self._folder / f"{name}-{seed}.safetensors"
        torch.manual_seed(seed)
        module = block_nets.make_network(name)
        if path.exists():
            load_weights(module, path)
            return module.eval()
        start = time.process_time()
        quick = replace(self.data, test=_first(self.data.test, 200))  # of the metrics of each epoch only
        train(module, quick, replace(OPTIONS, seed=seed), progress=False)
        path.with_suffix(".json").write_text(json.dumps(round(time.process_time() - start, 1)), encoding="utf-8")
        save_weights(module, path)
        return module

    def has_weights(self, name: str, seed: int) -> bool:
        """Whether the network was trained before, and is still here."""
        return (self._folder / f"{name}-{seed}.safetensors").exists()

    def train_cpu_s(self, name: str, seed: int) -> float:
        """What the training of a network took."""
        return float(json.loads((self._folder / f"{name}-{seed}.json").read_text(encoding="utf-8")))

    def files(self, name: str, seed: int, formats: Sequence[Format], precisions: Sequence[Precision]) -> dict[str, Path]:
        """The exported files by ``FORMAT-PRECISION``."""
        wanted = {
            f"{form}-{precision}": (form, precision, self._folder / f"{name}-{seed}-{precision}{form.suffix}")
            for form in formats
            for precision in precisions
        }
        if not all(path.exists() for *_, path in wanted.values()):
            example = self.data.train.normalised(0, 1)
            folded = edgefold.fold(self.network(name, seed), example)
            images = self.data.train.normalised(0, CALIBRATION).unsqueeze(1)
            sources: dict[Precision, Any] = {Precision.FP32: folded}
            if Precision.INT8 in precisions:
                sources[Precision.INT8] = edgefold.quantize_model(folded, example, calibration=list(images))
            for form, precision, path in wanted.values():
                if not path.exists():
                    asked = precision if precision is Precision.FP32 else None  # a quantized program has its own
                    edgefold.export_model(sources[precision], example, format=form, precision=asked, timing=False, out=path)
        return {key: path for key, (*_, path) in wanted.items()}


def _first(images: ImageSet, count: int) -> ImageSet:
    return replace(images, images=images.images[:count], labels=images.labels[:count])


def file_top1(path: Path, test: ImageSet) -> float:
    """The share of the test images that a file gets right in its runtime."""
    (logits,) = edgefold.run(path, test.normalised(0).numpy())
    return float(np.mean(logits.argmax(1) == test.labels.numpy()))


def study(name: str, seed: int, maker: Maker) -> dict[str, Any]:
    """Trains one network and judges it."""
    module = maker.network(name, seed)
    start = time.process_time()
    files = maker.files(name, seed, list(Format), PRECISIONS if seed == FULL_SEED else [Precision.INT8])
    return {
        "seed": seed,
        "fp32_top1": round(top1(module, maker.data.test), 6),
        "int8_top1": {form.value: round(file_top1(files[f"{form}-int8"], maker.data.test), 6) for form in Format},
        "train_cpu_s": maker.train_cpu_s(name, seed),
        "export_cpu_s": round(time.process_time() - start, 1),
    }


def lacks(row: dict[str, Any]) -> list[Format]:
    """The formats whose INT8 accuracy a row of an earlier run has not."""
    return [form for form in Format if row["int8_top1"].get(form.value) is None]


def complete(name: str, row: dict[str, Any], maker: Maker) -> None:
    """Adds the INT8 accuracies that a row lacks, from the weights that it was measured with; null and a remark without them."""
    formats = lacks(row)
    if not maker.has_weights(name, row["seed"]):
        row["int8_top1"] |= dict.fromkeys(form.value for form in formats)
        row["remark"] = f"no INT8 accuracy in {', '.join(form.value for form in formats)}: the weights of the run are gone"
        return
    row.pop("remark", None)
    files = maker.files(name, row["seed"], formats, [Precision.INT8])
    for form in formats:
        row["int8_top1"][form.value] = round(file_top1(files[f"{form}-int8"], maker.data.test), 6)


def fixed_figures(name: str) -> dict[str, Any]:
    """What training does not change."""
    cost = count_cost(block_nets.make_network(name), (torch.zeros(1, 1, 28, 28),))
    return {**block_nets.setting(name), "macs": cost.macs, "parameters": cost.parameters, "seeds": []}


def measure_latency(cells: Cells, maker: Maker) -> None:
    """Adds the latencies of the first seed's files to the cells, and their ratios to the standard convolution's."""
    names = list(cells)
    for cell in cells.values():
        cell["latency"] = {}
    files = {name: maker.files(name, FULL_SEED, list(Format), PRECISIONS) for name in names}
    with open_runner("host") as host:
        launchers = Launchers(host)
        for key in files[names[0]]:
            cases = [make_case(files[name][key], seed=0) for name in names]
            found = race(cases, host, launchers, RACE)
            baseline = names.index(BASELINE)
            for place, name in enumerate(names):
                cells[name]["latency"][key] = {
                    "median_ns": round(found.median_ns(place)),
                    "lowest_ns": round(found.lowest_ns(place)),
                    "over_standard": asdict(found.ratio(place, baseline)) if place != baseline else None,
                    "runtime": found.runtime,
                    "blocks": found.blocks,
                    "size_bytes": cases[place].path.stat().st_size,
                }


def count(name: str, maker: Maker) -> dict[str, Any]:
    """Instructions of one inference on the emulated core, by ``FORMAT-PRECISION``."""
    files = maker.files(name, FULL_SEED, list(Format), PRECISIONS)
    counts = {}
    for form, precision in COUNTED:
        found = count_instructions(files[f"{form}-{precision}"], CPU)
        counts[f"{form}-{precision}"] = {
            "instructions": found.instructions,
            "spread_share": found.spread,
            "runtime": found.runtime,
            "codes": [code.value for code in found.codes],
        }
    return counts


def with_means(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell with mean and standard deviation over its seeds; INT8 for each format."""
    int8 = {form.value: _mean([one["int8_top1"].get(form.value) for one in cell["seeds"]]) for form in Format}
    return {**cell, "fp32_top1": _mean([one["fp32_top1"] for one in cell["seeds"]]), "int8_top1": int8}


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    """Over the seeds that have the value, and how many they are."""
    known = [value for value in values if value is not None]
    return {
        "mean": round(statistics.mean(known), 6) if known else None,
        "stdev": round(statistics.stdev(known), 6) if len(known) > 1 else None,
        "seeds": len(known),
    }


def by_name(record: dict[str, Any]) -> Cells:
    """The cells of an earlier run."""
    return {cell.pop("name"): cell for cell in record.get("networks", [])}


def write(cells: Cells) -> Path:
    """The result, and its picture once there are latencies."""
    rows = [{"name": name, **with_means(cells[name])} for name in block_nets.NAMES if name in cells and cells[name]["seeds"]]
    figures = {
        "training": asdict(OPTIONS),
        "training_images": 60000,
        "test_images": 10000,
        "calibration_images": CALIBRATION,
        "cpu": CPU,
        "train_cpu_s": round(sum(one["train_cpu_s"] for row in rows for one in row["seeds"]), 1),
        "pareto": block_picture.fronts(rows),
        "networks": rows,
    }
    path = write_result(NAME, figures, command="python benchmarks/block_study.py")
    if all("latency" in row for row in rows):
        block_picture.draw(rows, path.with_suffix(".svg"))
    return path


def main() -> None:
    """Studies what is missing, stage by stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=block_nets.NAMES, default=list(block_nets.NAMES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds (default: 3)")
    parser.add_argument("--resume", action="store_true", help="keep what the result holds, and add what is missing")
    parser.add_argument("--max-minutes", type=float, default=600, help="begin nothing new after this time (default: 600)")
    parser.add_argument("--again", choices=("latency", "instructions"), help="with --resume: measure this anew")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache" / NAME)
    options = parser.parse_args()
    if BASELINE not in options.nets:
        parser.error(f"latency is told against '{BASELINE}'; name it too")
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.max_minutes
    cells = by_name(earlier(NAME)) if options.resume else {}
    for cell in cells.values():
        cell.pop(options.again, None)
    maker = Maker(options.cache)

    def check_time() -> None:
        if time.monotonic() > end:
            sys.exit("not finished; call this again with --resume")

    for seed in range(options.seeds):
        for name in options.nets:
            cell = cells.setdefault(name, fixed_figures(name))
            done = next((one for one in cell["seeds"] if one["seed"] == seed), None)
            if done and not lacks(done):
                continue
            check_time()
            if done:
                complete(name, done, maker)
            else:
                done = study(name, seed, maker)
                cell["seeds"].append(done)
            print(name, done, flush=True)
            write(cells)
    try:
        for name in (name for name in cells if "instructions" not in cells[name]):
            check_time()
            cells[name]["instructions"] = count(name, maker)
            print(name, {key: one["instructions"] for key, one in cells[name]["instructions"].items()}, flush=True)
            write(cells)
    except UsageError as error:  # a tool is missing
        print(error, file=sys.stderr, flush=True)
    check_time()
    if not all("latency" in cell for cell in cells.values()):
        measure_latency(cells, maker)
    print(write(cells))


if __name__ == "__main__":
    main()
