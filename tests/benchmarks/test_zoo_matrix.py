"""What counts as a miss of the zoo's matrix: a figure that is not there is no good one, and every miss needs its cause."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import int8_models  # noqa: E402  # found by the line above
import zoo_matrix  # noqa: E402


def _cell(**changes: Any) -> dict[str, Any]:
    good = {
        "model": "net",
        "format": "onnx",
        "latency_us": {"fp32": 2.0, "int8": 1.0, "native-int8": 1.0},
        "largest_error_of_range": {"fp32": 1e-6, "int8": 1e-2},
        "failures": {},
        "int8_to_fp32_ratio": 0.5,
        "sqnr_above_native_db": -0.4,
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def test_a_good_cell_has_no_miss() -> None:
    assert zoo_matrix.misses(_cell()) == {}
    assert zoo_matrix.without_native(_cell()) == ""


@pytest.mark.parametrize(
    ("changes", "precision", "fault"),
    [
        ({"failure": "signal 9"}, "fp32", "signal 9"),
        ({"failures": {"int8": "no rule"}}, "int8", "no rule"),
        ({"largest_error_of_range": {"fp32": 1e-3}}, "fp32", "off by 0.001"),
        ({"largest_error_of_range": {"fp32": float("nan")}}, "fp32", "off by nan"),
        ({"largest_error_of_range": {}}, "fp32", "was not measured"),
        ({"sqnr_above_native_db": -0.6}, "int8", "0.6 dB below"),
        ({"sqnr_above_native_db": None}, "int8", "was not compared with the runtime's own tool"),
        ({"int8_to_fp32_ratio": 1.2}, "int8", "1.20 times as long"),
        ({"int8_to_fp32_ratio": None}, "int8", "was not timed against fp32"),
    ],
)
def test_every_fault_and_every_figure_that_lacks_is_a_miss(changes: dict[str, Any], precision: str, fault: str) -> None:
    assert fault in zoo_matrix.misses(_cell(**changes))[precision]


def test_a_native_tool_that_fails_by_itself_is_no_miss_but_told() -> None:
    cell = _cell(latency_us={"fp32": 2.0, "int8": 1.0}, failures={"native-int8": "ValueError: no"}, sqnr_above_native_db=None)
    assert zoo_matrix.misses(cell) == {}
    found = zoo_matrix.summary([cell], {})
    assert found["judged_without_native"] == [{"model": "net", "format": "onnx", "why": "native-int8: ValueError: no"}]
    assert found["good_share"] == 1


def test_causes_are_joined_and_a_miss_without_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr("record.RESULTS", tmp_path)
    monkeypatch.setattr("zoo_matrix.CAUSES", tmp_path / "causes.toml")
    monkeypatch.setattr(sys, "argv", ["zoo_matrix.py", "--models", "net"])
    cell = _cell(int8_to_fp32_ratio=None, latency_us={"fp32": 1.0, "int8": 2.0, "native-int8": 3.0}, sqnr_above_native_db=None)
    cell["sqnr_db"] = {"int8": 30.0, "native-int8": 30.0}
    monkeypatch.setattr("zoo_matrix.measure", lambda *_: {"onnx": cell})
    for text, code in (("", 1), (_ENTRY, 0)):
        (tmp_path / "causes.toml").write_text(text)
        with pytest.raises(SystemExit) as ended:
            zoo_matrix.main()
        assert ended.value.code == code
    assert "no cause in causes.toml: net onnx int8: takes 2.00 times as long as fp32" in capsys.readouterr().err
    record = json.loads((tmp_path / "zoo_matrix.json").read_text())
    (row,) = record["misses"]
    assert (row["cause"], row["upstream"]) == ("It is small.", "https://example.org/1")
    assert record["measured"][0]["provenance"].keys() == {"date", "versions_sha256", "commit"}
    # A cell of before has no provenance, and keeps none.
    del record["measured"][0]["provenance"]
    (tmp_path / "zoo_matrix.json").write_text(json.dumps(record))
    assert zoo_matrix.kept()[0]["provenance"] is None


_ENTRY = """
[[miss]]
model = "net"
format = "onnx"
precision = "int8"
cause = "It is small."
upstream = "https://example.org/1"
"""


def test_the_committed_causes_name_models_of_the_zoo() -> None:
    zoo = set(zoo_matrix.ZOO.read_text().split())
    causes = zoo_matrix.read_causes()
    assert {model for model, _, _ in causes} <= zoo
    assert all(entry["cause"].endswith(".") for entry in causes.values())


def test_an_untrained_network_gets_seeded_data() -> None:
    first, again = (int8_models.make_case("groupnet") for _ in range(2))
    assert first.weights == "seeded"
    assert len(first.calibration) == int8_models.CALIBRATION
    assert torch.equal(first.judged[0], again.judged[0])
    with torch.no_grad():
        assert torch.equal(first.module(first.judged[0]), again.module(first.judged[0]))
