"""The shape of the project: what is packaged, who may import whom, how long files are, what the public surface is."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgefold

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "edgefold": ROOT / "src" / "edgefold",
    "edgefold.models": ROOT / "models",
    "edgefold.quantize": ROOT / "quantize",
    "edgefold.export": ROOT / "export",
    "edgefold.device_bench": ROOT / "device_bench",
}
# Each may import those before it (and itself); the ones on a line are of one level, of which `bundle` may import `report`.
LEVELS = (
    ("errors",),
    ("artifact",),
    ("schemes",),
    ("results",),
    ("runtime",),
    ("batch", "preprocess"),
    ("models",),
    ("quantize",),
    ("export",),
    ("device_bench",),
    ("report",),
    ("bundle",),
    ("network",),
    ("quantizing",),
    ("pipeline",),
    ("trained",),
    ("calibrated", "explaining", "mixing", "qat_training"),
    ("variants",),
    ("kept",),
    ("kept_stages",),
    ("shipping",),
    ("recipe",),
    ("matrix",),
    ("cli",),
)
MAX_LINES = 400
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its dotted name; the four links in ``src`` are not followed."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            linked = package == "edgefold" and parts[0] in ("models", "quantize", "export", "device_bench")
            if not linked:
                yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def test_every_package_on_disk_is_listed_and_no_other(project: dict[str, Any]) -> None:
    on_disk = sorted(name for name, path in _sources() if path.name == "__init__.py")
    assert sorted(project["tool"]["setuptools"]["packages"]) == on_disk


def test_no_folder_with_modules_lacks_its_init() -> None:
    folders = {path.parent for _, path in _sources()}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_imports_point_one_way() -> None:
    rank = {name: level for level, names in enumerate(LEVELS) for name in names}
    wrong = []
    for module, path in _sources():
        own = module.split(".")[1] if "." in module else None
        for target, line in _imports(path):
            other = target.split(".")[1] if "." in target else None
            if own is None or other is None:
                continue
            assert own in rank, f"{own} has no place in LEVELS"
            assert other in rank, f"{other} has no place in LEVELS"
            if rank[other] > rank[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert wrong == []


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """The edgefold modules that a file imports when it runs, also inside functions; those for type checkers do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "edgefold")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgefold":
            # `from edgefold import x` names a module or something public; both have a second part.
            module = node.module or ""
            yield from ((f"{module}.{alias.name}" if module == "edgefold" else module, node.lineno) for alias in node.names)


@pytest.mark.parametrize("package", ["errors", "artifact", "results", "runtime", "bundle.reader", "cli.app", "report.page"])
def test_light_modules_stay_light(package: str) -> None:
    """A program that only loads a bundle and runs it does not pay for torch and the converters."""
    heavy = ("torch", "executorch", "litert_torch", "onnxruntime", "onnx", "scipy")
    code = f"import sys, edgefold.{package}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert result.stdout.strip() == "[]"


def test_no_file_is_long() -> None:
    files = (
        [path for _, path in _sources()] + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
    )
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_half_of_the_files_are_short() -> None:
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for _, path in _sources() if path.stat().st_size)
    assert lengths[len(lengths) // 2] < 150


def test_the_public_surface() -> None:
    assert edgefold.__all__ == [
        "Artifact",
        "BenchOptions",
        "Bundle",
        "EdgefoldError",
        "FoldResult",
        "Format",
        "Measurement",
        "ParityReport",
        "Precision",
        "Preprocessing",
        "QuantizedProgram",
        "TensorSpec",
        "bench",
        "compare",
        "export_model",
        "fold",
        "load_bundle",
        "quantize_model",
        "run",
        "ship",
        "verify",
    ]


def test_public_names_survive_the_import_of_every_submodule() -> None:
    """A submodule that is imported becomes an attribute of its package: it must not take the place of a public function."""
    code = """
import importlib, pkgutil, types, warnings, edgefold
warnings.simplefilter("ignore")
first = {name: getattr(edgefold, name) for name in edgefold.__all__}
for info in pkgutil.walk_packages(edgefold.__path__, "edgefold."):
    if info.name != "edgefold.runtime.worker":
        importlib.import_module(info.name)
for name in edgefold.__all__:
    value = getattr(edgefold, name)
    assert value is first[name], name
    assert not isinstance(value, types.ModuleType), name
print(edgefold.__version__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "tests")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_unknown_public_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shp'"):
        _ = edgefold.shp
    assert set(edgefold.__all__) <= set(dir(edgefold))


def test_constraints_pin_every_requirement(project: dict[str, Any]) -> None:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    wanted = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    names = {requirement.split(">")[0].split("=")[0].strip().lower() for group in wanted for requirement in group}
    assert sorted(names - pinned) == []


def test_console_script(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"edgefold": "edgefold.cli:main"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    _copy_tracked(source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (made,) = out.glob("*.whl")
    return made


def _copy_tracked(target: Path) -> None:
    """What git knows of, with the links as links: what someone gets who clones the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        path = ROOT / name
        if not name or not (path.exists() or path.is_symlink()):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            (target / name).symlink_to(path.readlink())
        else:
            (target / name).write_bytes(path.read_bytes())


def test_the_wheel_holds_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    expected = set()
    for package, folder in FOLDERS.items():
        prefix = folder.relative_to(ROOT).as_posix() + "/"
        files = [
            name for name in tracked if name.startswith(prefix) and (ROOT / name).is_file() and not (ROOT / name).is_symlink()
        ]
        expected |= {package.replace(".", "/") + "/" + name.removeprefix(prefix) for name in files}
    assert sorted(expected - inside) == []
    assert "edgefold/py.typed" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    top = {name.split("/")[0] for name in inside if ".dist-info/" not in name}
    assert top == {"edgefold"}  # nothing that would collide in site-packages


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_pip_installs_the_project(tmp_path: Path, editable: bool) -> None:
    """``pip install .`` and ``-e .`` into a fresh environment; the packages that it needs are lent from this one by a .pth."""
    source = tmp_path / "source"
    source.mkdir()
    _copy_tracked(source)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site, here = (
        subprocess.run([exe, "-c", PURELIB], capture_output=True, text=True, check=True).stdout.strip()
        for exe in (python, sys.executable)
    )
    what = ["--editable", str(source)] if editable else [str(source)]
    command: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--no-deps", *what]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    # After the project in the search path, and without this environment's own .pth files (an editable Edgefold is one).
    (Path(site) / "zz-lent.pth").write_text(here + "\n")
    code = "import edgefold, edgefold.models.registry as r; print(edgefold.__file__); print([m.name for m in r.list_models()])"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(source if editable else tmp_path / "env"))
    version = subprocess.run([tmp_path / "env" / "bin" / "edgefold", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("edgefold ")
