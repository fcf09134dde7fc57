"""What tests of several areas share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from edgefold.artifact import Artifact, Format, Precision, TensorSpec, sha256_of
from edgefold.export.plan import (
    Candidate,
    FoldedLayer,
    FoldPlan,
    KernelMap,
    LoweredLayer,
    Lowering,
    LoweringPlan,
    NumericClass,
)
from edgefold.quantize.sensitivity_data import LayerSensitivity, Sensitivity
from edgefold.report.content import Accuracy, Shipment, Variant
from edgefold.report.explanation import Explanation, RuntimeOutlook
from edgefold.results import Code, DeviceInfo, Measurement, OutputParity, ParityReport, Run, RuntimeAgreement
from tests.lookups import look_up_once

# The same examples in every run, however busy the machine; `--hypothesis-profile search` looks for new ones.
settings.register_profile("repeat", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeat")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Tests draw weights and inputs: a rare draw must not fail a test of an unchanged program."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_costs_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a developer has measured on this machine must not choose in tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFOLD_COSTS", str(tmp_path_factory.mktemp("costs")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick_converters() -> None:
    """See `look_up_once`."""
    look_up_once()


DEVICE = DeviceInfo(url="host", machine="x86_64", system="Linux 6.1", cpu="Test CPU", features=("avx2",), memory_bytes=8 << 30)


@pytest.fixture(scope="session")
def make_shipment() -> Callable[[Path], Shipment]:
    """Makes a shipment of six variants with plausible results; the artifacts are files in a folder, with made-up content."""

    def make(folder: Path) -> Shipment:
        folder.mkdir(exist_ok=True)
        layers = (_layer("stem", 1, 8, 1), _layer("stage1.0.conv1", 8, 8, 4), _layer("head", 12, 10, 1, folded=False))
        return Shipment(
            name="hetnet-test",
            variants=tuple(_variant(folder, form, p) for form in Format for p in (Precision.FP32, Precision.INT8)),
            fold=FoldPlan(layers),
            date="2026-01-02T03:04:05+00:00",
            description="A network that only tests know",
            parameters=12345,
            agreement=(RuntimeAgreement("onnx-int8", "tflite-int8", 1.0, 0.02, 0.999),),
            explanations=(_explanation(),),
        )

    return make


@pytest.fixture
def shipment(make_shipment: Callable[[Path], Shipment], tmp_path: Path) -> Shipment:
    """A shipment in which everything passed."""
    return make_shipment(tmp_path / "artifacts")


def _explanation() -> Explanation:
    """Thirty layers of which the tenth does most harm."""
    layers = [
        LayerSensitivity(
            name=f"stage{index // 10}.{index % 10}.a_block_with_a_long_name.conv1",
            node=f"conv2d_{index}",
            alone_db=12.0 if index == 9 else 30.0 + index % 7,
            cumulative_db=40.0 - (index if index < 9 else 20 + index / 4),
            gain_db=9.5 if index == 9 else 0.05,
            low=-1.0,
            high=6.0,
            clipped_share=0.001,
            index=index,
        )
        for index in range(30)
    ]
    ranked = tuple(sorted(layers, key=lambda layer: layer.alone_db))
    outlook = RuntimeOutlook(
        Format.ONNX, 0.8, 4, (), 1e6, 1.2e6, reasons=("4 conversions between float and integers stand inside",)
    )
    return Explanation(
        Precision.INT8,
        8,
        "mse",
        Sensitivity(13.0, ranked),
        "Test CPU",
        False,
        "AVX2 without VNNI: expect a small gain",
        (outlook,),
    )


def _variant(folder: Path, form: Format, precision: Precision) -> Variant:
    path = folder / f"net-{precision}{form.suffix}"
    name = f"{form}-{precision}"
    integer = precision == Precision.INT8
    path.write_bytes(name.encode() * (200 if integer else 800))
    spec = TensorSpec("input", (1, 1, 28, 28), "float32", "nchw")
    artifact = Artifact(
        path, form, precision, sha256_of(path), (spec,), (replace(spec, name="output", shape=(1, 10), layout="torch"),)
    )
    return Variant(
        name=name,
        format=form,
        precision=precision,
        artifact=artifact,
        lowering=_lowering(form, precision),
        parity=_parity(path.name, form, precision),
        accuracy=Accuracy("top-1", 0.921 if integer else 0.925, 0.925, 1000, "built-in slice", True, "within 0.5 points of fp32"),
        measurement=_measurement(artifact, 400_000 if integer else 900_000),
    )


def _lowering(form: Format, precision: Precision) -> LoweringPlan:
    offers = tuple(
        Candidate(lowering, NumericClass.FLOAT, macs, 4 * macs, cost, "estimated")
        for lowering, macs, cost in ((Lowering.DENSE, 9000, 30_000.0), (Lowering.GROUPED, 3000, 12_000.0))
    )
    layers = (
        LoweredLayer("stem", (), Lowering.KEEP, "a plain convolution"),
        LoweredLayer("stage1.0.conv1", offers, Lowering.GROUPED, "cheapest"),
    )
    return LoweringPlan(form, precision, "host", layers, gathers=1)


def _parity(name: str, form: Format, precision: Precision) -> ParityReport:
    if precision == Precision.INT8:
        output = OutputParity("output", 0.1, 5e-3, 41.5, max_steps=1.0, share_different=0.02)
        return ParityReport(name, form, precision, "fake-quantized torch", (output,), 32, True, "SQNR >= 30 dB")
    output = OutputParity("output", 1e-6, 2e-7, 120.0)
    return ParityReport(name, form, precision, "torch float32", (output,), 32, True, "max error <= 1e-4 of the output range")


def _measurement(artifact: Artifact, base_ns: int) -> Measurement:
    generator = random.Random(artifact.path.name)

    def run() -> Run:
        samples = tuple(round(base_ns * generator.lognormvariate(0.0, 0.05)) for _ in range(64))
        return Run(samples, load_ns=3_000_000, first_ns=2 * base_ns, warmup_ns=(2 * base_ns, base_ns))

    return Measurement(
        artifact=artifact.path.name,
        artifact_sha256=artifact.sha256,
        format=artifact.format,
        runtime=f"{artifact.format} 1.0",
        threads=1,
        runs=tuple(run() for _ in range(5)),
        peak_rss_bytes=60_000_000,
        device=DEVICE,
        codes=(Code.FREQUENCY_UNKNOWN,),
        interval_ns=(base_ns * 0.99, base_ns * 1.01),
        noise=0.02,
    )


def _layer(name: str, inputs: int, outputs: int, parts: int, *, folded: bool = True) -> FoldedLayer:
    groups = tuple((tuple(range(p, inputs, parts)), tuple(range(p, outputs, parts))) for p in range(parts))
    full = sum(len(m) * len(n) for m, n in groups)
    kernel_map = KernelMap(outputs, inputs, (3, 3), full, inputs * outputs - full, 0, groups)
    return FoldedLayer(
        name=name,
        kind="HetConv2dWithANameThatIsLongerThanACardOfTheReportIsWideAndHasNoSpace",
        folded=folded,
        reason="" if folded else "aten.clamp is not affine",
        geometry=f"{inputs}->{outputs} k3x3 s1 p1,1,1,1 d1 g1",
        kernel_map=kernel_map if folded else None,
        ops_before=2 * inputs * outputs + 1,
        parameters_before=inputs * outputs * 9,
        parameters=full * 9 + inputs * outputs - full,
        macs_before=inputs * outputs * 9 * 784,
        macs=(full * 9 + inputs * outputs - full) * 784,
        max_relative_error=3e-16,
    )
