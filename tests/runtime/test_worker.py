"""The worker's protocol: one line of JSON, whatever else a runtime prints."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefold.artifact import Format
from edgefold.errors import ArtifactError, RuntimeFailure, UsageError
from edgefold.runtime import worker_timing
from edgefold.runtime.protocol import INSTALLED, RACE, WORKER_FILES, ask, find_answer, python_path, read_answer, worker_argv
from edgefold.runtime.session import save_inputs

BENCH: dict[str, Any] = {"min_samples": 5, "min_time_s": 0.001, "warmup_max_s": 0.2, "max_s": 5.0}


def job(tiny: Path, mode: str, name: str = "tiny.onnx", **more: Any) -> dict[str, Any]:
    form = {".onnx": "onnx", ".tflite": "tflite", ".pte": "executorch"}[Path(name).suffix]
    return {"mode": mode, "format": form, "model": str(tiny / name), "threads": 1, **more}


def test_bench_keeps_every_sample_and_writes_the_outputs(
    tiny: Path, tmp_path: Path, images: NDArray[np.float32], expected: NDArray[np.float64]
) -> None:
    names = save_inputs(tmp_path, [images[:, None]])
    answer = ask(job(tiny, "bench", inputs=names, **BENCH), tmp_path, timeout_s=60)
    assert answer["runtime"].startswith("onnxruntime 1.")
    assert len(answer["samples_ns"]) >= 5
    assert min(answer["samples_ns"]) > 0
    assert answer["load_ns"] > 0
    assert answer["first_ns"] > 0
    assert answer["affinity"] == sorted(os.sched_getaffinity(0))
    np.testing.assert_allclose(np.load(tmp_path / answer["outputs"][0])[0], expected[:1], atol=1e-5)


@pytest.mark.parametrize("cores", [[9999], [0, 9999]])
@pytest.mark.parametrize("racing", [False, True])
def test_cores_that_there_are_not_are_named(tiny: Path, tmp_path: Path, cores: list[int], racing: bool) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job(tiny, "bench", cores=cores, sys_path=python_path())))
    argv = worker_argv(str(path))
    done = subprocess.run([*argv[:2], str(RACE), argv[-1]] if racing else argv, capture_output=True, timeout=60)
    assert done.returncode == 1
    with pytest.raises(UsageError, match=r"^cores '9999' cannot be used: the device has cores 0"):
        read_answer(done.returncode, done.stdout, done.stderr, model="m", format=Format.ONNX)


def test_a_process_is_on_the_cores_that_it_was_given(tiny: Path, tmp_path: Path) -> None:
    names = save_inputs(tmp_path, [np.zeros((1, 1, 3, 16, 16), np.float32)])
    core = max(os.sched_getaffinity(0))
    answer = ask(job(tiny, "bench", inputs=names, cores=[core], **BENCH), tmp_path, timeout_s=60)
    assert answer["affinity"] == [core]


def test_memory_pass_counts_the_process_and_what_it_held_before_the_model(tiny: Path, tmp_path: Path) -> None:
    names = save_inputs(tmp_path, [np.zeros((1, 1, 3, 16, 16), np.float32)])
    answer = ask(job(tiny, "memory", inputs=names), tmp_path, timeout_s=60)
    assert answer["peak_rss_bytes"] > answer["base_rss_bytes"] > 2**20


def test_stdout_has_the_answer_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job(tiny, "describe", "tiny.tflite")))
    done = subprocess.run(worker_argv(str(path)), capture_output=True, timeout=60)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["inputs"][0]["shape"] == [1, 16, 16, 3]
    # LiteRT announces its delegate; that must not reach stdout.
    assert b"XNNPACK" in done.stderr


def test_a_file_that_the_runtime_refuses(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeFailure, match=r"the onnx runtime refused 'x.onnx': .*InvalidProtobuf"):
        ask(job(tmp_path, "describe", "x.onnx"), tmp_path, timeout_s=60)


def test_wrong_number_of_inputs(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"0 inputs given, the file has 1"):
        ask(job(tiny, "run", inputs=[]), tmp_path, timeout_s=60)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "message"),
    [
        (-11, b"", b"", r"crashed on 'm.onnx' \(SIGSEGV\)"),
        (134, b"", b"", r"crashed on 'm.onnx' \(SIGABRT\)"),
        (1, b"garbage\n\xff\xfe", b"why\n", r"gave no answer for 'm.onnx' \(exit code 1, it said: why\)"),
        (0, b'{"a": 1}\n[1]\n{broken', b"", r"gave no answer"),
        (1, b'{"edgefold": 1, "ok": false, "kind": "missing", "error": "none"}', b"", r"no onnx runtime for 'm.onnx': none"),
        (3, b'{"edgefold": 1, "ok": true}', b"", r"refused 'm.onnx': exit code 3"),
    ],
)
def test_answers_that_are_none(code: int, stdout: bytes, stderr: bytes, message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        read_answer(code, stdout, stderr, model="m.onnx", format=Format.ONNX)


def test_noise_around_an_answer_is_skipped() -> None:
    noise = b'INFO: loaded\n{"edgefold": 1, "ok": true, "x": 2}\n{"level": "info"}\ndone'
    assert find_answer(noise) == {"edgefold": 1, "ok": True, "x": 2}


def test_warm_up_ends_when_the_times_have_settled() -> None:
    settle = worker_timing.WarmUp()
    falling = [int(1000 * (1 + 2 * 0.97**n)) for n in range(2000)]
    ends = next(n for n, sample in enumerate(falling) if settle.add(sample))
    # The fast average follows the samples; it must not agree while they still fall by more than the tolerance.
    assert ends > 100
    assert falling[ends - worker_timing.AGREEING] < 1000 * (1 + 2 * worker_timing.TOLERANCE)


def test_warm_up_of_rising_times_does_not_end() -> None:
    settle = worker_timing.WarmUp()
    assert not any(settle.add(int(1000 * 1.01**n)) for n in range(500))


def test_two_models_are_timed_in_turns_and_both_write_their_outputs(tiny: Path, tmp_path: Path) -> None:
    folders = [tmp_path / side for side in ("a", "b")]
    for folder, name in zip(folders, ("tiny.tflite", "tiny-int8.tflite"), strict=True):
        folder.mkdir()
        dtype = np.int8 if "int8" in name else np.float32
        names = save_inputs(folder, [np.zeros((1, 1, 16, 16, 3), dtype)])
        (folder / "job.json").write_text(json.dumps(job(tiny, "bench", name, inputs=names, sys_path=python_path(), **BENCH)))
    argv = worker_argv(*(str(folder / "job.json") for folder in folders))
    done = subprocess.run(argv, capture_output=True, timeout=60)
    answer = read_answer(done.returncode, done.stdout, done.stderr, model="a", format=Format.TFLITE)
    assert len(answer["sides"]) == 2
    for side in answer["sides"]:
        assert sum(side["turns"]) == len(side["samples_ns"]) >= 5
        assert len(side["turns"]) % 2 == 0
        assert side["outputs"] == ["output_0.npy"]
    assert np.load(folders[0] / "output_0.npy").dtype == np.float32
    assert np.load(folders[1] / "output_0.npy").dtype == np.int8


@pytest.mark.parametrize("path", [*WORKER_FILES, INSTALLED], ids=lambda path: path.stem)
def test_the_worker_is_python_3_9_and_needs_only_numpy(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imports = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    sources = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert imports | sources <= {
        "__future__",
        "collections",
        "ctypes",
        "gc",
        "importlib",
        "json",
        "numpy",
        "os",
        "pathlib",
        "platform",
        "signal",
        "subprocess",
        "sys",
        "threading",
        "time",
        "typing",
    }


def test_the_turns_of_a_pair_begin_with_runs_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two models is slow for six runs after the other: no sample of its turns says so."""
    runs: list[str] = []

    def sample(model: str, inputs: list[Any]) -> int:
        runs.append(model)
        row = next((place for place, name in enumerate(reversed(runs)) if name != model), len(runs))
        return 1_000_000 + 100_000 * max(0, 7 - row)

    monkeypatch.setattr(worker_timing, "sample", sample)
    job = {"warmup_max_s": 5.0, "min_samples": 10, "min_time_s": 0.0, "max_s": 60.0}
    first, second = worker_timing.pair(["a", "b"], [[], []], [job, job])
    assert set(first["samples_ns"]) == set(second["samples_ns"]) == {1_000_000}
    assert sum(first["turns"]) == len(first["samples_ns"]) >= 10
