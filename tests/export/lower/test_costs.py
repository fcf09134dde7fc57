"""Geometries, cost tables and estimates."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import tomllib
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefold.artifact import Format, Precision
from edgefold.errors import ArtifactError, DataError
from edgefold.export.emitters.base import EmitOptions, get_emitter
from edgefold.export.lower.costs import CostTable, known_cost
from edgefold.export.lower.estimate import Rule, estimate_ns, gather_limit, gather_ns, rule_for
from edgefold.export.lower.fitted import MIN_LAYERS, fitted_rule
from edgefold.export.lower.geometry import LayerGeometry
from edgefold.export.lower.layer import lowered_layer
from edgefold.export.lower.tables import CLASSES, cpu_class, shipped_table
from edgefold.export.plan import Lowering

TABLES = Path(__file__).parents[3] / "export/lower/tables"


def layer(groups: int = 4, channels: int = 64, size: int = 56, *, point: bool = True) -> LayerGeometry:
    sizes = ((channels // groups, channels // groups),) * groups if groups > 1 else ()
    return LayerGeometry(channels, channels, (3, 3), (1, 1), (1, 1), (1, 1), (size, size), sizes, point and groups > 1)


positive = st.integers(1, 64)
pairs = st.tuples(positive, positive)


@given(pairs, pairs, pairs, pairs, pairs, pairs, st.lists(pairs, max_size=4), st.booleans())
def test_a_geometry_is_read_back_from_its_text(
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    space: tuple[int, int],
    groups: list[tuple[int, int]],
    point: bool,
) -> None:
    geometry = LayerGeometry(*channels, kernel, stride, padding, dilation, space, tuple(sorted(groups)), point)
    assert LayerGeometry.parse(str(geometry)) == geometry


def test_the_text_of_a_geometry() -> None:
    geometry = LayerGeometry(16, 32, (3,), (2,), (1,), (1,), (9,), ((6, 11), (5, 11), (5, 10)), True)
    assert str(geometry) == "16->32 k3 s2 p1 d1 @9 g1*6->11+1*5->11+1*5->10 +point"
    assert geometry.out_space == (5,)
    assert not geometry.equal_groups


@pytest.mark.parametrize("text", ["", "8->8", "8->8 k3x3 s1x1 p1x1 d1x1 @14x14 g", "8->8 k3x3 s1x1 p1x1 d1x1 @14x14 g4"])
def test_what_is_no_geometry_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="no layer geometry"):
        LayerGeometry.parse(text)


def test_macs_follow_the_published_cost_of_hetconv() -> None:
    """1 / P + (1 - 1 / P) / K² of the dense layer, when the in-group centre taps are counted once (Singh et al., 2019)."""
    geometry = layer(groups=4)
    grouped = geometry.macs(Lowering.GROUPED) - 64 * 16 * 56 * 56  # the 1x1 computes the in-group taps as zeros
    assert grouped / geometry.macs(Lowering.DENSE) == pytest.approx(1 / 4 + (1 - 1 / 4) / 9)
    assert geometry.macs(Lowering.KEEP) == geometry.macs(Lowering.SPLIT) == geometry.macs(Lowering.GROUPED)
    assert layer(groups=1).macs(Lowering.KEEP) == 64 * 64 * 9 * 56 * 56


def table() -> CostTable:
    times = {
        (str(layer()), Lowering.DENSE, Format.ONNX, Precision.INT8): 356_000.0,
        (str(layer()), Lowering.GROUPED, Format.ONNX, Precision.INT8): 521_000.0,
    }
    return CostTable("measured on host", "Test CPU", 1, {"onnx": "onnxruntime 1.32.0"}, times)


@pytest.mark.parametrize("lowering", [Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT])
def test_integer_layers_are_measured_in_the_kernels_that_networks_use(tmp_path: Path, lowering: Lowering) -> None:
    """ONNX Runtime multiplies uint8 weights at a quarter of the rate of int8 ones on CPUs with VNNI."""
    lowered = lowered_layer(layer(channels=32, size=8), lowering, Format.ONNX, Precision.INT8)
    get_emitter(Format.ONNX).emit(lowered, EmitOptions(), tmp_path / "layer.onnx")
    graph = onnx.load(tmp_path / "layer.onnx").graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert weights
    assert {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in weights} == {"INT8"}


def test_a_table_survives_json() -> None:
    assert CostTable.from_json(table().to_json(), "t") == table()


def test_a_time_of_nothing_is_no_time() -> None:
    stopped = table().merged(CostTable("", "", 1, {}, {(str(layer()), Lowering.SPLIT, Format.ONNX, Precision.INT8): 0.4}))
    assert CostTable.from_json(stopped.to_json(), "t").times_ns == table().times_ns


def test_a_table_knows_only_what_was_measured() -> None:
    assert table().cost_ns(layer(), Lowering.GROUPED, Format.ONNX, Precision.INT8) == 521_000.0
    assert table().cost_ns(layer(), Lowering.SPLIT, Format.ONNX, Precision.INT8) is None
    assert table().cost_ns(layer(size=28), Lowering.DENSE, Format.ONNX, Precision.INT8) is None
    assert known_cost([table()], layer(), Lowering.DENSE, Format.TFLITE, Precision.INT8) is None


def test_a_group_convolution_that_is_kept_costs_what_one_costs() -> None:
    assert table().cost_ns(layer(), Lowering.KEEP, Format.ONNX, Precision.INT8) == 521_000.0


def test_the_first_model_that_knows_is_asked() -> None:
    other = CostTable("table x", "Test CPU", 1, {}, {(str(layer()), Lowering.SPLIT, Format.ONNX, Precision.INT8): 1.0})
    assert known_cost([table(), other], layer(), Lowering.SPLIT, Format.ONNX, Precision.INT8) == (1.0, "table x")
    merged = table().merged(other)
    assert merged.source == "measured on host"
    assert len(merged.times_ns) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "malformed"),
        ("[", "malformed"),
        ('{"schema": "edgefold.CostTable/9"}', "has schema 'edgefold.CostTable/9', expected 'edgefold.CostTable/1'"),
        (
            '{"schema": "edgefold.CostTable/1", "source": "", "cpu": "", "threads": 1, "runtimes": {}, "times_ns": [[1]]}',
            "malformed",
        ),
    ],
)
def test_a_broken_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        CostTable.from_json(text, "t.json")


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        CostTable.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        CostTable.load(tmp_path / "bytes.json")


def test_classes_of_cpus() -> None:
    assert cpu_class("x86_64", frozenset({"avx2", "fma", "sse2"})) == "x86-avx2"
    vnni = frozenset({"avx2", "fma", "avx512f", "avx512_vnni"})
    assert cpu_class("x86_64", vnni) == "x86-avx512-vnni"
    # Tiles make a dense convolution so fast that a quarter of its products in groups takes longer.
    assert cpu_class("x86_64", vnni | {"amx_int8"}) == "x86-avx512-vnni-amx"
    assert cpu_class("aarch64", frozenset({"asimd", "avx2", "fma"})) is None
    assert cpu_class("x86_64", frozenset({"sse2"})) is None


def test_every_shipped_table_is_valid_and_packaged() -> None:
    names = sorted(path.stem for path in TABLES.glob("*.json"))
    assert set(names) <= set(CLASSES)
    for name in names:
        assert CostTable.load(TABLES / f"{name}.json").source == f"table {name}"
    config = tomllib.loads((TABLES.parents[2] / "pyproject.toml").read_text())
    assert config["tool"]["setuptools"]["package-data"]["edgefold.export.lower.tables"] == ["*.json"]
    assert shipped_table() is shipped_table()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("format", list(Format))
def test_estimates_are_finite_and_grow_with_the_layer(format: Format, precision: Precision) -> None:
    for lowering in Lowering:
        small, large = (estimate_ns(rule_for(format, precision), layer(size=size), lowering) for size in (14, 28))
        assert 0 < small < large < math.inf


def test_a_gather_within_its_limit_costs_no_more_than_the_budget() -> None:
    rule = rule_for(Format.ONNX, Precision.FP32)
    limit = gather_limit(rule, 100_000.0)
    assert limit > 0
    assert gather_ns(rule, limit) <= 100_000.0 < gather_ns(rule, limit + 1)
    assert gather_limit(rule, 0.0) < 0


CPU_WITH_FAST_DENSE_INT8 = Rule(peak=1000.0, half=60.0, half_group=300.0, move=0.4, overhead=900.0, tile=16)


def table_of(rule: Rule, count: int = 20) -> CostTable:
    """What the layers of a CPU that follows a rule take, with 3 % of noise; one row is a blunder."""
    noise = random.Random(0)
    sizes = [(groups, channels, size) for size in (4, 8, 14, 28, 56) for channels in (16, 32, 64, 128) for groups in (2, 4)]
    times = {}
    for groups, channels, size in sizes[:: len(sizes) // count][:count]:
        for form in (Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT):
            geometry = layer(groups, channels, size)
            ns = estimate_ns(rule, geometry, form) * math.exp(noise.gauss(0.0, 0.03))
            times[str(geometry), form, Format.TFLITE, Precision.INT8] = ns
    times[next(iter(times))] *= 5.0
    return CostTable("table test", "test", 1, {"tflite": "test"}, times)


def test_the_rule_of_a_cpu_is_found_from_its_table() -> None:
    found = fitted_rule(table_of(CPU_WITH_FAST_DENSE_INT8), Format.TFLITE, Precision.INT8)
    assert found is not None
    for unseen in (layer(4, 48, 20), layer(8, 256, 14), layer(2, 96, 7)):
        for form in (Lowering.DENSE, Lowering.GROUPED, Lowering.SPLIT):
            exact = estimate_ns(CPU_WITH_FAST_DENSE_INT8, unseen, form)
            assert estimate_ns(found, unseen, form) == pytest.approx(exact, rel=0.25)


def test_few_layers_make_no_rule() -> None:
    few = table_of(CPU_WITH_FAST_DENSE_INT8, MIN_LAYERS - 1)
    assert fitted_rule(few, Format.TFLITE, Precision.INT8) is None
    assert fitted_rule(table_of(CPU_WITH_FAST_DENSE_INT8), Format.TFLITE, Precision.FP32) is None


@pytest.mark.parametrize("name", sorted(path.stem for path in TABLES.glob("*.json")))
def test_estimates_from_a_shipped_table_choose_better_than_those_of_any_cpu(name: str) -> None:
    """A quarter of the layers is estimated from the others: what those choices take more than the best ones."""
    table = CostTable.load(TABLES / f"{name}.json")
    by_fit: list[float] = []
    by_default: list[float] = []
    for format, precision in itertools.product(Format, (Precision.FP32, Precision.INT8)):
        layers = list(dict.fromkeys(text for text, _, *numbers in table.times_ns if numbers == [format, precision]))
        for unseen in (layers[place::4] for place in range(4)):
            rest = {key: ns for key, ns in table.times_ns.items() if key[0] not in unseen}
            rule = fitted_rule(replace(table, times_ns=rest), format, precision)
            assert rule is not None
            for text in unseen:
                geometry = LayerGeometry.parse(text)
                known = {form: table.cost_ns(geometry, form, format, precision) for form in Lowering}
                times = {form: ns for form, ns in known.items() if ns is not None}
                for regrets, each in ((by_fit, rule), (by_default, rule_for(format, precision))):
                    chosen = min(times, key=lambda form: estimate_ns(each, geometry, form))
                    regrets.append(times[chosen] / min(times.values()))
    assert len(by_fit) > 100
    assert statistics.geometric_mean(by_fit) < min(1.05, statistics.geometric_mean(by_default))


def test_reference_kernels_pay_for_every_multiply_add() -> None:
    rule = rule_for(Format.TFLITE, Precision.INT16X8)
    wide = layer(size=28)
    assert estimate_ns(rule, wide, Lowering.GROUPED) < 0.5 * estimate_ns(rule, wide, Lowering.DENSE)
    # The times of int8 kernels say nothing of them.
    for path in TABLES.glob("*.json"):
        assert fitted_rule(CostTable.load(path), Format.TFLITE, Precision.INT16X8) is None
