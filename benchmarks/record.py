"""How a benchmark's figures are kept: one JSON file a script under ``results/``, with machine, date and versions."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgefold.device_bench.runners import open_runner
from edgefold.network import tool_versions
from edgefold.results import to_dict

RESULTS = Path(__file__).parent / "results"


def earlier(name: str) -> dict[str, Any]:
    """What ``results/<name>.json`` holds, for a run that goes on; empty if there is none.

    A run goes on only where it began: figures of two CPUs in one file could not be compared.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    with open_runner("host") as host:
        cpu = host.info().cpu
    if record["machine"]["cpu"] != cpu:
        raise SystemExit(
            f"{path} is of another CPU ({record['machine']['cpu']}, here {cpu}); rename or delete it to measure anew"
        )
    return record


def write_result(name: str, figures: dict[str, Any], *, command: str) -> Path:
    """Write ``results/<name>.json``.

    Args:
        name: of the script, without suffix.
        figures: plain data; every number has its unit in its name.
        command: what makes this file again.
    """
    with open_runner("host") as host:
        machine = host.info()
    record = {
        "benchmark": name,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": to_dict(machine),
        "python": platform.python_version(),
        "versions": tool_versions(),
        **figures,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
