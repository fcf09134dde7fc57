"""Fold: any linear convolution, however written, becomes one convolution; what is none stays, with the reason."""

from edgefold.export.fold.fold import FoldResult, fold_module, unfolded
from edgefold.export.fold.structure import read_structure

__all__ = ["FoldResult", "fold_module", "read_structure", "unfolded"]
