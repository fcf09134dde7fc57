"""How an image becomes the input of a network, as data: the same few numbers serve Python, Kotlin, Swift and C++.

tensor[0, c, y, x] = (pixel[y, x, c] / divisor - mean[c]) / std[c]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from edgefold.errors import DataError, UsageError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLOURS = {"gray": 1, "rgb": 3, "bgr": 3}
RESIZES = ("none", "stretch", "crop")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From pixels in 0..255 to a float tensor of shape (1, channels, height, width).

    ``resize`` is "none" (an image of another size is refused), "stretch" (straight to the target size) or "crop" (the shorter
    side to ``shorter_side``, then the middle of the target size). Resizing is antialiased. ``colour`` is the order of the
    channels that the network wants: "gray", "rgb" or "bgr"; images are given as grey or RGB.

    Raises:
        UsageError: an unknown word, sizes below 1, or another number of means or deviations than channels.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colour: str = "rgb"
    divisor: float = 255.0
    resize: str = "none"
    shorter_side: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, valid in (("colour", COLOURS), ("resize", RESIZES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in valid:
                raise UsageError(f"preprocessing has {name} '{getattr(self, name)}'; expected one of: {', '.join(valid)}")
        if min(self.height, self.width) < 1:
            raise UsageError(f"preprocessing has size {self.height}x{self.width}; both must be 1 or more")
        if (self.resize == "crop") != (self.shorter_side is not None) or (self.shorter_side or self._size) < self._size:
            raise UsageError(
                f"preprocessing has resize '{self.resize}' and shorter_side {self.shorter_side}; "
                f"'crop' (and it alone) needs a shorter side of at least {self._size}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} deviations for {self.channels} channels; "
                "give one of each a channel"
            )
        if not self.divisor > 0 or not all(value > 0 for value in self.std):
            raise UsageError(f"preprocessing has divisor {self.divisor} and deviations {self.std}; all must be above 0")

    @property
    def channels(self) -> int:
        """The number of channels of the tensor."""
        return COLOURS[self.colour]

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest value that pixels can become."""
        lows = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        highs = [(255 / self.divisor - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return min(lows), max(highs)

    @property
    def text(self) -> str:
        """The numbers, as in ``mean 0.5, std 0.25, rgb``."""

        def numbers(values: tuple[float, ...]) -> str:
            return ",".join(f"{value:.6g}" for value in (values if len(set(values)) > 1 else values[:1]))

        divisor = "" if self.divisor == 255.0 else f", divisor {self.divisor:g}"
        return f"mean {numbers(self.mean)}, std {numbers(self.std)}{divisor}, {self.colour}, resize {self.resize}"

    def same_values(self, other: Preprocessing) -> bool:
        """Whether both make the same numbers of the same pixels, however they come to the size."""
        mine, theirs = ((each.mean, each.std, each.divisor, each.colour) for each in (self, other))
        return mine == theirs

    @property
    def _size(self) -> int:
        return max(self.height, self.width)

    def __call__(self, image: Any) -> NDArray[np.float32]:
        """The input tensor (1, C, H, W) for an image.

        ``image`` is uint8 of shape (H, W) or (H, W, C), grey or RGB, or a `PIL.Image`. A float array is taken as prepared
        already: (C, H, W) or (N, C, H, W).

        Raises:
            DataError: another dtype, shape or number of channels.
        """
        import numpy as np

        array = np.asarray(image)
        if np.issubdtype(array.dtype, np.floating):
            return self._tensor(array)
        if array.dtype != np.uint8:
            raise DataError(f"image has dtype {array.dtype}; give uint8 pixels or a float tensor")
        pixels = self._resized(self._with_channels(array))
        if self.colour == "bgr":
            pixels = pixels[:, :, ::-1]
        scaled = pixels.astype(np.float32) / np.float32(self.divisor)  # (H, W, C)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])

    def _tensor(self, array: NDArray[Any]) -> NDArray[np.float32]:
        import numpy as np

        batch = array[None] if array.ndim == 3 else array
        expected = (self.channels, self.height, self.width)
        if batch.ndim != 4 or batch.shape[1:] != expected:
            raise DataError(f"float image has shape {array.shape}; expected {expected}, or a batch of it")
        return np.ascontiguousarray(batch, dtype=np.float32)

    def _with_channels(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels = array[:, :, None] if array.ndim == 2 else array
        if pixels.ndim != 3 or pixels.shape[2] != self.channels:
            raise DataError(
                f"uint8 image has shape {array.shape}; expected (height, width, {self.channels})"
                + (" or (height, width)" if self.channels == 1 else "")
            )
        return pixels

    def _resized(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = pixels.shape[:2]
        if self.resize == "none":
            if (height, width) != (self.height, self.width):
                raise DataError(f"image has {height}x{width} pixels; expected {self.height}x{self.width}, resize it first")
            return pixels
        if self.shorter_side is None:
            return self._scaled(pixels, self.height, self.width)
        # As torchvision: the longer side is rounded down, the crop is centred with its halves rounded to even.
        short = min(height, width)
        scaled = self._scaled(pixels, *(side * self.shorter_side // short for side in (height, width)))
        top, left = round((scaled.shape[0] - self.height) / 2), round((scaled.shape[1] - self.width) / 2)
        return scaled[top : top + self.height, left : left + self.width]

    def _scaled(self, pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        import numpy as np
        from PIL import Image

        if pixels.shape[:2] == (height, width):
            return pixels
        method = Image.Resampling[self.interpolation.upper()]
        planes = [Image.fromarray(pixels[:, :, c]).resize((width, height), method) for c in range(pixels.shape[2])]
        return np.stack([np.asarray(plane) for plane in planes], axis=2)


def declared(pairs: Iterable[str], base: Preprocessing | None, size: tuple[int, int, int]) -> Preprocessing:
    """The preprocessing that ``KEY=VALUE`` pairs declare; what they leave out is as in ``base``.

    Args:
        pairs: e.g. ``mean=0.485,0.456,0.406``, ``std=0.25`` (for every channel), ``resize=crop``, ``shorter_side=256``.
        base: what the model's source says.
        size: (C, H, W) of the network's input.

    Raises:
        UsageError: an unknown key, a value of another type, or what `Preprocessing` refuses.
    """
    channels, height, width = size
    values: dict[str, Any] = {} if base is None else asdict(base)
    if base is None:
        values = {"height": height, "width": width, "colour": "gray" if channels == 1 else "rgb"}
    valid = [field.name for field in fields(Preprocessing)]
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"preprocessing '{pair}' has no value; write KEY=VALUE, e.g. mean=0.5")
        if key not in valid:
            raise unknown_name("preprocessing key", key, valid)
        values[key] = _value(key, text, channels)
    if "shorter_side" in values and values["shorter_side"] is not None and "resize" not in values:
        values["resize"] = "crop"
    missing = [key for key in ("mean", "std") if key not in values]
    if missing:
        raise UsageError(f"preprocessing lacks {' and '.join(missing)}; declare both, e.g. mean=0.5 and std=0.5")
    return Preprocessing(**values)


def _value(key: str, text: str, channels: int) -> Any:
    try:
        if key in ("mean", "std"):
            numbers = tuple(float(part) for part in text.split(","))
            return numbers * channels if len(numbers) == 1 else numbers
        if key in ("height", "width", "shorter_side"):
            return int(text)
        return float(text) if key == "divisor" else text
    except ValueError as error:
        raise UsageError(f"preprocessing {key} is '{text}', expected a number (mean and std: one a channel)") from error
