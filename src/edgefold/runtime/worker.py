"""Loads one model file in its runtime and describes, runs or times it: ``python -I worker.py JOB.json``.

With a second job it times both models in turns. Its parts (`worker_timing`) lie beside this file.

This file runs in a process of its own, on the host and on boards that have Python: a runtime that crashes takes only this process
with it. So it needs nothing but the standard library, numpy and the one runtime that the job names, and it keeps to the
syntax of Python 3.9. The native runner speaks the same protocol.

The job is one JSON object; its paths are relative to its own folder::

    {"mode": "describe" | "run" | "bench" | "memory" | "profile" | "roofline", "format": "onnx" | "tflite" | "executorch",
     "model": "m.onnx", "threads": 1, "cores": [0, 1], "inputs": ["input_0.npy", ...],
     "min_samples": 64, "min_time_s": 0.5, "warmup_max_s": 12.0, "max_s": 24.0, "limit_s": 84.0}

An input file holds (samples, *the file's own shape); ``run`` writes ``output_<i>.npy`` of (samples, *shape) beside the job,
``bench`` times the first sample only and writes its outputs. The answer is one line of JSON on stdout,
``{"edgefold": 1, "ok": true, ...}``, or ``{"edgefold": 1, "ok": false, "kind": "missing" | "model" | "job" | "cores",
"error": "..."}`` and exit code 1. What a runtime prints itself goes to stderr. All times are ns of a monotonic clock.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = 1
Spec = dict[str, Any]  # name, shape (-1: dynamic), dtype, scale, zero_point

MEMORY_RUNS, PROFILE_RUNS = 8, 30


class MissingRuntimeError(Exception):
    """No runtime for the format is installed here."""

    kind = "missing"


def first_module(*names: str) -> Any:
    """The first of these modules that is installed."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name + ".").startswith(error.name + "."):
                raise
    raise MissingRuntimeError("none of these is installed: " + ", ".join(name.split(".")[0] for name in names))


def version_of(*distributions: str) -> str:
    """Name and version of the first of these distributions that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    for name in distributions:
        try:
            return name + " " + version(name)
        except PackageNotFoundError:
            continue
    return distributions[0] + " unknown"


def part(name: str) -> Any:
    """One of the worker's other files, which lie beside it; an isolated interpreter does not look there."""
    known = "edgefold_" + name
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, Path(__file__).with_name(name + ".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    spec.loader.exec_module(module)
    return module


ONNX_DTYPES = {"float": "float32", "double": "float64"}
# c10::ScalarType
TORCH_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}


class JobError(Exception):
    """The job itself does not fit the file."""

    kind = "job"


class OnnxModel:
    """A model in ONNX Runtime's CPU provider."""

    def __init__(self) -> None:
        self.module = first_module("onnxruntime")
        self.runtime = "onnxruntime " + self.module.__version__

    def load(self, path: str, threads: int, trace: str = "") -> None:
        """Loads the file; this is what ``load_ns`` times. ``trace`` is the stem of a file for the times of ops."""
        options = self.module.SessionOptions()
        options.enable_profiling = bool(trace)
        options.profile_file_prefix = trace
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if part("worker_x86").needs_exact_kernels(path):
            options.add_session_config_entry("session.x64quantprecision", "1")
        self.session = self.module.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()

    def spec(self, value: Any) -> Spec:
        """One input or output."""
        dtype = value.type[len("tensor(") : -1] if value.type.startswith("tensor(") else value.type
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        return {"name": value.name, "shape": shape, "dtype": ONNX_DTYPES.get(dtype, dtype)}

    def specs(self) -> list[list[Spec]]:
        """The file's inputs and outputs."""
        return [[self.spec(value) for value in values] for values in (self.session.get_inputs(), self.session.get_outputs())]

    def bind(self, inputs: list[Any]) -> None:
        """Sets the inputs of the next run."""
        for position, value in enumerate(self.session.get_inputs()):
            self.binding.bind_cpu_input(value.name, inputs[position])
        for value in self.session.get_outputs():
            self.binding.bind_output(value.name, "cpu")

    def invoke(self) -> None:
        """Runs once; this is what a sample times."""
        self.session.run_with_iobinding(self.binding)

    def outputs(self) -> list[Any]:
        """The outputs of the last run; they may share its memory."""
        return list(self.binding.copy_outputs_to_cpu())

    def trace(self) -> dict[str, Any]:
        """The name of the file with every run of every op."""
        return {"ort_trace": Path(self.session.end_profiling()).name}


