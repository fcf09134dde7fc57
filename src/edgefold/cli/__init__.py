"""The command line. Each command is a thin wrapper around one function of the public API.

Results go to stdout, everything else (progress, warnings, what converters print) to stderr. Exit codes: 0 all is well,
1 a check failed, 2 bad input, 3 a runtime or converter broke, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from edgefold.cli.app import app
    from edgefold.errors import EdgefoldError

    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except EdgefoldError as error:
        _fail(f"edgefold: {error}", error.exit_code)
    except MemoryError:
        _fail("edgefold: the machine ran out of memory; use a smaller model or fewer samples", 3)
    except Exception as error:
        if os.environ.get("EDGEFOLD_DEBUG"):
            raise
        text = f"edgefold: internal error: {type(error).__name__}: {error}; run again with EDGEFOLD_DEBUG=1 to see where"
        _fail(text, 3)


def _fail(message: str, exit_code: int) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(exit_code)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End like Ctrl-C does, so that temporary files go with the process."""
    sys.exit(128 + number)
