"""Asks a runtime how it would run a file: ``python -I probe.py onnx|tflite MODEL [OUT]``, in a process of its own.

``onnx`` writes the graph that ONNX Runtime runs to OUT. ``tflite`` prints one JSON line: for each node its operator name, inputs
and outputs, delegate calls included. This file needs nothing but the standard library and the one runtime; a
file that crashes the runtime takes only this process with it.
"""

from __future__ import annotations

import json
import sys


def optimize_onnx(model: str, out: str) -> None:
    """Load the model, which writes its optimized form."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = out
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def list_tflite(model: str) -> None:
    """Load the model and print its nodes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    nodes = [
        [node["op_name"], [int(i) for i in node["inputs"]], [int(i) for i in node["outputs"]]]
        for node in interpreter._get_ops_details()
    ]
    sys.stdout.write(json.dumps(nodes) + "\n")


if __name__ == "__main__":
    sys.path[:0] = json.loads(sys.argv[2])
    if sys.argv[1] == "onnx":
        optimize_onnx(*sys.argv[3:])
    else:
        list_tflite(*sys.argv[3:])