class TfliteModel:
    """A model in LiteRT's interpreter (or in tflite-runtime's: the same API under its old name)."""

    def __init__(self) -> None:
        self.module = first_module("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
        is_new = self.module.__name__.startswith("ai_edge_litert")
        self.runtime = version_of("ai-edge-litert" if is_new else "tflite-runtime")

    def load(self, path: str, threads: int) -> None:
        """Loads the file; this is what ``load_ns`` times."""
        self.interpreter = self.module.Interpreter(path, num_threads=threads)
        self.interpreter.allocate_tensors()

    def spec(self, details: Any) -> Spec:
        """One input or output."""
        signature = details.get("shape_signature")
        shape = signature if signature is not None and len(signature) else details["shape"]
        spec = {"name": details["name"], "shape": [int(n) for n in shape], "dtype": np.dtype(details["dtype"]).name}
        scale, zero_point = details["quantization"]
        if scale:
            spec.update(scale=float(scale), zero_point=int(zero_point))
        return spec

    def specs(self) -> list[list[Spec]]:
        """The file's inputs and outputs."""
        sides = (self.interpreter.get_input_details(), self.interpreter.get_output_details())
        return [[self.spec(details) for details in side] for side in sides]

    def bind(self, inputs: list[Any]) -> None:
        """Sets the inputs of the next run."""
        details = self.interpreter.get_input_details()
        resized = False
        for position, detail in enumerate(details):
            if tuple(detail["shape"]) != inputs[position].shape:
                self.interpreter.resize_tensor_input(detail["index"], inputs[position].shape)
                resized = True
        if resized:
            self.interpreter.allocate_tensors()
        for position, detail in enumerate(details):
            self.interpreter.set_tensor(detail["index"], inputs[position])

    def invoke(self) -> None:
        """Runs once; this is what a sample times."""
        self.interpreter.invoke()

    def outputs(self) -> list[Any]:
        """The outputs of the last run; they may share its memory."""
        return [self.interpreter.get_tensor(detail["index"]) for detail in self.interpreter.get_output_details()]


class ExecutorchModel:
    """A program's method "forward" in ExecuTorch's Python bindings, which need torch for their tensors."""

    pool_threads = 0

    def __init__(self) -> None:
        self.torch = first_module("torch")  # first: the bindings find its libraries loaded, or fail
        self.module = first_module("executorch.extension.pybindings._C")
        first_module("executorch.kernels.quantized")  # for quantized ops that no delegate took
        self.runtime = version_of("executorch")

    def load(self, path: str, threads: int, trace: str = "") -> None:
        """Loads the file; this is what ``load_ns`` times. With ``trace`` the times of ops are kept, for a file of that stem."""
        # The pool has a thread a core from the start, and a delegate keeps the pool that it finds when it is loaded: it is set
        # once in a process, before the first model.
        if ExecutorchModel.pool_threads != threads:
            self.module._unsafe_reset_threadpool(threads)
            ExecutorchModel.pool_threads = threads
        self.program = self.module._load_program(path, enable_etdump=bool(trace))
        self.dump = trace
        self.method = self.program.load_method("forward")

    def spec(self, name: str, info: Any) -> Spec:
        """One input or output."""
        return {"name": name, "shape": list(info.sizes()), "dtype": TORCH_DTYPES.get(info.dtype(), "unknown")}

    def specs(self) -> list[list[Spec]]:
        """The file's inputs and outputs."""
        meta = self.method.method_meta()
        return [
            [self.spec(f"input_{i}", meta.input_tensor_meta(i)) for i in range(meta.num_inputs())],
            [self.spec(f"output_{i}", meta.output_tensor_meta(i)) for i in range(meta.num_outputs())],
        ]

    def bind(self, inputs: list[Any]) -> None:
        """Sets the inputs of the next run."""
        self.method.set_inputs([self.torch.from_numpy(array) for array in inputs])

    def invoke(self) -> None:
        """Runs once; this is what a sample times."""
        self.method.execute()

    def outputs(self) -> list[Any]:
        """The outputs of the last run; they may share its memory."""
        return [tensor.contiguous().numpy() for tensor in self.method.get_outputs()]

    def trace(self) -> dict[str, Any]:
        """The name of the ETDump with the times of the ops; only ExecuTorch's own tools read it."""
        self.program.write_etdump_result_to_file(self.dump + ".etdp", self.dump + ".bin")
        return {"etdump": Path(self.dump).name + ".etdp"}


MODELS: dict[str, Callable[[], Any]] = {"onnx": OnnxModel, "tflite": TfliteModel, "executorch": ExecutorchModel}


def proc_bytes(name: str, key: str) -> int:
    """A field of a file in /proc/self, in bytes; 0 where the kernel does not tell. Unlike getrusage, status counts since exec
    only."""
    try:
        lines = Path("/proc/self", name).read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def check_inputs(specs: list[Spec], arrays: list[Any], upper_bounds: bool) -> None:
    """Raises JobError where the stacked inputs do not fit the file.

    With ``upper_bounds`` a batch may be smaller than the file's, which may be its limit: the runtime itself tells.
    """
    if len(specs) != len(arrays):
        raise JobError(f"{len(arrays)} inputs given, the file has {len(specs)}")
    for position, spec in enumerate(specs):
        array = arrays[position]
        sizes = list(array.shape[1:])
        fits = len(sizes) == len(spec["shape"])
        if fits and upper_bounds and sizes:
            sizes[0] = max(sizes[0], spec["shape"][0])
        fits = fits and all(want in (-1, sizes[axis]) for axis, want in enumerate(spec["shape"]))
        if not fits or str(array.dtype) != spec["dtype"]:
            wanted = f"{spec['dtype']} {spec['shape']}"
            raise JobError(f"input '{spec['name']}' is {array.dtype} {list(array.shape[1:])}, the file wants {wanted}")


def run_all(model: Any, arrays: list[Any]) -> list[Any]:
    """The outputs for every sample, stacked."""
    samples = min(len(array) for array in arrays) if arrays else 1
    results: list[list[Any]] = []
    for sample in range(samples):
        model.bind([np.ascontiguousarray(array[sample]) for array in arrays])
        model.invoke()
        results.append([np.array(output) for output in model.outputs()])  # a copy: the next run may reuse the memory
    return [np.stack([result[position] for result in results]) for position in range(len(results[0]))]


def begin(job: dict[str, Any], limit_s: float) -> None:
    """Sets what holds for the whole process: its time limit, cores and threads."""
    if limit_s:
        # Ends this process also when whoever asked is gone, and while a runtime hangs in C.
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    part("worker_cores").pin(job.get("cores", []))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(job.get("threads", 1))


class Loaded:
    """A model with its job and inputs, ready to run."""

    def __init__(self, job: dict[str, Any], folder: Path) -> None:
        self.job, self.folder = job, folder
        self.model = MODELS[job["format"]]()
        self.base_rss = proc_bytes("status", "VmRSS")
        arguments: tuple[Any, ...] = (str(folder / job["model"]), int(job.get("threads", 1)))
        if job["mode"] == "profile":
            if self.model.runtime.startswith("ai-edge-litert"):
                self.model = part("worker_trace").TracedLitert(self.model)
            if not hasattr(self.model, "trace"):
                raise JobError(f"{self.model.runtime} does not tell the times of ops")
            arguments += (str(folder / "trace"),)
        load_ns = part("worker_timing").timed(lambda: self.model.load(*arguments))
        self.result: dict[str, Any] = {"mode": job["mode"], "runtime": self.model.runtime, "load_ns": load_ns}
        self.specs = self.model.specs()
        self.arrays = [np.load(folder / name, allow_pickle=False) for name in job.get("inputs", [])]
        if job["mode"] != "describe":
            check_inputs(self.specs[0], self.arrays, job["format"] == "executorch")
        self.first = [np.ascontiguousarray(array[0]) for array in self.arrays if len(array)]

    def once(self) -> None:
        """Binds the inputs again and runs: a runtime may plan other data into their memory."""
        self.model.bind(self.first)
        self.model.invoke()

    def answer(self, stacked: list[Any] | None = None) -> dict[str, Any]:
        """The result, with the outputs (by default those of the last run) in files beside the job."""
        stacked = stacked or [np.array(output)[None] for output in self.model.outputs()]
        self.result["outputs"] = [f"output_{position}.npy" for position in range(len(stacked))]
        for position, name in enumerate(self.result["outputs"]):
            np.save(self.folder / name, stacked[position])
        return self.result


def work(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Does one job."""
    begin(job, job.get("limit_s", 0))
    mode = job["mode"]
    if mode == "roofline":
        found: dict[str, Any] = part("worker_roofline").measure(job)
        return found
    one = Loaded(job, folder)
    if mode == "describe":
        return dict(one.result, inputs=one.specs[0], outputs=one.specs[1])
    if mode == "run":
        return one.answer(run_all(one.model, one.arrays))
    if mode == "bench":
        one.result.update(part("worker_timing").bench(one.model, one.first, job), affinity=part("worker_cores").affinity())
    elif mode == "profile":
        for _ in range(PROFILE_RUNS):
            one.once()
        one.result.update(one.model.trace())
    elif mode == "memory":
        for _ in range(MEMORY_RUNS):
            one.once()
        peak, pss = proc_bytes("status", "VmHWM"), proc_bytes("smaps_rollup", "Pss")
        one.result.update(peak_rss_bytes=peak, base_rss_bytes=one.base_rss, pss_bytes=pss)
    return one.answer()


def work_pair(jobs: list[dict[str, Any]], folders: list[Path]) -> dict[str, Any]:
    """Times two models in turns."""
    begin(jobs[0], sum(job.get("limit_s", 0) for job in jobs))
    sides = [Loaded(job, folders[position]) for position, job in enumerate(jobs)]
    times = part("worker_timing").pair([side.model for side in sides], [side.first for side in sides], jobs)
    for position, side in enumerate(sides):
        side.result.update(times[position])
    return {"mode": "pair", "runtime": sides[0].model.runtime, "sides": [side.answer() for side in sides]}


def failure(error: Exception) -> dict[str, Any]:
    """The answer that says what went wrong."""
    kind = "job" if isinstance(error, KeyError) else getattr(error, "kind", "model")
    # Whatever a runtime throws at a file is the answer to the question whether it can run that file.
    return {"ok": False, "kind": kind, "error": f"{type(error).__name__}: {error}" if kind == "model" else str(error)}


def main(argv: list[str]) -> int:
    """Answers one job; 0 when it was done."""
    # Runtimes print to stdout from C++. The answer gets the real one, all else goes to stderr.
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        jobs = [json.loads(Path(name).read_text(encoding="utf-8")) for name in argv[1:]]
        folders = [Path(name).resolve().parent for name in argv[1:]]
        sys.path.extend(path for path in jobs[0].get("sys_path", []) if path not in sys.path)
        result = dict(work_pair(jobs, folders) if len(jobs) > 1 else work(jobs[0], folders[0]), ok=True)
    except Exception as error:
        result = failure(error)
    answer.write(json.dumps(dict(result, edgefold=PROTOCOL)) + "\n")
    answer.flush()
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
