"""`edgefold doctor`: is this machine able to do the work, and what will its INT8 be like?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import typer

from edgefold.cli.options import Json
from edgefold.results import DeviceInfo

if TYPE_CHECKING:
    from rich.console import RenderableType

PACKAGES = (
    "torch",
    "torchao",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "executorch",
    "numpy",
)
OK, NOTE, FAIL = "ok", "note", "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``level`` is "ok", "note" (works, but read this) or "FAIL" (something will not work)."""

    level: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that `doctor` found."""

    healthy: bool
    findings: tuple[Finding, ...]
    device: DeviceInfo


def doctor(as_json: Json = False) -> None:
    """Check this machine: runtimes, CPU features, extras, cache."""
    from edgefold.cli.output import output, table

    with output(as_json) as out:
        found = diagnose()

        def picture() -> Iterable[RenderableType]:
            yield table(("", "what", "found"), [(f.level, f.subject, f.text) for f in found.findings], "llw")

        out.show(found, picture)
    raise typer.Exit(0 if found.healthy else 1)


def diagnose() -> Diagnosis:
    """Look at this machine."""
    from edgefold.device_bench.runners import open_runner

    with open_runner("host") as runner:
        device = runner.info()
    findings = (
        *(_package(name) for name in PACKAGES),
        Finding(OK, "CPU", f"{device.cpu} ({device.machine}, {len(device.cores) or '?'} cores)"),
        _int8(device),
        *_extras(),
        _cache(),
    )
    return Diagnosis(all(finding.level != FAIL for finding in findings), findings, device)


def _int8(device: DeviceInfo) -> Finding:
    from edgefold.device_bench.outlook import int8_outlook

    pays, text = int8_outlook(device.machine, frozenset(device.features))
    return Finding(OK if pays else NOTE, "INT8", text)


def _package(name: str) -> Finding:
    try:
        return Finding(OK, name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(FAIL, name, f"not installed; install it with: pip install '{_requirement(name)}'")


def _requirement(name: str) -> str:
    """What Edgefold's own metadata asks for, e.g. ``torch>=2.13,<2.15``."""
    for line in metadata.requires("edgefold") or ():
        if re.match(rf"{re.escape(name)}(?![\w.-])", line):
            return line.split(";")[0].strip()
    return name


def _extras() -> Iterable[Finding]:
    wanted: dict[str, list[str]] = {}
    for line in metadata.requires("edgefold") or ():
        match = re.match(r"""([\w.-]+).*;.*extra == ['"]([\w-]+)['"]""", line)
        if match:
            wanted.setdefault(match[2], []).append(match[1])
    for extra, packages in wanted.items():
        missing = [name for name in packages if not _installed(name)]
        if missing:
            yield Finding(NOTE, f"extra {extra}", f"lacks {', '.join(missing)}; install with: pip install 'edgefold[{extra}]'")
        else:
            yield Finding(OK, f"extra {extra}", "installed")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _cache() -> Finding:
    import tempfile
    from pathlib import Path

    from platformdirs import user_cache_dir

    folder = Path(user_cache_dir("edgefold"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(FAIL, "cache", f"'{folder}' cannot be written ({error.strerror}); make it writable or set XDG_CACHE_HOME")
    return Finding(OK, "cache", str(folder))
