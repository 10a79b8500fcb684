"""Figures of a report: inline SVG and small pictures, coloured by the classes of `report.css`.

Every function returns markup that is safe to put into a page: texts are escaped here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = [
    "CONFUSION_STEPS",
    "EVEN_STEPS",
    "MARKERS",
    "SMALL",
    "Line",
    "accuracy_chart",
    "confusion_picture",
    "heat_level",
    "heat_scale",
    "image_uri",
    "series_style",
    "swatch",
]

COLOURS = 6
MARKERS = ("circle", "square", "diamond", "triangle")
SHAPES = {
    "circle": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "square": "M-3.2 -3.2h6.4v6.4h-6.4z",
    "diamond": "M0 -4.5L4.5 0L0 4.5L-4.5 0z",
    "triangle": "M0 -4.4L4.3 3.3L-4.3 3.3z",
}
CHART_TITLE = "Accuracy over all classes seen, by the number of classes seen"
"""What an accuracy chart shows, for those who cannot see it."""

MOST_MARKED = 25
"""Points of a line beyond which markers would merge into a band."""

EVEN_STEPS = (0, 11, 22, 33, 44, 56, 67, 78, 89)
CONFUSION_STEPS = (0, 2, 5, 10, 20, 35, 50, 65, 80)
"""A percentage above step k has heat level k + 1; these lie closer where confusions are."""

SMALL = 64
"""The longest side, in pixels, of an image that is shown as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        label: its name, in the legend and in tool tips.
        style: class of `report.css` that gives colour, width and dashes.
        marker: one of `MARKERS`.
        x: classes seen, ascending.
        y: percent.
        low: lower edge of a band around the line; empty where there is none. `high` likewise.
    """

    label: str
    style: str
    marker: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a chart's data lie in its picture."""

    width: int
    height: int
    first_x: float
    last_x: float
    low_y: float
    high_y: float = 100.0
    left: int = 40
    right: int = 14
    top: int = 30
    bottom: int = 44

    def x(self, value: float) -> float:
        inner = self.width - self.left - self.right - 16
        span = self.last_x - self.first_x
        share = (value - self.first_x) / span if span else 0.5
        return round(self.left + 8 + inner * share, 1)

    def y(self, value: float) -> float:
        inner = self.height - self.top - self.bottom
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return round(self.height - self.bottom - inner * share, 1)


def accuracy_chart(lines: Sequence[Line]) -> str:
    """Accuracy in percent by the number of classes seen.

    Drawn twice, for wide and for narrow screens, because text in one scaled picture would be too
    small to read on a phone; the style sheet shows one of them.
    """
    return _chart(lines, "wide", 760, 400) + _chart(lines, "narrow", 360, 300)


def _chart(lines: Sequence[Line], kind: str, width: int, height: int) -> str:
    lowest = min(min([*line.y, *line.low]) for line in lines)
    positions = sorted({x for line in lines for x in line.x})
    low = max(0.0, (lowest - 4) // 20 * 20)
    frame = _Frame(width, height, positions[0], positions[-1], low)
    bands = [_band(line, frame) for line in lines if line.low]
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{CHART_TITLE}">'
        f"{_axes(frame, positions)}{''.join(bands)}"
        f"{''.join(_curve(line, frame) for line in lines)}</svg>"
    )


def _axes(frame: _Frame, positions: Sequence[float]) -> str:
    left, right = frame.left, frame.width - frame.right
    base = frame.y(frame.low_y)
    parts = [f'<text class="axis" x="{left - 34}" y="16">accuracy in %</text>']
    step = 20 if frame.low_y <= 20 else 10 if frame.low_y <= 60 else 5
    for percent in range(int(frame.low_y), 101, step):
        y = frame.y(percent)
        parts.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        parts.append(f'<text class="tick end" x="{left - 8}" y="{y + 4:.1f}">{percent}</text>')
    for value in _apart([frame.x(position) for position in positions], positions):
        x = frame.x(value)
        parts.append(f'<path class="mark" d="M{x} {base}v5"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{base + 19:.1f}">{value:g}</text>')
    parts.append(f'<path class="mark" d="M{left} {base}H{right}"/>')
    parts.append(f'<text class="axis end" x="{right}" y="{frame.height - 6}">classes seen</text>')
    return "".join(parts)


def _apart(places: Sequence[float], values: Sequence[float], least: float = 30) -> list[float]:
    """The values whose places leave room for a number; the last is always among them."""
    chosen, taken = [values[-1]], places[-1]
    for place, value in zip(reversed(places[:-1]), reversed(values[:-1]), strict=True):
        if taken - place >= least:
            chosen.append(value)
            taken = place
    return chosen[::-1]


def _band(line: Line, frame: _Frame) -> str:
    there = [f"{frame.x(x)} {frame.y(y)}" for x, y in zip(line.x, line.high, strict=True)]
    back = [f"{frame.x(x)} {frame.y(y)}" for x, y in zip(line.x, line.low, strict=True)]
    return f'<path class="band {line.style}" d="M{"L".join([*there, *reversed(back)])}z"/>'


