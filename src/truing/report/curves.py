"""Line charts, small enough to stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truing.report.axis import Axis
from truing.report.numbers import number
from truing.report.svg import line, plain, tag, text

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 408, 12, 172


@dataclass(frozen=True, slots=True)
class Curve:
    """Values in order, with the style of their line ("first" solid, "second" dashed)."""

    name: str
    values: tuple[float, ...]
    style: str = "first"


def curves(shown: Sequence[Curve], steps: Sequence[int], *, zero: bool = False, step: str = "step") -> Markup:
    """A chart of one or more curves over the same steps, which are called `step`; `zero` keeps 0 in the range and draws
    it.
    """
    values = [value for curve in shown for value in curve.values]
    up, along = Axis.over([*values, *([0.0] if zero else [])]), Axis.over(steps, pad=0.02)
    parts = [*_frame(up, along, steps, step)]
    if zero:
        y = up.at(0, BOTTOM, TOP)
        parts.append(line(LEFT, y, RIGHT, y, "zero"))
    for curve in shown:
        points = [(along.at(x, LEFT, RIGHT), up.at(y, BOTTOM, TOP)) for x, y in zip(steps, curve.values, strict=True)]
        parts.append(
            tag("polyline", points=" ".join(f"{plain(x)},{plain(y)}" for x, y in points), class_=f"curve {curve.style}")
        )
        parts += [
            tag("circle", tag("title", f"{step} {at}, {curve.name}: {number(value)}"), cx=x, cy=y, r=6, class_="touch")
            for (x, y), at, value in zip(points, steps, curve.values, strict=True)
        ]
    said = "; ".join(f"{c.name} from {number(c.values[0])} to {number(c.values[-1])}" for c in shown)
    return tag("svg", *parts, class_="curves", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said)


def _frame(up: Axis, along: Axis, steps: Sequence[int], step: str) -> list[Markup]:
    parts = []
    for value, said in up.ticks(4):
        y = up.at(value, BOTTOM, TOP)
        parts += [line(LEFT, y, RIGHT, y, "grid"), text(said, LEFT - 6, y + 4, anchor="end")]
    for value, said in along.ticks(5):
        if float(value).is_integer() and min(steps) <= value <= max(steps):
            parts.append(text(said, along.at(value, LEFT, RIGHT), BOTTOM + 16))
    return [*parts, text(step, (LEFT + RIGHT) / 2, HEIGHT - 4)]
