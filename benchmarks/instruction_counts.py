"""ARM instructions of one inference: format x precision x lowering x core, for the built-in network and a MobileNetV2. A lowering
whose file is that of another one is not counted again, and names it.

Counted under emulation with one thread, so they repeat on any machine; they are no times. Needs qemu-user, gcc and the native
runner (`edgefold runner build`).

    python benchmarks/instruction_counts.py [--model hetnet-fmnist ...] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import write_result

from edgefold.artifact import Format, Precision
from edgefold.cli.sources import ModelChoice
from edgefold.device_bench import count_instructions
from edgefold.errors import EdgefoldError
from edgefold.network import tool_versions

if TYPE_CHECKING:
    from edgefold.artifact import Artifact
    from edgefold.export.fold import FoldResult
    from edgefold.export.program import QuantizedProgram
    from edgefold.network import Network
    from edgefold.pipeline import Lowerings

# With the arguments of the function that makes it.
MODELS: dict[str, list[str]] = {"hetnet-fmnist": [], "mobilenet_v2": ["resolution=96", "in_channels=3"]}
LOWERINGS: tuple[Lowerings, ...] = ("dense", "grouped", "split", "auto")
# `auto` is what is chosen for a device of which nothing was measured: this machine's times say nothing of ARM cores.
UNMEASURED = "adb://"
CPUS = ("cortex-a72", "cortex-a76")


class Exporter:
    """Artifacts of the models; each is folded once and quantized once a precision."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cache  # noqa: B019  # lives as long as the script
    def network(self, model: str) -> tuple[Network, FoldResult]:
        """The network with its data, and folded."""
        from edgefold import fold

        network = ModelChoice(model, MODELS[model]).load(None if model == "hetnet-fmnist" else "random")
        return network, fold(network.module, network.example_inputs)

    @cache  # noqa: B019  # the same
    def quantized(self, model: str, precision: Precision) -> QuantizedProgram:
        """The network in integers."""
        from edgefold import quantize_model

        network, folded = self.network(model)
        assert network.calibration is not None
        return quantize_model(folded, network.example_inputs, calibration=network.calibration, scheme=precision)

    @cache  # noqa: B019  # the same
    def __call__(self, model: str, form: Format, precision: Precision, lowering: Lowerings) -> Artifact | str:
        """The artifact, or the reason why there is none."""
        from edgefold import export_model

        out = self.folder / f"{model}-{precision}-{lowering}{form.suffix}"
        network, folded = self.network(model)
        is_float = precision is Precision.FP32
        try:
            return export_model(
                folded if is_float else self.quantized(model, precision),
                network.example_inputs if is_float else None,
                format=form,
                lowering=lowering,
                device=UNMEASURED if lowering == "auto" else None,
                timing=False,
                out=out,
            )
        except EdgefoldError as error:
            return str(error)

    def same_as(self, made: Artifact, model: str, form: Format, precision: Precision, lowering: Lowerings) -> str | None:
        """The lowering before this one that gives the same file, byte by byte."""
        for other in LOWERINGS[: LOWERINGS.index(lowering)]:
            before = self(model, form, precision, other)
            if not isinstance(before, str) and before.sha256 == made.sha256:
                return other
        return None


def main() -> None:
    """Counts everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help=f"default: {' and '.join(MODELS)}")
    parser.add_argument(
        "--max-minutes", type=float, default=600, help="stop after this time; the next call goes on (default: 600)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="counts of one artifact to compare (default: 5)")
    arguments = parser.parse_args()
    models = arguments.model or list(MODELS)
    kept = Path(tempfile.gettempdir()) / f"edgefold-instruction-counts-{tool_versions()['torch']}.json"
    state: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"rows": {}, "repeats": {}}
    end = time.monotonic() + 60 * arguments.max_minutes
    with tempfile.TemporaryDirectory() as temporary:
        export = Exporter(Path(temporary))
        for model, form, precision, lowering in product(models, Format, (Precision.FP32, Precision.INT8), LOWERINGS):
            key = {"model": model, "format": form.value, "precision": precision.value, "lowering": str(lowering)}
            if " ".join(key.values()) in state["rows"]:
                continue
            if time.monotonic() > end:
                sys.exit("not finished; call this again")
            made = export(model, form, precision, lowering)
            same = None if isinstance(made, str) else export.same_as(made, model, form, precision, lowering)
            state["rows"][" ".join(key.values())] = _rows(made, key) if same is None else [{**key, "same_as": same}]
            if form.value not in state["repeats"] and not isinstance(made, str):
                counts = [count_instructions(made, CPUS[-1]).instructions for _ in range(arguments.repeat)]
                state["repeats"][form.value] = counts
            kept.write_text(json.dumps(state))
    spreads = {form: (max(counts) - min(counts)) / min(counts) for form, counts in state["repeats"].items()}
    rows = [row for some in state["rows"].values() for row in some]
    figures = {"rows": rows, "repeated_instructions": state["repeats"], "repeated_spread_share": spreads}
    command = " ".join(["python benchmarks/instruction_counts.py", *(f"--model {model}" for model in arguments.model or ())])
    print(write_result("instruction_counts", figures, command=command))
    kept.unlink()


def _rows(made: Artifact | str, key: dict[str, str]) -> list[dict[str, Any]]:
    """The counts of one artifact on each core, or why there is none."""
    if isinstance(made, str):
        print(f"{' '.join(key.values())}: no artifact: {made}", flush=True)
        return [{**key, "error": made}]
    rows = []
    for cpu in CPUS:
        found = count_instructions(made, cpu)
        figures = {"instructions": found.instructions, "spread_share": found.spread, "by_kind": found.counts}
        rows.append({**key, "cpu": cpu, "runtime": found.runtime, **figures, "codes": [code.value for code in found.codes]})
        print(f"{' '.join(key.values())} {cpu}: {found.instructions:,}", flush=True)
    return rows


if __name__ == "__main__":
    main()
