"""The one error tree.

    EdgefoldError
    ├── InputError (exit 2)         what the caller gave cannot be used
    │   ├── UsageError              options that do not go together, an unknown name
    │   ├── ModelError              not a model, wrong mode, NaN weights, wrong input shape
    │   ├── UnsupportedError        an op or a form that a format cannot express
    │   ├── DataError               calibration or evaluation data
    │   ├── ArtifactError           not an artifact, a hash that does not match
    │   ├── OutputError             exists already, cannot be written
    │   └── MissingExtraError       an optional package is not installed
    ├── CheckError (exit 1)         the work was done and a check on it failed
    └── RuntimeFailure (exit 3)     a runtime or a converter broke
        └── DeviceError             a device is out of reach or in a bad state

A message is one sentence that names the object, what was found, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgefoldError(Exception):
    """Base of all errors that Edgefold raises on purpose."""

    exit_code: ClassVar[int] = 3


class InputError(EdgefoldError):
    """What the caller gave cannot be used."""

    exit_code = 2


class UsageError(InputError):
    """Options that do not go together, or an unknown name."""


class ModelError(InputError):
    """Not a model, or a model in a state that cannot be shipped."""


class UnsupportedError(InputError):
    """An op or a form that the format cannot express."""


class DataError(InputError):
    """Calibration or evaluation data that cannot be used."""


class ArtifactError(InputError):
    """A file that is not an artifact, or whose content is not what was promised."""


class OutputError(InputError):
    """An output that exists already or cannot be written."""


class MissingExtraError(InputError):
    """An optional package is needed and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; install it with: pip install 'edgefold[{extra}]'"
        )


class CheckError(EdgefoldError):
    """The work was done and a check on the result failed."""

    exit_code = 1


class RuntimeFailure(EdgefoldError):  # noqa: N818  # 'RuntimeError' is Python's own
    """A runtime or a converter failed."""

    exit_code = 3


class DeviceError(RuntimeFailure):
    """A device is out of reach or in a state in which it cannot be used."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its final stop, to stand inside a sentence; its type if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list, with the nearest valid name."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of: {', '.join(names)}"
    return UsageError(f"unknown {kind} '{name}'; {hint}")