def _curve(line: Line, frame: _Frame) -> str:
    points = list(zip(line.x, line.y, strict=True))
    path = "L".join(f"{frame.x(x)} {frame.y(y)}" for x, y in points)
    markers = [
        f'<path class="marker" d="{SHAPES[line.marker]}" '
        f'transform="translate({frame.x(x)} {frame.y(y)})">'
        f"<title>{escape(line.label)}, {x:g} classes: {y:.2f} %</title></path>"
        for x, y in points
        if len(points) <= MOST_MARKED
    ]
    return f'<g class="{line.style}"><path class="line" d="M{path}"/>{"".join(markers)}</g>'


def series_style(index: int) -> str:
    """The class of a line in the colour of `index`; after all colours they come a second time."""
    return f"series-{index % COLOURS + 1}" + (" second" if index >= COLOURS else "")


def swatch(line: Line) -> str:
    """A piece of the line, for a legend."""
    return (
        f'<svg class="swatch {line.style}" viewBox="0 0 36 12" aria-hidden="true">'
        f'<path class="line" d="M1 6H35"/>'
        f'<path class="marker" d="{SHAPES[line.marker]}" transform="translate(18 6)"/></svg>'
    )


def heat_level(percent: float, steps: Sequence[int]) -> int:
    """0 for nothing up to 9 for nearly all, which are classes of `report.css`."""
    return sum(percent > step for step in steps)


def heat_scale(steps: Sequence[int]) -> str:
    """The key to the colours of heat levels."""
    ends = [*map(str, steps), "100"]
    labels = ["0", *(f"{low}&ndash;{high}" for low, high in pairwise(ends))]
    cells = [f'<li class="heat h{level}">{label}</li>' for level, label in enumerate(labels)]
    return f'<ul class="scale" aria-label="Colours, in percent">{"".join(cells)}</ul>'


def confusion_picture(
    shares: np.ndarray, task_sizes: Sequence[int], names: Sequence[str], title: str
) -> str:
    """True classes (rows) by predicted ones (columns), with lines where tasks meet.

    Up to 30 classes are named at the rows; of more, the tasks are.

    Args:
        shares: (classes, classes), each row in percent of its class's images.
        title: what the picture shows, for those who cannot see it.
    """
    classes, side = len(shares), 480
    left, top = (150, 46) if classes <= 30 else (72, 46)
    scale = side / classes
    width, height = left + side + 2, top + side + 2
    return (
        f'<svg class="confusion {"by-class" if classes <= 30 else "by-task"}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<text class="axis" x="{left}" y="13">predicted class, by task</text>'
        f'<text class="axis end" x="{left - 10}" y="{top - 10}">true class</text>'
        f'<g transform="translate({left} {top})">'
        f'<g class="cells" transform="scale({scale:.6g})">{_cells(shares)}</g>'
        f"{_boundaries(task_sizes, scale, side)}"
        f"{_names(names, scale) if classes <= 30 else ''}"
        f"{_task_numbers(task_sizes, scale, rows=classes > 30)}</g></svg>"
    )


def _cells(shares: np.ndarray) -> str:
    """One path for each heat level, with neighbours in a row joined: a tenth of single squares."""
    levels = sum((shares > step).astype(int) for step in CONFUSION_STEPS)
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(np.asarray(levels)):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for start, end in pairwise(edges):
            paths.setdefault(int(row[start]), []).append(f"M{start} {y}h{end - start}v1H{start}z")
    return "".join(f'<path class="h{level}" d="{"".join(d)}"/>' for level, d in paths.items())


def _boundaries(task_sizes: Sequence[int], scale: float, side: int) -> str:
    ends = [round(end * scale, 1) for end in accumulate(task_sizes)][:-1]
    lines = "".join(f"M{end} 0V{side}M0 {end}H{side}" for end in ends)
    return (
        f'<path class="boundary" d="{lines}"/><rect class="frame" width="{side}" height="{side}"/>'
    )


def _task_numbers(task_sizes: Sequence[int], scale: float, *, rows: bool) -> str:
    """Tasks named at their middle, above the columns and, where wanted, beside the rows."""
    ends = [0, *accumulate(task_sizes)]
    middles = [round((start + end) / 2 * scale, 1) for start, end in pairwise(ends)]
    numbers = list(range(1, len(task_sizes) + 1))
    above = _apart(middles, numbers, 22)
    beside = _apart(middles, numbers, 14) if rows else []
    parts = [
        f'<text class="tick middle" x="{middles[int(number) - 1]}" y="-8">{number}</text>'
        for number in above
    ]
    parts += [
        f'<text class="tick end" x="-8" y="{middles[int(number) - 1] + 4:.1f}">task {number}</text>'
        for number in beside
    ]
    return "".join(parts)


def _names(names: Sequence[str], scale: float) -> str:
    parts = []
    for index, name in enumerate(names):
        short = name if len(name) <= 17 else f"{name[:16]}…"
        y = round((index + 0.5) * scale + 4, 1)
        parts.append(f'<text class="tick end" x="-8" y="{y}">{escape(short)}</text>')
    return "".join(parts)


def image_uri(pixels: Tensor) -> str:
    """An image (H, W, 3) of uint8 as a data URI.

    As it is where it is small; a thumbnail where a side is longer than `SMALL` pixels, because a
    hundred photographs would make a page of many megabytes.
    """
    image = Image.fromarray(pixels.numpy())
    out = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(out, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((2 * SMALL, 2 * SMALL))
        image.save(out, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
