"""Networks of HetConv layers: every fixed lowering and auto, beside the dense network that each runtime's own exporter makes.

For each network, P, format and precision, all files run against each other in one process (one thread, turns A B C C B A).
`auto` is what ``edgefold export`` would write: the choice layer by layer, closed by a timing of its own against the uniform
lowerings. The best fixed lowering is chosen on the even blocks; auto is compared with it, and with the plain network, on the
odd ones.

- ``plain``: the same network with plain convolutions (all weights, as if nothing were known of zeros), exported by torch.onnx,
  by litert-torch, or by ExecuTorch's XNNPACK recipe; INT8 by the runtime's own tool, with the faster of its recipes.
- ``bound``: multiply-accumulates of the plain network over those of the HetConv network, which no lowering can pass.
- ``share``: the speed-up over plain, as a share of the bound.

The networks are given in the form in which folding ends, convolutions with masked weights and biases and no BatchNorm. Weights
are random (seeded), since they have no part in the time. A layer whose input channels are fewer than P gets as many
parts as it has channels; the first convolution (3 input channels) and the 1x1 convolutions of ResNet's shortcuts stay plain.

    python benchmarks/fold_speed.py [--models resnet20 vgg16] [--p 4] [--formats onnx] [--precisions fp32] [--again]

Cells that the JSON has already are left out, so that the run can be made in pieces; the files are kept in --cache by content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from int8_native import RECIPES, quantize_native
from loop_route import STRAIGHT
from record import earlier, write_result
from torch import Tensor, nn

import edgefold
from edgefold.artifact import Artifact, Format, Precision, sha256_of
from edgefold.device_bench.cases import Case, make_case
from edgefold.device_bench.closing import AUTO, UNIFORM, decide, settle
from edgefold.device_bench.launch import Launchers
from edgefold.device_bench.race import Race, RaceOptions, race
from edgefold.device_bench.runners import Runner, open_runner
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.lower import lower
from edgefold.export.plan import Lowering
from edgefold.export.program import LoweredProgram, Program
from edgefold.models.blocks.arguments import IntPair
from edgefold.models.blocks.hetconv import hetconv_mask
from edgefold.models.nets.residual import resnet20, resnet56
from edgefold.models.nets.vgg import vgg16
from edgefold.network import tool_versions
from edgefold.runtime.session import describe

NAME: Final = "fold_speed"
NETWORKS: Final[dict[str, Callable[..., nn.Module]]] = {"resnet20": resnet20, "vgg16": vgg16, "resnet56": resnet56}
PRECISIONS: Final = (Precision.FP32, Precision.INT8)
SIZE: Final = 32
CALIBRATION: Final = 8
CLOSING: Final = RaceOptions()
JUDGING: Final = RaceOptions(processes=4, blocks=8)
PLAIN: Final = "plain"
MAX_RATIO: Final = 1.03


def network(name: str, p: int | None) -> nn.Module:
    """A seeded network in eval mode; ``p`` is ``None`` for plain convolutions."""

    def conv(inputs: int, outputs: int, kernel: IntPair, *, stride: IntPair, padding: IntPair, bias: bool) -> nn.Module:
        made = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        if p is not None and inputs >= 4:
            with torch.no_grad():
                made.weight.mul_(hetconv_mask(inputs, outputs, kernel, min(p, inputs)))
        return made

    torch.manual_seed(0)
    net = NETWORKS[name](num_classes=10, in_channels=3, resolution=SIZE, conv=conv).eval()
    for parent in list(net.modules()):
        for key, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, key, nn.Identity().eval())
    return net


def samples() -> list[Tensor]:
    """The calibration inputs, (1, 3, 32, 32) each."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, SIZE, SIZE, generator=generator) for _ in range(CALIBRATION)]


@dataclass(frozen=True, slots=True)
class Subject:
    """One network with one P: canonical programs by precision, and the plain network."""

    programs: dict[Precision, Program]
    plain: nn.Module
    macs: int
    plain_macs: int


def subject(name: str, p: int, precisions: Sequence[Precision]) -> Subject:
    """Folds and calibrates."""
    example = samples()[0]
    sparse, plain = network(name, p), network(name, None)
    folded = edgefold.fold(sparse, example)
    programs = {Precision.FP32: folded.program}
    if Precision.INT8 in precisions:
        programs[Precision.INT8] = edgefold.quantize_model(folded, example, calibration=samples()).program
    return Subject(programs, plain, macs(sparse, example), macs(plain, example))


