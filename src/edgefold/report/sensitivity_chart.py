"""The picture of where INT8 loses accuracy: along the network, the SQNR up to each layer and that of each layer alone."""

from __future__ import annotations

from edgefold.quantize.sensitivity_data import LayerSensitivity, Sensitivity
from edgefold.report.svg import Scale, element, label, picture, tooltip

WIDTH = 640.0
_HEIGHT, _TOP, _BOTTOM, _LEFT = 300.0, 16.0, 236.0, 52.0
_CEILING_DB = 80.0  # what is above is as good as exact, and would squeeze the rest
_NAMED = 3


def sensitivity_chart(sensitivity: Sensitivity) -> str:
    """One column a layer in the order of the network; the three that do most harm by themselves are named."""
    layers = sorted(sensitivity.layers, key=lambda layer: layer.index)
    if not layers:
        return ""
    values = [_shown(value) for layer in layers for value in (layer.alone_db, layer.cumulative_db)]
    y = Scale(min(0.0, *values), max(*values, 10.0) * 1.05, _BOTTOM, _TOP)
    x = Scale(-0.5, len(layers) - 0.5, _LEFT, WIDTH - 12)
    parts = []
    for tick in y.ticks(5):
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(label(x.start - 6, y(tick) + 4, f"{tick:g} dB", class_="axis", text_anchor="end"))
    worst = {layer.node for layer in sensitivity.layers[:_NAMED]}
    width = min(24.0, 0.7 * (x.end - x.start) / len(layers))
    for place, layer in enumerate(layers):
        parts.append(_column(layer, x(place), y, width, worst=layer.node in worst))
    points = [f"{x(place):.1f} {y(_shown(layer.cumulative_db)):.1f}" for place, layer in enumerate(layers)]
    parts.append(element("path", d="M" + "L".join(points), class_="cumulative"))
    for place, layer in enumerate(layers):
        dot = element("circle", tooltip(_told(layer)), cx=x(place), cy=y(_shown(layer.cumulative_db)), r=2.5, class_="dot")
        parts.append(dot)
    parts.append(element("line", x1=x.start, x2=x.end, y1=_BOTTOM, y2=_BOTTOM, class_="axisline"))
    parts += _names([(x(place), layer) for place, layer in enumerate(layers) if layer.node in worst])
    return picture(WIDTH, _HEIGHT, "".join(parts), "SQNR of each layer")


def _column(layer: LayerSensitivity, x: float, y: Scale, width: float, *, worst: bool) -> str:
    top, base = y(max(_shown(layer.alone_db), y.low)), y(y.low)
    bar = element(
        "rect",
        tooltip(_told(layer)),
        x=x - width / 2,
        width=width,
        y=top,
        height=max(base - top, 1.0),
        class_="alone worst" if worst else "alone",
    )
    return element("g", bar)


def _names(marked: list[tuple[float, LayerSensitivity]]) -> list[str]:
    """The names below the axis, each on a line of its own, so that neighbours do not cover each other."""
    parts = []
    for row, (x, layer) in enumerate(marked):
        y = _BOTTOM + 18 + 18 * row
        anchor = "start" if x < WIDTH * 0.35 else "end" if x > WIDTH * 0.65 else "middle"
        parts.append(element("line", x1=x, x2=x, y1=_BOTTOM, y2=y - 10, class_="grid"))
        parts.append(label(x, y + 2, f"{_short(layer.name)}: {layer.alone_db:.1f} dB alone", class_="axis", text_anchor=anchor))
    return parts


def _told(layer: LayerSensitivity) -> str:
    return (
        f"{layer.name}: alone {layer.alone_db:.1f} dB, up to here {layer.cumulative_db:.1f} dB, "
        f"{layer.gain_db:+.1f} dB if it stays float"
    )


def _short(name: str) -> str:
    return name if len(name) <= 48 else "…" + name[-47:]


def _shown(value: float) -> float:
    return min(value, _CEILING_DB)
