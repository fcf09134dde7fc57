"""The manifest of a bundle: everything that an app must know about the files beside it, as one validated JSON file.

The payload (artifacts and model card) is listed with size and SHA-256. ``results/`` is not: measurements may be repeated on
other devices without changing what ships.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgefold.artifact import Format, Precision, TensorSpec
from edgefold.errors import ArtifactError
from edgefold.export.plan import FoldPlan, LoweringPlan
from edgefold.preprocess import Preprocessing

if TYPE_CHECKING:
    from edgefold.export.program import QuantizedProgram
    from edgefold.quantize.scheme import QParams

MANIFEST: Final = "manifest.json"
RESULTS: Final = "results"
SCHEMA: Final = "edgefold.bundle/1"


def _inside(path: str) -> str:
    """The path, if it names a file below the bundle on every operating system."""
    parts = path.split("/")
    # ':' is a drive or a stream on Windows, '\\' a separator there; both are legal names elsewhere.
    hostile = any(part in ("", ".", "..") for part in parts) or not path.isprintable() or set(path) & set('\\:*?"<>|')
    if hostile or PurePosixPath(path).is_absolute():
        raise ValueError(f"'{path}' is not a plain path below the bundle")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PayloadFile(_Entry):
    """One file of the payload."""

    path: RelativePath
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class ArtifactEntry(_Entry):
    """One artifact: what it is called in `Bundle.run`, and what goes in and out."""

    name: str
    file: RelativePath
    format: Format
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lowering: LoweringPlan | None = None


class ActivationScale(_Entry):
    """The quantization of one tensor of the canonical network: real = scale * (integer - zero_point)."""

    name: str
    scale: float
    zero_point: int
    qmin: int = -128
    qmax: int = 127


class WeightScale(_Entry):
    """The symmetric scales of one weight, one an output channel."""

    name: str
    scales: tuple[float, ...]


class Scales(_Entry):
    """The one table of scales from which every quantized artifact of a scheme was made.

    A branch is named after its layer: ``conv1/group`` and ``conv1/point`` are the two sums that ``conv1`` may be split into.
    """

    scheme: str
    activations: tuple[ActivationScale, ...]
    weights: tuple[WeightScale, ...]
    branches: tuple[ActivationScale, ...] = ()
    observer: str = "auto"  # how the ranges were chosen
    equalized: tuple[tuple[str, str], ...] = ()  # layers whose channels were scaled against each other
    float_layers: tuple[str, ...] = ()  # left in float by choice

    @classmethod
    def of(cls, program: QuantizedProgram) -> Self:
        """The scales of a calibrated network."""
        table = program.table

        def entry(name: str, q: QParams) -> ActivationScale:
            return ActivationScale(name=name, scale=q.scale, zero_point=q.zero_point, qmin=q.qmin, qmax=q.qmax)

        return cls(
            scheme=program.scheme,
            activations=tuple(entry(name, q) for name, q in table.activations.items()),
            weights=tuple(WeightScale(name=name, scales=tuple(scale.tolist())) for name, scale in table.weights.items()),
            branches=tuple(entry(f"{name}/{part}", q) for name, parts in table.branches.items() for part, q in parts.items()),
            observer=table.observer,
            equalized=tuple((pair.first, pair.second) for pair in program.equalized if not pair.reason),
            float_layers=program.float_layers,
        )


class Calibration(_Entry):
    """The data that the scales come from. ``random`` means that no real data was given: accuracy is then unknown.

    ``findings`` are what a reader must know of the data (too few samples, copies, values that do not fit the preprocessing).
    """

    samples: Annotated[int, Field(ge=1)]
    sha256: Sha256
    random: bool
    source: str = ""
    findings: tuple[str, ...] = ()


class Manifest(_Entry):
    """The manifest of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal["edgefold.bundle/1"] = Field(default=SCHEMA, alias="schema")
    name: str
    description: str = ""
    created: str  # ISO 8601, UTC
    producer: str  # "edgefold 0.1.0"
    artifacts: tuple[ArtifactEntry, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    scales: tuple[Scales, ...] = ()
    calibration: Calibration | None = None
    fold: FoldPlan
    tools: dict[str, str]
    payload: tuple[PayloadFile, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [file.path for file in self.payload]
        names = [artifact.name for artifact in self.artifacts]
        # Compared without case: on Windows and macOS two such files are one.
        for kind, values in (("payload path", [path.casefold() for path in paths]), ("artifact name", names)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{kind} '{twice}' is there twice")
        for path in paths:
            if path == MANIFEST or path.split("/")[0] == RESULTS:
                raise ValueError(f"'{path}' cannot be payload")
        for artifact in self.artifacts:
            if artifact.file not in paths:
                raise ValueError(f"artifact '{artifact.name}' has file '{artifact.file}', which is not in the payload")
        return self

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return self.model_dump_json(by_alias=True) + "\n"


def parse_manifest(text: bytes, source: str) -> Manifest:
    """The manifest in ``text``, which was read from ``source``.

    Raises:
        ArtifactError: not JSON, another schema, or a field that does not fit.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise ArtifactError(
            f"manifest of bundle '{source}' does not fit schema '{SCHEMA}' at {where}: {first['msg']}; "
            "make the bundle again with this version"
        ) from error
