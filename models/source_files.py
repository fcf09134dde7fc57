"""Models from files: the user's own Python code, and exported programs.

The user's file may help where a module does not tell its inputs: its function may return ``(module, example_inputs)``, the file
may hold ``example_inputs`` (a tensor, a tuple of tensors, a dictionary of those that ``forward`` takes by name, or a function
that gives one), or the module may have an attribute ``input_size`` (C, H, W). It may also hold ``preprocessing`` (an
`edgefold.Preprocessing`) and ``labels`` (the classes, in the order of the scores).
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # only to catch it: torch.export.load raises it for what is no program
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from edgefold.errors import DataError, EdgefoldError, ModelError, UsageError, first_line, unknown_name
from edgefold.models.by_position import ByPosition, refuse_by_name_only, take_by_position
from edgefold.models.loaded import LoadedModel, example_image
from edgefold.preprocess import Preprocessing


def from_python(path: Path, factory: str, kwargs: dict[str, Any]) -> LoadedModel:
    """What ``factory(**kwargs)`` of a Python file gives.

    Raises:
        ModelError: no such file, an error in it, no module, or no example inputs.
        UsageError: the file has no such function, or the function refuses an argument.
    """
    code = _run_file(path)
    make = _function(code, path, factory)
    try:
        made = make(**kwargs)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UsageError(f"'{path}:{factory}' cannot be called with {given or 'no arguments'}: {error}") from error
    except EdgefoldError:
        raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise ModelError(f"'{path}:{factory}' failed: {_told(error)}; mend it, or give it the arguments that it needs") from error
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"'{path}:{factory}' gave a value of type {type(module).__name__}, "
            "expected a torch.nn.Module or (module, example_inputs)"
        )
    return LoadedModel(
        factory,
        module,
        _inputs(f"{path}:{factory}", module, inputs, code),
        labels=_labels(path, code),
        preprocess=_preprocess(path, code),
    )


def given_by(source: str) -> Any:
    """What the function gives that ``file.py:function`` names.

    Raises:
        ModelError: no such file, or an error in it.
        UsageError: the file has no such function.
        DataError: the function raised something.
    """
    file, _, name = source.rpartition(":")
    function = _function(_run_file(Path(file)), Path(file), name)
    with data_of(source):
        return function()


@contextmanager
def data_of(source: str) -> Iterator[None]:
    """Around the code of a user's function that gives data: what it raises becomes an error about ``source``.

    Raises:
        DataError: the code raised something.
    """
    try:
        yield
    except EdgefoldError:
        raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise DataError(f"'{source}' failed: {_told(error)}; mend the function") from error


def _told(error: BaseException) -> str:
    """The type of an error and the first line of its message, if it has one."""
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text}"


def _function(code: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    found = getattr(code, name, None)
    if callable(found):
        made: Callable[..., Any] = found
        return made
    names = [key for key, value in vars(code).items() if callable(value) and getattr(value, "__module__", None) == code.__name__]
    raise unknown_name(f"function of {path}", name, names)


def _preprocess(path: Path, code: ModuleType) -> Preprocessing | None:
    found = getattr(code, "preprocessing", None)
    if found is not None and not isinstance(found, Preprocessing):
        raise ModelError(f"'{path}' has a preprocessing of type {type(found).__name__}, expected an edgefold.Preprocessing")
    return found


def _labels(path: Path, code: ModuleType) -> tuple[str, ...] | None:
    found = getattr(code, "labels", None)
    if found is None:
        return None
    if not isinstance(found, (tuple, list)) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"'{path}' has labels that are no list of names; expected the classes in the order of the scores")
    return tuple(found)


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"there is no file '{path}'; give the path of a Python file, as in 'model.py:make_model'")
    name = f"edgefold_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"'{path}' cannot be imported as Python code; give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.export look classes up there
    sys.path.insert(0, str(path.resolve().parent))  # the file may import its neighbours, as when run by itself
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        del sys.modules[name]
        raise ModelError(f"'{path}' failed when it was imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _inputs(source: str, module: nn.Module, given: object, code: ModuleType) -> tuple[Tensor, ...]:
    found = given if given is not None else getattr(code, "example_inputs", None)
    if callable(found) and not isinstance(found, Tensor):
        try:
            found = found()
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            raise ModelError(f"example_inputs() of '{source}' failed: {_told(error)}; mend the function") from error
    if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
        take_by_position(module, tuple(map(str, found)), source)
        return tuple(found.values())
    refuse_by_name_only(module, source)
    size = getattr(module, "input_size", None)
    if found is None and isinstance(size, tuple) and all(isinstance(side, int) for side in size):
        return (example_image(size),)
    if isinstance(found, Tensor):
        return (found,)
    if isinstance(found, (tuple, list)) and found and all(isinstance(value, Tensor) for value in found):
        return tuple(found)
    problem = "no example inputs" if found is None else f"example inputs of type {type(found).__name__}"
    raise ModelError(
        f"'{source}' has {problem}; return (module, example_inputs) with a tensor, a tuple of tensors or, where "
        "forward takes them by name, a dictionary, or define example_inputs in the file"
    )


def from_exported(path: Path) -> LoadedModel:
    """The program of a ``.pt2`` file that the caller trusts.

    Raises:
        ModelError: not a ``.pt2``, saved without example inputs, or exported in train mode.
    """
    try:
        with _torch_export_quiet():
            program = torch.export.load(path)
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError, UnpicklingError, zipfile.BadZipFile) as error:
        raise ModelError(f"'{path}' is not an exported program: {first_line(error)}; save it with torch.export.save") from error
    if program.example_inputs is None:
        raise ModelError(f"'{path}' holds no example inputs; export it anew with torch.export.export(module, example_inputs)")
    arguments, keywords = program.example_inputs
    inputs = (*arguments, *keywords.values())
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise ModelError(f"'{path}' takes inputs that are not tensors; expected tensors only")
    _refuse_train_mode(path, program)
    module = program.module()
    return LoadedModel(path.stem, ByPosition(module, tuple(keywords)) if keywords else module, inputs)


@contextmanager
def _torch_export_quiet() -> Iterator[None]:
    """Without torch's notes on its file format, and without the traceback that it logs before it raises."""
    logger = logging.getLogger("torch.export")
    was, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was


def _refuse_train_mode(path: Path, program: torch.export.ExportedProgram) -> None:
    flags = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}  # op -> position of its train flag
    for node in program.graph.nodes:
        position = flags.get(node.target)
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise ModelError(
                f"'{path}' was exported in train mode ('{node.name}'); call .eval() on the module and export it anew"
            )
