"""ARM instructions of one inference: format x precision x lowering x core, for the built-in network and a MobileNetV2.

Counted under emulation with one thread, so they repeat on any machine; they are no times. Needs qemu-user, gcc and the native
runner (`edgefold runner build`).

    python benchmarks/instruction_counts.py [--model hetnet-fmnist ...] [--repeat 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from record import write_result

from edgefold.artifact import Format, Precision
from edgefold.device_bench import count_instructions

MODELS = ("hetnet-fmnist", "mobilenet_v2")
LOWERINGS = ("dense", "grouped")
CPUS = ("cortex-a72", "cortex-a76")
EXPORT_TIMEOUT_S = 600


def export(model: str, form: Format, precision: Precision, lowering: str, folder: Path) -> Path | str:
    """The artifact, or the reason why there is none."""
    out = folder / f"{model}-{precision}-{lowering}{form.suffix}"
    command = str(Path(sys.executable).with_name("edgefold"))
    argv = [command, "export", model, "--format", form, "--precision", precision, "--lowering", lowering]
    if model != "hetnet-fmnist" and precision is not Precision.FP32:
        argv += ["--calibration", "random"]
    done = subprocess.run([*argv, "--out", str(out)], capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S)
    return out if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def main() -> None:
    """Counts everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"default: {' and '.join(MODELS)}")
    parser.add_argument("--repeat", type=int, default=5, help="counts of one artifact to compare (default: 5)")
    arguments = parser.parse_args()
    models = arguments.model or MODELS
    rows: list[dict[str, Any]] = []
    repeats: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for model, form, precision, lowering in product(models, Format, (Precision.FP32, Precision.INT8), LOWERINGS):
            made = export(model, form, precision, lowering, Path(temporary))
            key = {"model": model, "format": form.value, "precision": precision.value, "lowering": lowering}
            if isinstance(made, str):
                print(f"{' '.join(key.values())}: no artifact: {made}", flush=True)
                rows.append({**key, "error": made})
                continue
            for cpu in CPUS:
                found = count_instructions(made, cpu)
                row = {
                    **key,
                    "cpu": cpu,
                    "runtime": found.runtime,
                    "instructions": found.instructions,
                    "spread_share": found.spread,
                }
                rows.append(row | {"by_kind": found.counts, "codes": [code.value for code in found.codes]})
                print(f"{' '.join(key.values())} {cpu}: {found.instructions:,}", flush=True)
            if form.value not in repeats:
                repeats[form.value] = [count_instructions(made, CPUS[-1]).instructions for _ in range(arguments.repeat)]
    if not repeats:
        sys.exit("no artifact could be made, so there is nothing to write")
    spreads = {form: (max(counts) - min(counts)) / min(counts) for form, counts in repeats.items()}
    figures = {"rows": rows, "repeated_instructions": repeats, "repeated_spread_share": spreads}
    command = " ".join(["python benchmarks/instruction_counts.py", *(f"--model {model}" for model in arguments.model or ())])
    print(write_result("instruction_counts", figures, command=command))


if __name__ == "__main__":
    main()
