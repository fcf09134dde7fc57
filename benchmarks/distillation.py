"""Does a teacher help a small student? Paired runs: the same first weights and the same batches, with and without the teacher.

The student is a HetNet of width 8, trained on 2,000 images of Fashion-MNIST; the teacher is the built-in ``hetnet-fmnist``. Each
seed gives one difference of top-1 on all 10,000 test images; the interval of their mean is Student's t.

    python benchmarks/distillation.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from record import write_result
from scipy import stats

from edgefold.artifact import atomic_path
from edgefold.models.data import ImageSet, TrainingData, load_training_data
from edgefold.models.distill import DistillOptions, distill
from edgefold.models.evaluate import top1
from edgefold.models.make_slice import stratified
from edgefold.models.networks import build_network
from edgefold.models.recipe import load_recipe
from edgefold.models.registry import get_model
from edgefold.models.train import train
from edgefold.models.train_options import TrainOptions

STUDENT = ("hetnet", {"width": 8, "blocks": [1, 1, 1]})
TEACHER = "hetnet-fmnist"
IMAGES = 2000
OPTIONS = TrainOptions(epochs=8, batch_size=64, learning_rate=0.05, ema_decay=0.9)
DISTILLATION = DistillOptions(temperature=4.0, alpha=0.7)
KEPT = Path(__file__).parent / "results" / ".distillation.json"


def main() -> None:
    """Trains every pair that is not there yet, then writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs: list[dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    if len(pairs) < options.seeds:
        data, teacher = load_training_data(), get_model(TEACHER)
        small = replace(data, train=_part(data.train, IMAGES), test=_part(data.test, 200))  # of the metrics of each epoch only
        for seed in range(len(pairs), options.seeds):
            pairs.append(_pair(seed, small, data.test, teacher))
            with atomic_path(KEPT, force=True) as temporary:
                temporary.write_text(json.dumps(pairs), encoding="utf-8")
            print(pairs[-1], flush=True)
    gains = [pair["with_teacher"] - pair["alone"] for pair in pairs]
    mean, spread = statistics.mean(gains), statistics.stdev(gains)
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * spread / math.sqrt(len(gains))
    figures = {
        "student": {"network": STUDENT[0], "kwargs": STUDENT[1]},
        "teacher": TEACHER,
        "teacher_top1": load_recipe(TEACHER).accuracy,
        "training_images": IMAGES,
        "test_images": load_recipe(TEACHER).test_images,
        "training": asdict(OPTIONS),
        "distillation": asdict(DISTILLATION),
        "pairs": pairs,
        "mean_gain": mean,
        "gain_interval_95": [mean - half, mean + half],
    }
    print(write_result("distillation", figures, command="python benchmarks/distillation.py"))
    KEPT.unlink()


def _part(images: ImageSet, count: int) -> ImageSet:
    """As many images of each class, the first ones."""
    index = stratified(images, count // len(images.classes))
    return replace(images, images=images.images[index], labels=images.labels[index])


def _pair(seed: int, data: TrainingData, test: ImageSet, teacher: torch.nn.Module) -> dict[str, Any]:
    options = replace(OPTIONS, seed=seed)
    start = time.process_time()
    shares = []
    for helped in (False, True):
        torch.manual_seed(seed)
        student = build_network(STUDENT[0], **STUDENT[1])
        if helped:
            distill(student, teacher, data, options, DISTILLATION, progress=False)
        else:
            train(student, data, options, progress=False)
        shares.append(top1(student.eval(), test))
    return {"seed": seed, "alone": shares[0], "with_teacher": shares[1], "cpu_s": round(time.process_time() - start, 1)}


if __name__ == "__main__":
    main()
