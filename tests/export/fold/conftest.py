"""Puts the root of the repository and the benchmarks on the path: the published forms are shared with them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
