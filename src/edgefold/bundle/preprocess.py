"""How an image becomes the input of a network, as data: the same few numbers serve Python, Kotlin, Swift and C++.

tensor[0, c, y, x] = (pixel[y, x, c] / divisor - mean[c]) / std[c]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgefold.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From pixels in 0..255 to a float tensor of shape (1, channels, height, width).

    ``resize`` is "none" (an image of another size is refused) or "bilinear" (antialiased, straight to the target size).

    Raises:
        UsageError: sizes below 1, or another number of means or deviations than channels.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: float = 255.0
    resize: str = "none"

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1:
            raise UsageError(f"preprocessing has size {self.height}x{self.width}x{self.channels}; every number must be 1 or more")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} deviations for {self.channels} channels; "
                "give one of each a channel"
            )
        if not self.divisor > 0 or not all(value > 0 for value in self.std):
            raise UsageError(f"preprocessing has divisor {self.divisor} and deviations {self.std}; all must be above 0")
        if self.resize not in ("none", "bilinear"):
            raise UsageError(f"preprocessing has resize '{self.resize}'; expected 'none' or 'bilinear'")

    def __call__(self, image: Any) -> NDArray[np.float32]:
        """The input tensor (1, C, H, W) for an image.

        ``image`` is uint8 of shape (H, W) or (H, W, C), or a `PIL.Image`. A float array is taken as preprocessed already:
        (C, H, W) or (N, C, H, W).

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
        import numpy as np

        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        if self.resize == "none":
            height, width = pixels.shape[:2]
            raise DataError(f"image has {height}x{width} pixels; expected {self.height}x{self.width}, resize it first")
        from PIL import Image

        size = (self.width, self.height)
        planes = [Image.fromarray(pixels[:, :, c]).resize(size, Image.Resampling.BILINEAR) for c in range(self.channels)]
        return np.stack([np.asarray(plane) for plane in planes], axis=2)
