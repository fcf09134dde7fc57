"""Arguments and options that several commands share, so that one thing has one name everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgefold.artifact import MAX_BATCH, Format, Precision
from edgefold.errors import UsageError
from edgefold.schemes import SCHEMES, scheme_of

# What a file can have; any other is understood, too, so that its refusal says where it is to be had.
_IN_FILES = f"<{'|'.join(precision for precision, scheme in SCHEMES.items() if scheme.formats)}>"

Target = Annotated[Path, typer.Argument(help="An .onnx, .tflite or .pte file, or a bundle.", show_default=False)]
Artifacts = Annotated[
    list[str] | None,
    typer.Option("--artifact", help="One of a bundle; can be given more than once.", show_default="all"),
]
MaxSecs = Annotated[float, typer.Option("--max-secs", help="Upper limit of the measuring time of one artifact.")]
# EDGEFOLD_SSH_CONFIG is not typer's to read: what is given here comes first, then a named device's own file, then the variable.
SshConfig = Annotated[
    Path | None,
    typer.Option(
        "--ssh-config",
        help="Another configuration file for OpenSSH.",
        show_default="a named device's own, or that of EDGEFOLD_SSH_CONFIG",
    ),
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave what was sent on the device.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A built-in name (see `edgefold models`), FILE.py:FACTORY, FILE.onnx, or another source.", show_default=False
    ),
]
Arg = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        "-a",
        "--kwargs",
        metavar="KEY=VALUE|JSON",
        help="An argument of the function that makes the model, e.g. width=32, or several as a JSON object, "
        """e.g. --kwargs '{"width": 32}'.""",
    ),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="A .safetensors or .pt file of weights to load into the model.")]
Trust = Annotated[bool, typer.Option("--trust", help="Allow a .pt2 file, which can run code of its author.")]
Formats = Annotated[
    list[Format] | None, typer.Option("--format", "-f", help="A format; can be given more than once.", show_default="all")
]
Precisions = Annotated[
    list[Precision] | None,
    typer.Option(
        "--precision", "-p", metavar=_IN_FILES, help="A precision; can be given more than once.", show_default="fp32, int8"
    ),
]
OneFormat = Annotated[Format, typer.Option("--format", "-f", help="The format to write.", show_default=False)]
OnePrecision = Annotated[Precision, typer.Option("--precision", "-p", metavar=_IN_FILES, help="The precision to write.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", show_default="named after the model")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
LoweringChoice = Annotated[
    Literal["auto", "keep", "dense", "grouped", "split"] | None,
    typer.Option("--lowering", help="How every layer is computed; auto: the fastest way for each.", show_default="auto"),
]
Timing = Annotated[
    bool | None,
    typer.Option(
        "--timing/--no-timing",
        help="Let the lowering end with a measurement of the whole network in each form that may be the fastest.",
        show_default="on this machine",
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="BYTES", help="The largest file allowed, e.g. 800kB or 2MB.", show_default="any"),
]
Cores = Annotated[str | None, typer.Option("--cores", help="Pin to these cores, e.g. 4-7 or 0,2.", show_default="not pinned")]
Worker = Annotated[Literal["auto", "python", "native"], typer.Option("--worker", help="What runs the file on a remote device.")]
TargetDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="What the files are for and where they are timed: host, ssh://USER@BOARD, adb://SERIAL. "
        "Without it they are timed here, and forms that are slow on other CPUs are left out.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where it runs: host, ssh://USER@BOARD, adb://SERIAL.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime, the same for every format.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        help="What to calibrate with: a folder of pictures or IDX files, an .npy, .npz or IDX file, FILE.py:FUNCTION, "
        "or the word random.",
        show_default="the model's own",
    ),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--evaluation",
        help="Labelled images for the accuracy: folders of pictures by class, IDX files, an .npz, or FILE.py:FUNCTION.",
        show_default="the model's own",
    ),
]
Preprocess = Annotated[
    list[str] | None,
    typer.Option(
        "--preprocess",
        metavar="KEY=VALUE",
        help="How a picture becomes the input: mean, std, colour, resize, shorter_side, interpolation, divisor.",
        show_default="as the model's source says",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="LAYER", help="A layer that stays in float; can be given more than once."),
]
Observer = Annotated[
    Literal["auto", "minmax", "percentile", "mse", "entropy"],
    typer.Option("--observer", help="How the ranges of the values are chosen; auto compares all on the calibration data."),
]
Equalize = Annotated[
    bool, typer.Option("--equalize", help="Even out the channels of layers that follow each other before calibrating.")
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop", min=0.0, metavar="POINTS", help="Leave the fewest layers in float with which accuracy falls by no more."
    ),
]
MaxMs = Annotated[
    float | None,
    typer.Option("--max-ms", min=0.0, metavar="MS", help="Leave only layers in float with which each file takes no longer."),
]
Agree = Annotated[
    bool, typer.Option("--agree", help="Compute each layer in the same way in all formats, so that their integers agree.")
]
Io = Annotated[
    Literal["float32", "int8", "uint8"],
    typer.Option("--io", help="Inputs and outputs of integer files; uint8 with a declared preprocessing takes camera pixels."),
]
Layout = Annotated[Literal["nchw", "nhwc"], typer.Option("--layout", help="Order of image inputs and outputs in the file.")]
DynamicBatch = Annotated[
    bool, typer.Option("--dynamic-batch", help="Make files that take any number of samples at once, not only the example's.")
]
MaxBatch = Annotated[
    int,
    typer.Option("--max-batch", min=2, help="The most samples at once with --dynamic-batch in ExecuTorch; others have no limit."),
]
Portable = Annotated[
    bool,
    typer.Option(
        "--portable", help="Make integer ONNX files exact on every x86 CPU, not only on ARM and on x86 CPUs like this one."
    ),
]
Qat = Annotated[
    Path | None,
    typer.Option("--qat", metavar="FILE", help="Weights and scales that `edgefold train --qat` wrote, for integer files."),
]


def refuse_unused(
    precisions: Iterable[Precision],
    *,
    qat: Path | None,
    observer: str,
    equalize: bool,
    exclude: Sequence[str] | None,
    portable: bool = False,
) -> None:
    """Refuses options of quantization where no precision has integers.

    Raises:
        UsageError: see there.
    """
    given = {"--qat": qat is not None, "--observer": observer != "auto", "--equalize": equalize, "--exclude": bool(exclude)}
    given["--portable"] = portable
    names = [name for name, there in given.items() if there]
    wanted = list(precisions)
    if names and not any(scheme_of(precision).rounded for precision in wanted):
        raise UsageError(
            f"{names[0]} is for integers, and precision '{' and '.join(wanted)}' has none; leave it out or give --precision int8"
        )


def refuse_limit_without_batch(max_batch: int, *, dynamic_batch: bool) -> None:
    """Refuses a limit of samples for files that take a fixed number of them.

    Raises:
        UsageError: see there.
    """
    if max_batch != MAX_BATCH and not dynamic_batch:
        raise UsageError(
            f"--max-batch {max_batch} is the limit of files for any batch; give --dynamic-batch too, or leave it out"
        )


def refuse_other_than_svg(out: Path | None) -> None:
    """Refuses the name of a picture that promises another kind of file.

    Raises:
        UsageError: see there.
    """
    if out is not None and out.suffix != ".svg":
        raise UsageError(f"picture '{out}' ends in '{out.suffix}', and is written as SVG; give a name that ends in '.svg'")


def byte_count(text: str | None) -> int | None:
    """``800000``, ``800kB``, ``2MB``, ``1.5MiB`` as a number of bytes; ``None`` stays.

    Raises:
        UsageError: another form, or nothing at all.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kMG])(i?)B?|B)?", text.strip())
    factor = 1 if match is None or not match[2] else (1024 if match[3] else 1000) ** ("kMG".index(match[2]) + 1)
    count = 0 if match is None else int(float(match[1]) * factor)
    if count < 1:
        raise UsageError(f"size '{text}' cannot be read; expected a number of bytes, such as 800000, 800kB or 2MB")
    return count
