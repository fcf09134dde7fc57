"""What fold recognises and how long it takes: published forms, random modules, and layers written as loops.

Each form is folded in float32 and in float64; its error is relative to the largest output. The random modules are those of the
tests: convolutions in many ways of writing, and near misses that must stay. Times are of one thread, in CPU seconds of the fold
alone; the loops run in processes of their own, for their peak memory.

    python benchmarks/fold_coverage.py [--random 2500] [--skip-vgg]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the random modules are shared with the tests

from forms import FORMS, LoopHetConv  # noqa: E402  (the path has to be set first)
from record import write_result  # noqa: E402

from edgefold.export.fold import fold_module  # noqa: E402
from edgefold.export.fold.fold import fold_tree  # noqa: E402
from edgefold.export.fold.kernel import FoldedConv  # noqa: E402
from tests.export.fold.generator import generate  # noqa: E402

P = 8
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def main() -> None:
    """Measures everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--random", type=int, default=2500, help="how many random modules")
    parser.add_argument("--skip-vgg", action="store_true", help="leave out the loop VGG-16, which takes minutes and 8 GB")
    parser.add_argument("--loop", choices=("64", "vgg16"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.loop:
        print(json.dumps(fold_loop(options.loop)))
        return
    figures: dict[str, Any] = {"forms": [fold_form(name) for name in FORMS], "random_modules": fold_random(options.random)}
    loops = ["64"] if options.skip_vgg else ["64", "vgg16"]
    figures["loops"] = [in_process(name) for name in loops]
    print(write_result("fold_coverage", figures, command="python benchmarks/fold_coverage.py"))


def fold_form(name: str) -> dict[str, Any]:
    """One published form in both types: whether it is one convolution, with what error and structure."""
    figures: dict[str, Any] = {"form": name}
    for key, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        torch.manual_seed(0)
        module, shape = FORMS[name]()
        module = module.eval().to(dtype)
        for layer in (conv for row in getattr(module, "rows", ()) if isinstance(row, list) for conv in row):
            layer.to(dtype)  # hidden in Python lists
        x = torch.randn(shape, dtype=dtype)
        start = time.process_time()
        result = fold_module(module, x)
        figures[f"{key}_cpu_s"] = round(time.process_time() - start, 3)
        with torch.no_grad():
            expected, found = module(x), result.module(x)[0]
        figures[f"{key}_relative_error"] = float((expected - found).abs().max() / expected.abs().max())
        ops = [str(node.target).removeprefix("aten.") for node in result.module.graph.nodes if node.op == "call_function"]
        (layer,) = result.plan.layers
        figures.update(ops=ops, folded=layer.folded, geometry=layer.geometry, ops_before=layer.ops_before)
        figures.update(macs_before=layer.macs_before, macs=layer.macs)
    print(name, figures["folded"], figures["float32_relative_error"], figures["float64_relative_error"], flush=True)
    return figures


def fold_random(count: int) -> dict[str, Any]:
    """Random modules: how many of each kind fold, the largest error, and why the others stay."""
    tally: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    worst = 0.0
    for seed in range(count):
        case = generate(seed)
        x = torch.randn(case.shape, generator=torch.Generator().manual_seed(7))
        tree = fold_tree(case.module, (x,), {})
        folded = isinstance(tree.module, FoldedConv)
        tally[f"{'foldable' if case.foldable else 'trap'}_{'folded' if folded else 'kept'}"] += 1
        if folded:
            with torch.no_grad():
                expected, found = case.module(x), tree.module(x)
            worst = max(worst, float((expected - found).abs().max() / expected.abs().max()))
        else:
            reasons[case.name.split(" (")[0]] += 1
    print(dict(tally), worst, flush=True)
    return {"modules": count, **tally, "largest_relative_error": worst, "kept_by_trap": dict(sorted(reasons.items()))}


def loop_network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer 64->64 at 28x28, or VGG-16 for 32x32 images, with N x M one-channel convolutions for each layer."""
    if name == "64":
        return LoopHetConv(64, 64, P), torch.randn(1, 64, 28, 28)
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if isinstance(width, int):
            layers += [LoopHetConv(channels, width, P), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), torch.randn(1, 3, 32, 32)


def fold_loop(name: str) -> dict[str, Any]:
    """Time and peak memory of folding a loop; ``one_run_cpu_s`` is what the network itself takes for one input."""
    module, x = loop_network(name)
    module.eval()
    start = time.process_time()
    with torch.no_grad():
        expected = module(x)
    run = time.process_time() - start
    cpu, wall = time.process_time(), time.perf_counter()
    result = fold_module(module, x)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    with torch.no_grad():
        found = result.module(x)[0]
    return {
        "network": name,
        "one_channel_convolutions": sum(isinstance(part, nn.Conv2d) for part in module.modules()),
        "convolutions_after": sum("conv2d" in str(node.target) for node in result.module.graph.nodes),
        "one_run_cpu_s": round(run, 2),
        "fold_cpu_s": round(cpu, 2),
        "fold_wall_s": round(wall, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "relative_error": float((expected - found).abs().max() / expected.abs().max()),
        "load_average_1min": float(Path("/proc/loadavg").read_text(encoding="ascii").split()[0]),
    }


def in_process(name: str) -> dict[str, Any]:
    """`fold_loop` in a process of its own."""
    command = [sys.executable, __file__, "--loop", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(figures, flush=True)
    return figures


if __name__ == "__main__":
    main()
