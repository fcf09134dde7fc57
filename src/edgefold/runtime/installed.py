"""Which runtimes can be loaded here: ``python -I -c SOURCE``, sent to a board as the text of this file.

Being installed is not enough: a runtime may lack a library of the system, or stop at an instruction that the CPU does not have.
So each is really imported, in a process of its own that may crash or hang. The answer is one line a format, ``@runtime onnx ok``
or ``@runtime onnx REASON``.

The standard library only, and the syntax of Python 3.6, so that an old one can say that it is old.
"""

import os
import signal
import sys
from importlib.util import find_spec

OLDEST = (3, 9)
# By format, the ways to have it; the first that is installed counts, as in the worker, and all its modules are needed.
WAYS = {
    "onnx": [["onnxruntime"]],
    "tflite": [["ai_edge_litert.interpreter"], ["tflite_runtime.interpreter"]],
    # In this order: the bindings find the libraries of torch loaded, or fail.
    "executorch": [["torch", "executorch.extension.pybindings._C", "executorch.kernels.quantized"]],
}
LIMIT_S = 100


def reason(form: str) -> str:
    """Loads a runtime; ``ok``, or why it cannot be used."""
    if sys.version_info < OLDEST:
        return f"Python is {sys.version_info[0]}.{sys.version_info[1]}, expected 3.9 or newer"
    installed = [way for way in WAYS[form] if find_spec(way[-1].split(".")[0]) is not None]
    if not installed:
        return "not installed"
    try:
        for module in ["numpy", *installed[0]]:
            __import__(module)
    except BaseException as error:
        # Whatever stops an import is the answer.
        return " ".join((type(error).__name__ + ": " + str(error)).split())[:300]
    return "ok"


def ask(form: str, answer: int) -> None:
    """Writes a format's line to a file descriptor, whatever becomes of the import."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        os.write(answer, f"@runtime {form} {reason(form)}\n".encode())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        said = f"took longer than {LIMIT_S} s" if number == signal.SIGALRM else f"died of signal {number}"
        os.write(answer, f"@runtime {form} its import {said}\n".encode())


def main() -> None:
    """Answers for each format; what a runtime prints itself goes to stderr."""
    answer = os.dup(1)
    os.dup2(2, 1)
    for form in WAYS:
        ask(form, answer)


if __name__ == "__main__":
    main()
