"""Builds the native runner: pinned aarch64 packages in, one folder out that runs on any aarch64 Linux kernel, Android's included.

The runtimes are the libraries of the aarch64 wheels (`native/packages.txt`, with hashes); ONNX Runtime's headers come from an
npm package, since its wheels have none. The folder brings its own loader and C library (the cross compiler's), so the device
needs neither glibc nor anything else. Nothing that is downloaded is executed here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgefold.artifact import sha256_of
from edgefold.device_bench.native_bundle import MANIFEST, MANIFEST_SCHEMA, NATIVE, default_bundle
from edgefold.errors import OutputError, RuntimeFailure, UsageError

MACHINE = "aarch64"
COMPILERS = ("aarch64-linux-gnu-g++-12", "aarch64-linux-gnu-g++")
HEADERS = ("com.github.asus4.onnxruntime@0.4.9", "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d")
HEADERS_ARCHIVE = "package/Plugins/Android/onnxruntime.aar"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
LOADER = "ld-linux-aarch64.so.1"
SYSTEM = (LOADER, "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1")
ET_LIBRARIES = (
    "libexecutorch.so", "libexecutorch_kernels_optimized.so", "libexecutorch_kernels_quantized.so",
    "libexecutorch_backend_xnnpack.so", "libexecutorch_threadpool.so", "libexecutorch_etdump.so",
)  # fmt: skip
# program, its libraries' place in the unpacked wheels and their names in the bundle
PROGRAMS = {
    "onnx": ("edgefold_onnx", {"libonnxruntime.so.1": "onnxruntime/capi/libonnxruntime.so.{onnxruntime}"}),
    "tflite": ("edgefold_tflite", {"libLiteRt.so": "ai_edge_litert/libLiteRt.so"}),
    "executorch": ("edgefold_executorch", {name: f"executorch/lib/{name}" for name in ET_LIBRARIES}),
}

Say = Callable[[str], None]


def build_runner(out: Path | None = None, *, force: bool = False, say: Say = lambda text: None) -> Path:
    """Builds the runner for aarch64 and gives the folder it is in.

    Args:
        out: where to put it; by default in the user's cache, where `edgefold.bench` looks for it.
        force: build again over an existing one.
        say: is told each step in a few words.

    Raises:
        OutputError: ``out`` exists already.
        UsageError: a tool for the build (cross compiler, cmake, npm) is missing.
        RuntimeFailure: a step failed, or a download has another hash than the pinned one.
    """
    out = out or default_bundle()
    if out.exists():
        if not force:
            raise OutputError(f"runner '{out}' exists already; use it, or give --force to build it again")
        if not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"'{out}' is not a runner that was built here, so it is not replaced; choose another name")
    tools = {name: _tool(*names) for name, names in (("c++", COMPILERS), ("cmake", ("cmake",)), ("npm", ("npm",)))}
    out.parent.mkdir(parents=True, exist_ok=True)
    with _work_folder(out) as work:
        versions = _fetch_runtimes(work, say)
        _fetch_headers(work, tools["npm"], say)
        libraries = _libraries(work, versions)
        _compile(work, tools, libraries, versions, say)
        say("putting the bundle together")
        bundle = work / "bundle"
        _assemble(bundle, work, tools["c++"], libraries, versions)
        if out.exists():
            shutil.rmtree(out)
        bundle.replace(out)
    return out


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder beside the result, so that the result can be moved into place in one step."""
    with tempfile.TemporaryDirectory(prefix=".runner-", dir=out.parent) as folder:
        yield Path(folder)


