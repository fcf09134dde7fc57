"""Small pieces of SVG: escaped elements, a linear scale, round tick values.

Colours are CSS classes of the page, never values, so that one picture serves a light and a dark page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values (low..high) to pixels (start..end)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        span = self.high - self.low
        share = 0.5 if span == 0 else (value - self.low) / span
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values (1, 2 or 5 times a power of ten apart) inside the scale."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10 ** math.floor(math.log10(span / count))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
        first = math.ceil(self.low / step)
        return [step * i for i in range(first, math.floor(self.high / step) + 1)]


def element(tag: str, content: str = "", **attributes: str | float) -> str:
    """An element. ``content`` is markup already; attribute names take ``_`` for ``-`` and ``class_`` for ``class``."""
    pairs = "".join(f' {_name(key)}="{escape(_text(value))}"' for key, value in attributes.items())
    return f"<{tag}{pairs}>{content}</{tag}>" if content else f"<{tag}{pairs}/>"


def label(x: float, y: float, content: str, **attributes: str | float) -> str:
    """Text at a point, escaped."""
    return element("text", escape(content), x=x, y=y, **attributes)


def tooltip(content: str) -> str:
    """What a browser shows when the pointer rests on the element around it."""
    return element("title", escape(content))


def picture(width: float, height: float, content: str, title: str) -> str:
    """A whole picture that scales with the page; ``title`` is for readers who cannot see it."""
    return element("svg", content, viewBox=f"0 0 {_text(width)} {_text(height)}", role="img", aria_label=title)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
