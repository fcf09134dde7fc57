"""Puts the benchmarks on the path: the networks of the block study are made of the blocks tested here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
