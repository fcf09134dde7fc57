"""Converters print progress, log at import and warn on paths that they take themselves; the user sees none of it.

Python-level and C++-level output is captured at the file descriptors. It comes back as a note of the error when a
converter fails, and the error itself is one sentence that names the op when the cause is one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO

from edgefold.artifact import Format
from edgefold.errors import EdgefoldError, RuntimeFailure, UnsupportedError

# How each converter says that it has no rule for an op; the op is the group.
_UNSUPPORTED_OP = (
    re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'"),
    re.compile(r"Lowering not found: ([\w.]+)"),
    re.compile(r"Operator torch\._ops\.([\w.]+) is not in Core ATen opset"),
    re.compile(r"Missing out variants: \{'([\w.:]+)'"),
    re.compile(r"Missing operator: \[\d+\] ([\w.:]+)"),
)
_NOTE_LIMIT = 4000


@contextlib.contextmanager
def converter(tool: str, format: Format) -> Iterator[None]:
    """Run a converter silently and turn whatever it raises into one error of ours.

    Raises:
        UnsupportedError: the converter has no rule for an op; the message names it.
        RuntimeFailure: any other failure; the captured output is a note of the error.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            with _captured(log):
                yield
        except EdgefoldError:
            raise
        except Exception as error:
            failure = _translate(tool, format, error)
            failure.add_note(_tail(log))
            raise failure from error


def _translate(tool: str, format: Format, error: BaseException) -> EdgefoldError:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        for pattern in _UNSUPPORTED_OP:
            if match := pattern.search(str(cause)):
                return UnsupportedError(
                    f"op '{match.group(1)}' has no form in {format}; replace it in the model or leave the format out"
                )
    reason = next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), "")
    detail = f"{type(chain[-1]).__name__}: {reason}" if reason else type(chain[-1]).__name__
    return RuntimeFailure(f"{tool} could not write the network as {format} ({detail.rstrip('.')}); see the notes for its output")


def _tail(log: IO[str]) -> str:
    log.flush()
    log.seek(0)
    text = log.read().strip()
    return text[-_NOTE_LIMIT:] or "(the converter printed nothing)"


@contextlib.contextmanager
def _captured(log: IO[str]) -> Iterator[None]:
    """Send descriptors 1 and 2, Python's streams, warnings and logging to ``log``; all of it is as before afterwards."""
    handlers = list(logging.root.handlers)
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            stack.enter_context(_redirected(number, log.fileno()))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
            # logging.warning() without handlers installs one on the root logger.
            logging.root.handlers[:] = handlers
            log.flush()


@contextlib.contextmanager
def _redirected(number: int, target: int) -> Iterator[None]:
    try:
        saved = os.dup(number)
    except OSError:  # the process has no such stream (a service, a GUI)
        yield
        return
    try:
        os.dup2(target, number)
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)
