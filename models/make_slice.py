"""Makes the shipped slice of Fashion-MNIST; kept so that the file can be made again: ``python -m edgefold.models.make_slice``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgefold.artifact import atomic_path
from edgefold.models.data import ImageSet, read_fashion_mnist
from edgefold.models.registry import SLICE

_DATE = (2017, 8, 25, 0, 0, 0)  # of the data set; a fixed one, so that the same content gives the same file


def stratified(data: ImageSet, per_class: int) -> torch.Tensor:
    """The indices of the first ``per_class`` images of each class, class by class."""
    return torch.cat([torch.nonzero(data.labels == label).flatten()[:per_class] for label in range(len(data.classes))])


def write_npz(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    """An ``.npz`` with LZMA, which is a tenth smaller than numpy's own deflate and which `numpy.load` reads as well."""
    with atomic_path(path, force=True) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), buffer.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    """Writes the slice into the package."""
    data = read_fashion_mnist()
    arrays: dict[str, npt.NDArray[np.generic]] = {"classes": np.array(data.train.classes)}
    for part, images in (("calibration", data.train), ("evaluation", data.test)):
        index = stratified(images, 100)
        arrays[f"{part}_images"] = images.images[index, 0].numpy()
        arrays[f"{part}_labels"] = images.labels[index].to(torch.uint8).numpy()
    write_npz(SLICE, arrays)


if __name__ == "__main__":
    main()