def macs(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one sample: weights that are not zero, times positions."""
    total = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += int(layer.weight.count_nonzero()) * math.prod(output.shape[2:])

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(example)
    for handle in handles:
        handle.remove()
    return total


class Cache:
    """Files by the content that they were made from."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def lowered(self, lowered: LoweredProgram) -> Artifact:
        """The file of a lowered program; its description lies beside it."""
        graph = lowered.program.graph
        digest = hashlib.sha256(f"{tool_versions()} {lowered.format} {lowered.precision} {graph.code}".encode())
        for key, value in sorted(graph.state_dict(keep_vars=False).items()):
            digest.update(f"{key} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        for node in graph.graph.nodes:
            digest.update(repr([(key, node.meta[key]) for key in sorted(node.meta) if key.startswith("edgefold")]).encode())
        path = self._folder / f"{digest.hexdigest()[:24]}{lowered.format.suffix}"
        if not path.exists():
            get_emitter(lowered.format).emit(lowered, EmitOptions(), path)
        found = describe(path)
        return Artifact(path, lowered.format, lowered.precision, sha256_of(path), found.inputs, found.outputs)

    def plain(self, subject: Subject, name: str, format: Format, precision: Precision) -> dict[str, Path]:
        """The plain network's files by the runtime's own exporter: one, or one for each recipe of its tool."""
        key = hashlib.sha256(f"{tool_versions()} {name} plain fp32".encode()).hexdigest()[:24]
        path = self._folder / f"{key}-fp32{format.suffix}"
        if not path.exists():
            STRAIGHT[format](subject.plain, samples()[0], path)
        if precision is Precision.FP32:
            return {PLAIN: path}
        exported = torch.export.export(subject.plain, (samples()[0],)).module()
        assert isinstance(exported, torch.fx.GraphModule)
        files = {f"{PLAIN}-{recipe}": self._folder / f"{key}-{recipe}{format.suffix}" for recipe in RECIPES[format]}
        for recipe, file in zip(RECIPES[format], files.values(), strict=True):
            if not file.exists():
                quantize_native(format, recipe, path, exported, samples(), file)
        return files


@dataclass(frozen=True, slots=True)
class Forms:
    """The files of one cell: each distinct form once; ``same`` maps a name to the one whose file it shares."""

    cases: dict[str, Case]
    ways: dict[str, dict[str, int]]
    same: dict[str, str]

    @property
    def fixed(self) -> list[str]:
        """The files of uniform lowerings; one that is also the choice layer by layer stands under that name."""
        return list(dict.fromkeys(self.same.get(str(name), str(name)) for name in UNIFORM[:3]))


def forms_of(subject: Subject, format: Format, precision: Precision, cache: Cache) -> Forms:
    """Writes the choice layer by layer and each uniform lowering."""
    cases: dict[str, Case] = {}
    ways: dict[str, dict[str, int]] = {}
    same: dict[str, str] = {}
    seen: dict[tuple[Lowering, ...], str] = {}
    for name in (AUTO, *UNIFORM[:3]):
        lowered = lower(subject.programs[precision], format=format, precision=precision, lowering=name)
        chosen = tuple(layer.choice for layer in lowered.plan.layers)
        ways[str(name)] = {str(way): chosen.count(way) for way in dict.fromkeys(chosen)}
        if chosen in seen:
            same[str(name)] = seen[chosen]
            continue
        seen[chosen] = str(name)
        cases[str(name)] = make_case(cache.lowered(lowered), seed=0)
    return Forms(cases, ways, same)


def cell(name: str, p: int, subject: Subject, format: Format, precision: Precision, cache: Cache, host: Runner) -> dict[str, Any]:
    """The figures of one network, P, format and precision."""
    forms = forms_of(subject, format, precision, cache)
    launchers = Launchers(host)
    names = list(forms.cases)
    closed, reason = AUTO, "it is the only form"
    if len(names) > 1:
        place, reason = decide(settle(list(forms.cases.values()), host, launchers, CLOSING), names)
        closed = names[place]
    plain = {key: make_case(path, seed=0) for key, path in cache.plain(subject, name, format, precision).items()}
    cases = {**forms.cases, **plain}
    found = race(list(cases.values()), host, launchers, JUDGING)
    names = list(cases)
    return {
        "model": name,
        "p": p,
        "format": format.value,
        "precision": precision.value,
        "runtime": found.runtime,
        "blocks": found.blocks,
        "layers": forms.ways,
        "same_file": forms.same,
        "auto_is": closed,
        "auto_reason": reason,
        "bound": round(subject.plain_macs / subject.macs, 4),
        **judged(found, names, forms.fixed, closed, subject.plain_macs / subject.macs),
        "median_ns": {each: round(found.median_ns(place)) for place, each in enumerate(names)},
        "size_bytes": {each: case.path.stat().st_size for each, case in cases.items()},
    }


def judged(found: Race, names: Sequence[str], fixed: Sequence[str], closed: str, bound: float) -> dict[str, Any]:
    """The best fixed lowering on the even blocks; what auto is against it and against the plain network on the odd ones."""
    even, odd = list(range(0, found.blocks, 2)), list(range(1, found.blocks, 2))
    places = {name: place for place, name in enumerate(names)}
    best = min(fixed, key=lambda name: found.median_ns(places[name], even))
    against_best = (
        asdict(found.ratio(places[closed], places[best], odd)) if best != closed else dict.fromkeys(("value", "low", "high"), 1.0)
    )
    plain = min((name for name in names if name.startswith(PLAIN)), key=lambda name: found.median_ns(places[name], even))
    speedup = found.ratio(places[plain], places[closed], odd)
    return {
        "best_fixed": best,
        "auto_over_best_fixed": against_best,
        "auto_passes": against_best["low"] <= MAX_RATIO,
        "best_plain": plain,
        "speedup_over_plain": asdict(speedup),
        "share_of_bound": round(speedup.value / bound, 4),
        "share_by_form": {
            name: round(found.ratio(places[plain], places[name], odd).value / bound, 4)
            for name in names
            if not name.startswith(PLAIN)
        },
    }


def summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the cells say together."""
    ratios = [one["auto_over_best_fixed"]["low"] for one in cells]
    shares: dict[str, list[float]] = {}
    for one in cells:
        shares.setdefault(f"{one['model']} p{one['p']} {one['precision']}", []).append(one["share_of_bound"])
    return {
        "cells": len(cells),
        "cells_where_auto_is_over_1_03": sum(not one["auto_passes"] for one in cells),
        "largest_lower_bound": round(max(ratios, default=math.nan), 4),
        "cells_slower_than_plain": sum(one["speedup_over_plain"]["high"] < 1.0 for one in cells),
        "share_of_bound": {key: [min(values), max(values)] for key, values in sorted(shares.items())},
    }


def main() -> None:
    """Measures the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=["resnet20", "vgg16"])
    parser.add_argument("--p", nargs="+", type=int, default=[2, 4, 8, 16, 32])
    parser.add_argument("--formats", nargs="+", type=Format, default=list(Format))
    parser.add_argument("--precisions", nargs="+", type=Precision, default=list(PRECISIONS))
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache" / NAME)
    parser.add_argument("--again", action="store_true", help="measure cells that are there too")
    parser.add_argument("--emit-only", action="store_true", help="write the files into the cache, measure nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = {key_of(one): one for one in earlier(NAME).get("cells", [])}
    cache = Cache(arguments.cache)
    with open_runner("host") as host:
        for name in arguments.models:
            for p in arguments.p:
                keys = [(name, p, form.value, one.value) for form in arguments.formats for one in arguments.precisions]
                missing = [key for key in keys if arguments.again or key not in cells]
                if not missing:
                    continue
                made = subject(name, p, arguments.precisions)
                for key in missing:
                    form, precision = Format(key[2]), Precision(key[3])
                    if arguments.emit_only:
                        forms_of(made, form, precision, cache)
                        cache.plain(made, name, form, precision)
                        print("written", *key, flush=True)
                        continue
                    found = cell(name, p, made, form, precision, cache, host)
                    print(json.dumps(found), flush=True)
                    cells = {
                        **{key_of(one): one for one in earlier(NAME).get("cells", [])},
                        key: found,
                    }  # another run may have added some
                    rows = sorted(cells.values(), key=key_of)
                    write_result(NAME, {"summary": summary(rows), "cells": rows}, command="python benchmarks/fold_speed.py")


def key_of(one: dict[str, Any]) -> tuple[str, int, str, str]:
    """What a cell is about."""
    return one["model"], one["p"], one["format"], one["precision"]


if __name__ == "__main__":
    main()
