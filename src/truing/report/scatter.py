"""Scatter of the same things measured twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truing.report.axis import Axis
from truing.report.numbers import number
from truing.report.svg import line, tag, text, upright

SIZE = 400
LEFT, RIGHT, TOP, BOTTOM = 60, 388, 12, 340


@dataclass(frozen=True, slots=True)
class Point:
    """A thing with its two values."""

    name: str
    x: float
    y: float


def scatter(points: Sequence[Point], *, across: str, up: str) -> Markup:
    """Second value over first, on one scale, with the line on which nothing has changed."""
    axis = Axis.over([0.0, *(value for point in points for value in (point.x, point.y))])
    parts = []
    for value, said in axis.ticks(4):
        x, y = axis.at(value, LEFT, RIGHT), axis.at(value, BOTTOM, TOP)
        parts += [line(x, TOP, x, BOTTOM, "grid"), line(LEFT, y, RIGHT, y, "grid")]
        parts += [text(said, x, BOTTOM + 16), text(said, LEFT - 6, y + 4, anchor="end")]
    zero_x, zero_y = axis.at(0, LEFT, RIGHT), axis.at(0, BOTTOM, TOP)
    parts += [line(zero_x, TOP, zero_x, BOTTOM, "zero"), line(LEFT, zero_y, RIGHT, zero_y, "zero")]
    parts.append(line(LEFT, BOTTOM, RIGHT, TOP, "unchanged"))
    parts += [_dot(point, axis) for point in points]
    parts.append(text(across, (LEFT + RIGHT) / 2, SIZE - 14))
    parts.append(upright(up, 12, (TOP + BOTTOM) / 2))
    said = f"{len(points)} points: {up} over {across}"
    return tag("svg", *parts, class_="scatter", viewBox=f"0 0 {SIZE} {SIZE}", role="img", aria_label=said)


def _dot(point: Point, axis: Axis) -> Markup:
    title = tag("title", f"{point.name}: {number(point.x, signed=True)} then {number(point.y, signed=True)}")
    return tag("circle", title, cx=axis.at(point.x, LEFT, RIGHT), cy=axis.at(point.y, BOTTOM, TOP), r=3.5, class_="dot")
