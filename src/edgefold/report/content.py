"""What a run of `ship` has to tell: one `Shipment` of several `Variant`s.

The table on the terminal, the report page, the model card and the JSON results are four views of this one thing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefold.artifact import Artifact, Format, Precision
from edgefold.export.plan import FoldPlan, LoweringPlan
from edgefold.report.explanation import Explanation
from edgefold.results import Measurement, ParityReport, RuntimeAgreement


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a variant is missing or incomplete."""

    stage: str  # "lower", "emit", "verify", "bench"
    error: str  # class name of the error, e.g. "UnsupportedError"
    message: str  # one sentence


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A metric of one artifact, run in its real runtime, beside the same metric of the float network in torch.

    Values are shares (0.925), not percent. ``data`` says what was evaluated, e.g. "built-in slice of Fashion-MNIST".
    """

    metric: str  # "top-1"
    value: float
    reference: float
    samples: int
    data: str
    passed: bool
    criterion: str  # "within 0.5 points of fp32"


@dataclass(frozen=True, slots=True)
class Variant:
    """One format in one precision, as far as it got."""

    name: str  # "tflite-int8"
    format: Format
    precision: Precision
    artifact: Artifact | None = None
    lowering: LoweringPlan | None = None
    parity: ParityReport | None = None
    accuracy: Accuracy | None = None
    measurement: Measurement | None = None
    failure: Failure | None = None

    @property
    def passed(self) -> bool:
        """The artifact is there, and every check that was made on it passed."""
        checks = [check.passed for check in (self.parity, self.accuracy) if check is not None]
        return self.artifact is not None and self.failure is None and all(checks)


@dataclass(frozen=True, slots=True)
class Shipment:
    """A network in all its variants. ``date`` is ISO 8601 in UTC; ``notes`` are sentences that a reader must know."""

    name: str
    variants: tuple[Variant, ...]
    fold: FoldPlan
    date: str
    description: str = ""
    parameters: int | None = None  # effective parameters of the folded network
    notes: tuple[str, ...] = ()
    agreement: tuple[RuntimeAgreement, ...] = ()
    explanations: tuple[Explanation, ...] = ()  # one an integer scheme

    @property
    def passed(self) -> bool:
        """Every variant passed."""
        return all(variant.passed for variant in self.variants)
