"""`edgefold run`: what does an artifact say about this input?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefold.cli.options import Force, Json, Target, Threads
from edgefold.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import RenderableType

    from edgefold.bundle.reader import Prediction


def run(
    target: Target,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npy or .npz.", show_default=False)],
    artifact: Annotated[
        str | None, typer.Option("--artifact", help="The artifact of a bundle, e.g. tflite-int8.", show_default="the first")
    ] = None,
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Write the outputs to this .npz file.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show.")] = 5,
    threads: Threads = 1,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run one artifact on one input."""
    from edgefold.bundle.reader import Prediction
    from edgefold.cli.output import output
    from edgefold.cli.targets import artifacts_of, is_bundle, opened
    from edgefold.runtime import run as execute

    with output(as_json) as out:
        if out_file is not None and out_file.suffix != ".npz":
            raise UsageError(f"output '{out_file}' does not end in .npz; outputs are arrays, give a name like outputs.npz")
        if is_bundle(target):
            with opened(target) as bundle:
                name = artifact or next(iter(bundle.names), "")
                colours = "" if bundle.manifest.preprocessing is None else bundle.manifest.preprocessing.colour
                prediction = bundle.run(name, _read_input(source, colours), threads=threads)
        else:
            with artifacts_of(target, None if artifact is None else [artifact]) as artifacts:
                name, found = next(iter(artifacts.items()))
                prediction = Prediction(execute(found, _read_input(source, ""), threads=threads))
        if out_file is not None:
            _write_outputs(prediction.outputs, out_file, force=force)
        out.show(_described(name, prediction, top), lambda: _predicted(name, prediction, top))


def _read_input(path: Path, colour: str) -> Any:
    """An image as uint8 pixels, or the arrays of an .npy or .npz file.

    Raises:
        DataError: no such file, or neither an image nor arrays.
    """
    import numpy as np

    if not path.is_file():
        raise DataError(f"input '{path}' does not exist; give an image, or an .npy or .npz file")
    if path.suffix not in (".npy", ".npz"):
        return _read_image(path, colour)
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"input '{path}' is not a file of plain arrays ({error}); write it with numpy.save") from error
    if path.suffix == ".npy":
        return found
    with found:
        return [found[name] for name in found.files]


def _read_image(path: Path, colour: str) -> NDArray[Any]:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from edgefold.models.pictures import as_8_bit

    try:
        with Image.open(path) as image:
            return np.asarray(as_8_bit(image, {"gray": "L", "rgb": "RGB", "bgr": "RGB"}.get(colour)))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"input '{path}' is not a readable image ({error}); give a PNG or JPEG, or an .npy file") from error


def _write_outputs(outputs: tuple[NDArray[Any], ...], path: Path, *, force: bool) -> None:
    import numpy as np

    from edgefold.artifact import atomic_path

    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez(file, *outputs)


def _is_classes(prediction: Prediction) -> bool:
    scores = prediction.outputs[0]
    return bool(scores.ndim == 2 and scores.shape[0] == 1)


def _described(name: str, prediction: Prediction, top: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "artifact": name,
        "outputs": [
            {"shape": list(array.shape), "dtype": str(array.dtype), "values": array.tolist()} for array in prediction.outputs
        ],
    }
    if _is_classes(prediction):
        found["top"] = [{"index": i, "label": label, "score": score} for i, label, score in prediction.top(top)]
    return found


def _predicted(name: str, prediction: Prediction, top: int) -> Iterable[RenderableType]:
    from edgefold.cli.output import table

    if _is_classes(prediction):
        best = [(label, str(i), f"{score:.4f}") for i, label, score in prediction.top(top)]
        yield table(("class", "index", "score"), best, "lrr", title=name)
        return
    lines = [
        (
            str(position),
            "×".join(map(str, array.shape)),
            str(array.dtype),
            f"{array.min():.4g}",
            f"{array.mean():.4g}",
            f"{array.max():.4g}",
        )
        for position, array in enumerate(prediction.outputs)
    ]
    yield table(("output", "shape", "dtype", "min", "mean", "max"), lines, "llrrrr", title=name)
