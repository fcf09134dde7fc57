"""What a model's name stands for, as one hash: the bytes of its file and of the files that belong to it.

    network.json       the record, the weights beside it, and the source that it was made of
    model.onnx         the file, and the files that its tensors' data lie in
    file.py:factory    the file, and the files and packages in its folder that it imports, and that these import
    hetnet-fmnist      the weights of the checkpoint

What Python code reads or imports by other means (a path in a string, ``importlib``, packages elsewhere) is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgefold.artifact import sha256_of

WEIGHTS_NAME: Final = "weights.safetensors"  # of a training run, and beside the record of a derived network
_CHECKPOINTS: Final = "edgefold.models.checkpoints"
_EXTERNAL: Final = 1  # TensorProto.EXTERNAL


def source_digest(name: str) -> str:
    """The SHA-256 of all that the name of a model stands for, in hexadecimal; empty where no file belongs to it.

    The names and the places of the files do not count, their order does.

    Args:
        name: as `edgefold.models.sources.load_source` takes it.
    """
    files, others = _parts(name, frozenset())
    if not files and not others:
        return ""
    state = hashlib.sha256()
    for path in files:
        state.update(sha256_of(path).encode())
    for digest in others:
        state.update(digest.encode())
    return state.hexdigest()


def _parts(name: str, seen: frozenset[Path]) -> tuple[list[Path], list[str]]:
    """The files of a name, and what else identifies it."""
    file = name.rpartition(":")[0]
    path = Path(file if file.endswith(".py") else name)
    if not path.is_file():
        checkpoint = Path(str(importlib.resources.files(_CHECKPOINTS))) / f"{path.name}.safetensors"
        return ([checkpoint] if path.name == name and checkpoint.is_file() else []), []
    if path.suffix == ".py":
        return list(_imported(path)), []
    if path.suffix == ".onnx":
        return [path, *_external(path)], []
    if path.suffix == ".json" and path.resolve() not in seen:
        return _derived(path, seen | {path.resolve()})
    return [path], []


def _derived(path: Path, seen: frozenset[Path]) -> tuple[list[Path], list[str]]:
    """The record of a network, its weights, and its source: a name with files of its own, or one of a zoo."""
    weights = path.with_name(WEIGHTS_NAME)
    own = [path, *([weights] if weights.is_file() else [])]
    try:
        source = str(json.loads(path.read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):  # it will be refused when it is loaded
        return own, []
    files, others = _parts(source, seen)
    return [*own, *files], [*others, source.rpartition(":")[2]]


def _imported(path: Path) -> Iterator[Path]:
    """A Python file and those of its folder that it imports, directly or not, each once."""
    folder, found = path.resolve().parent, [path.resolve()]
    for file in found:  # grows as it goes
        for name in sorted(_imports(file, folder)):
            found += [neighbour for neighbour in _modules(folder, name) if neighbour not in found]
    yield from found


def _imports(file: Path, folder: Path) -> set[str]:
    """The dotted names that a file imports, those relative to its package seen from ``folder``."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # it will be refused when it is run
        return set()
    names: set[str] = set()
    package = file.parent.relative_to(folder).parts if file.parent.is_relative_to(folder) else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split(".")))
            # `from package import module` names a module or something in one.
            names |= {module.strip("."), *(f"{module}.{alias.name}".strip(".") for alias in node.names)}
    return names


def _modules(folder: Path, name: str) -> Iterator[Path]:
    """The files that importing ``name`` runs, as far as they lie in ``folder``: of its packages and of the module itself."""
    place = folder
    for part in name.split("."):
        place = place / part
        for file in (place.with_name(f"{part}.py"), place / "__init__.py"):
            if part and file.is_file():
                yield file


def _external(path: Path) -> list[Path]:
    """The files beside an ONNX file in which the data of its tensors lie, in a fixed order."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):  # it will be refused when it is loaded
        return []
    tensors = [*_tensors(model.graph), *(tensor for function in model.functions for tensor in _tensors(function))]
    places = {
        entry.value
        for tensor in tensors
        if tensor.data_location == _EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [file for place in sorted(places) if (file := path.parent / place).is_file()]


def _tensors(graph: Any) -> Iterator[Any]:
    """The constant tensors of a graph or function and of the graphs inside its nodes."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g,) if attribute.HasField("g") else (*attribute.graphs,):
                yield from _tensors(inner)
