"""Writing a bundle and opening it again."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgefold.artifact import Artifact, Format, Precision, sha256_of
from edgefold.bundle import results as results_module
from edgefold.bundle.card import model_card
from edgefold.bundle.manifest import Calibration, Manifest
from edgefold.bundle.reader import Prediction, load_bundle
from edgefold.bundle.writer import Contract, write_bundle, zip_path
from edgefold.errors import ArtifactError, DataError, OutputError, UsageError
from edgefold.preprocess import Preprocessing
from edgefold.report.content import Failure, Shipment, Variant
from edgefold.runtime.session import describe

LABELS = tuple(f"label {i}" for i in range(10))
CONTRACT = Contract(
    preprocessing=Preprocessing(28, 28, (0.286,), (0.353,), "gray"),
    labels=LABELS,
    calibration=Calibration(samples=100, sha256="0" * 64, random=False, source="the training set"),
    tools={"torch": "2.0"},
    license="MIT",
    card_notes=("Trained on made-up data.",),
)


def test_what_is_written_is_what_is_read(shipment: Shipment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_bundle(shipment, CONTRACT, out)

    for path in (out, zip_path(out)):
        with load_bundle(path) as bundle:
            assert bundle.manifest == written
            assert bundle.names == tuple(variant.name for variant in shipment.variants)
            again = bundle.shipment
            for found, made in zip(again.variants, shipment.variants, strict=True):
                assert found.artifact is not None
                assert made.artifact is not None
                assert found.artifact.path.read_bytes() == made.artifact.path.read_bytes()
                assert replace(found, artifact=made.artifact) == made
            assert replace(again, variants=shipment.variants) == shipment
            assert bundle.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_manifest_promises_every_file_but_the_results(shipment: Shipment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = write_bundle(shipment, CONTRACT, out)

    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    promised = {file.path: file for file in manifest.payload}
    assert {path for path in there if not path.startswith("results/")} == {*promised, "manifest.json"}
    for path, file in promised.items():
        assert (file.size_bytes, file.sha256) == ((out / path).stat().st_size, sha256_of(out / path))
    assert Manifest.model_validate_json((out / "manifest.json").read_bytes()) == manifest


def test_the_card_says_what_matters(shipment: Shipment, tmp_path: Path) -> None:
    write_bundle(shipment, replace(CONTRACT, calibration=Calibration(samples=8, sha256="0" * 64, random=True)), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    for words in (
        "# hetnet-test",
        "6 of 6 artifacts",
        "| tflite-int8 |",
        "random data",
        "Licence: MIT",
        "made-up data",
        "label 9",
        "28×28",
    ):
        assert words in card
    assert 'bundle.run("executorch-int8", image)' in card
    assert 'load_bundle("PATH")' in card, "the zip has the name of the folder, which need not be the network's"
    assert "x64quantprecision" not in card


def test_the_card_warns_of_a_file_that_needs_vnni(shipment: Shipment, tmp_path: Path) -> None:
    first = next(variant.artifact for variant in shipment.variants if variant.artifact is not None)
    marked = tmp_path / first.path.name
    marked.write_bytes(first.path.read_bytes() + b'{"x86":"vnni"}')
    variants = tuple(
        replace(variant, artifact=replace(first, path=marked)) if variant.artifact is first else variant
        for variant in shipment.variants
    )
    card = model_card(replace(shipment, variants=variants), CONTRACT)
    assert "`session.x64quantprecision` to 1" in card


def test_equal_content_gives_an_equal_zip(shipment: Shipment, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(shipment, CONTRACT, tmp_path / name)
        os.utime(tmp_path / name / "manifest.json", (1, 1))
    assert zip_path(tmp_path / "a").read_bytes() == zip_path(tmp_path / "b").read_bytes()


def test_the_zip_holds_the_files_of_the_folder(shipment: Shipment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(shipment, CONTRACT, out)
    with zipfile.ZipFile(zip_path(out)) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    assert content == {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_failed_variant_is_told_and_not_shipped(shipment: Shipment, tmp_path: Path) -> None:
    failed = Variant(
        "onnx-int8", Format.ONNX, Precision.INT8, failure=Failure("emit", "RuntimeFailure", "converter broke; report it")
    )
    changed = replace(shipment, variants=tuple(failed if v.name == "onnx-int8" else v for v in shipment.variants))
    write_bundle(changed, CONTRACT, tmp_path / "out")
    bundle = load_bundle(tmp_path / "out")

    assert "onnx-int8" not in bundle.names
    assert failed in bundle.shipment.variants
    assert not bundle.shipment.passed
    assert "converter broke" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_force_replaces_a_bundle_and_nothing_else(shipment: Shipment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(shipment, CONTRACT, out)
    (out / "results" / "own.txt").write_text("old")
    with pytest.raises(OutputError, match="--force"):
        write_bundle(shipment, CONTRACT, out)
    write_bundle(shipment, CONTRACT, out, force=True)
    assert not (out / "results" / "own.txt").exists()

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("ten years")
    with pytest.raises(OutputError, match="is not a bundle"):
        write_bundle(shipment, CONTRACT, precious, force=True)
    assert (precious / "thesis.tex").read_text() == "ten years"


def test_an_output_below_a_file_is_refused(shipment: Shipment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bundle(shipment, CONTRACT, tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_what_breaks_half_way_leaves_everything_as_it_was(
    shipment: Shipment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder = tmp_path / "folder"
    out = folder / "out"
    write_bundle(shipment, CONTRACT, out)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def broken(*_: object) -> str:
        raise error

    monkeypatch.setattr("edgefold.report.page.render", broken)
    with pytest.raises(type(error)):
        write_bundle(replace(shipment, name="other"), CONTRACT, out, force=True)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_predictions(tmp_path: Path) -> None:
    scores = np.array([[0.1, 3.0, -1.0, 2.0]], np.float32)
    prediction = Prediction((scores,), labels=("a", "b", "c"))

    assert (prediction.index, prediction.label) == (1, "b")
    assert prediction.top(2) == [(1, "b", 3.0), (3, "3", 2.0)]
    with pytest.raises(UsageError, match="expected \\(1, classes\\)"):
        _ = Prediction((np.zeros((1, 3, 4), np.float32),)).index


def test_run_uses_the_preprocessing_and_the_real_runtime(shipment: Shipment, tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "data" / "tiny"
    variants = []
    for name, file in (("onnx-fp32", "tiny.onnx"), ("tflite-fp32", "tiny.tflite"), ("tflite-int8", "tiny-int8.tflite")):
        found = describe(tiny / file)
        assert found.precision is not None
        artifact = Artifact(tiny / file, found.format, found.precision, sha256_of(tiny / file), found.inputs, found.outputs)
        variants.append(Variant(name, found.format, found.precision, artifact))
    contract = Contract(preprocessing=Preprocessing(16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    write_bundle(replace(shipment, variants=tuple(variants)), contract, tmp_path / "out")
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    with load_bundle(zip_path(tmp_path / "out")) as bundle:
        outputs = {name: bundle.run(name, pixels).outputs[0] for name in bundle.names}
        prepared = (pixels.transpose(2, 0, 1)[None] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        np.testing.assert_allclose(bundle.run("onnx-fp32", prepared).outputs[0], outputs["onnx-fp32"], atol=1e-6)
        with pytest.raises(UsageError, match="did you mean 'tflite-int8'"):
            bundle.run("tflite-int9", pixels)
    spread = float(np.ptp(outputs["onnx-fp32"]))
    np.testing.assert_allclose(outputs["tflite-fp32"], outputs["onnx-fp32"], atol=1e-4 * spread)
    np.testing.assert_allclose(outputs["tflite-int8"], outputs["onnx-fp32"], atol=0.05 * spread)


def test_the_temporary_folder_of_a_zip_goes_with_the_bundle(shipment: Shipment, tmp_path: Path) -> None:
    write_bundle(shipment, CONTRACT, tmp_path / "out")
    bundle = load_bundle(zip_path(tmp_path / "out"))
    root = bundle.root
    assert root.is_dir()
    bundle.close()
    assert not root.exists()
    load_bundle(tmp_path / "out").close()
    assert (tmp_path / "out").is_dir()


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_bundle(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArtifactError, match="not a readable zip"):
        load_bundle(tmp_path / "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load_bundle(tmp_path / "folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}'])
def test_results_of_a_stranger_are_refused(shipment: Shipment, tmp_path: Path, text: str) -> None:
    write_bundle(shipment, CONTRACT, tmp_path / "out")
    (tmp_path / "out" / "results" / results_module.SUMMARY).write_text(text)
    with pytest.raises(ArtifactError):
        _ = load_bundle(tmp_path / "out").shipment


def test_results_are_versioned_json(shipment: Shipment, tmp_path: Path) -> None:
    write_bundle(shipment, CONTRACT, tmp_path / "out")
    folder = tmp_path / "out" / "results"
    latency = json.loads((folder / "latency.json").read_text())

    assert latency["onnx-fp32"]["schema"] == "edgefold.Measurement/1"
    assert latency["onnx-fp32"]["device"]["cpu"] == "Test CPU"
    assert json.loads((folder / "summary.json").read_text())["rows"][0]["median_ns"] > 0