def _tool(*names: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    hint = "g++-12-aarch64-linux-gnu" if names == COMPILERS else names[0]
    raise UsageError(f"building the runner needs '{names[0]}', which is not installed; on Debian: apt-get install {hint}")


def _run(argv: Sequence[str], step: str, *, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line] or done.stderr.splitlines() or ["?"]
        raise RuntimeFailure(f"{step} failed: {lines[0].strip()[:300]}; check the network and the tools, and try again")
    return done.stdout


def _fetch_runtimes(work: Path, say: Say) -> dict[str, str]:
    """Downloads and unpacks the wheels; the version of each package."""
    say("fetching the aarch64 runtimes")
    requirements = NATIVE / "packages.txt"
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    argv += ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
    for platform in PLATFORMS:
        argv += ["--platform", platform]
    _run([*argv, "--dest", str(work / "wheels"), "-r", str(requirements)], "fetching the aarch64 runtimes", cwd=work)
    for wheel in (work / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if ".so" in name or "/include/" in name]
            archive.extractall(work / "site", wanted)
    lines = [line.split()[0] for line in requirements.read_text().splitlines() if "==" in line]
    return dict(line.split("==") for line in lines)


def _fetch_headers(work: Path, npm: str, say: Say) -> None:
    """ONNX Runtime's C headers, out of the Android archive in an npm package."""
    say("fetching ONNX Runtime's headers")
    package, digest = HEADERS
    name = (
        _run([npm, "pack", "--silent", "--ignore-scripts", package], "fetching ONNX Runtime's headers", cwd=work)
        .strip()
        .splitlines()[-1]
    )
    archive = work / Path(name).name
    found = sha256_of(archive)
    if found != digest:
        raise RuntimeFailure(
            f"npm package {package} has SHA-256 {found[:16]}…, expected {digest[:16]}…; it is not the pinned one"
        )
    with tarfile.open(archive) as outer:
        member = outer.extractfile(HEADERS_ARCHIVE)
        assert member is not None
        with zipfile.ZipFile(member) as inner:
            inner.extractall(work, [each for each in inner.namelist() if each.startswith("headers/")])
    archive.unlink()


def _libraries(work: Path, versions: dict[str, str]) -> dict[str, Path]:
    """Every runtime library by its name in the bundle."""
    return {
        name: work / "site" / place.format(onnxruntime=versions["onnxruntime"])
        for _, libraries in PROGRAMS.values()
        for name, place in libraries.items()
    }


def _compile(work: Path, tools: dict[str, str], libraries: dict[str, Path], versions: dict[str, str], say: Say) -> None:
    say("compiling")
    # The linker records the library's soname, which is that of the bundle.
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": MACHINE,
        "CMAKE_CXX_COMPILER": tools["c++"],
        "CMAKE_EXE_LINKER_FLAGS": "-Wl,--allow-shlib-undefined",
        "ORT_INCLUDE": str(work / "headers"),
        "ORT_LIBRARY": str(libraries["libonnxruntime.so.1"]),
        "LITERT_LIBRARY": str(libraries["libLiteRt.so"]),
        "LITERT_VERSION": versions["ai-edge-litert"],
        "ET_ROOT": str(work / "site" / "executorch"),
        "ET_VERSION": versions["executorch"],
    }
    build = str(work / "build")
    words = [f"-D{key}={value}" for key, value in options.items()]
    _run([tools["cmake"], "-S", str(NATIVE), "-B", build, *words], "configuring the runner", cwd=work)
    _run([tools["cmake"], "--build", build, "--parallel"], "compiling the runner", cwd=work)


def _assemble(bundle: Path, work: Path, compiler: str, libraries: dict[str, Path], versions: dict[str, str]) -> None:
    """One flat folder: programs, runtimes, the C library with its loader, and the manifest."""
    bundle.mkdir()
    for name in SYSTEM:
        shutil.copy(Path(_run([compiler, f"-print-file-name={name}"], f"looking for {name}", cwd=work).strip()), bundle / name)
    for name, path in libraries.items():
        shutil.copy(path, bundle / name)
    programs = {}
    for form, (program, own) in PROGRAMS.items():
        shutil.copy(work / "build" / program, bundle / program)
        (bundle / program).chmod(0o755)
        programs[form] = {"program": program, "files": sorted({program, *SYSTEM, *own})}
    (bundle / LOADER).chmod(0o755)
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "machine": MACHINE,
        "loader": LOADER,
        "versions": versions,
        "programs": programs,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())},
    }
    (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
