"""What is left of a decision when the first k nodes of an order are kept, or taken away: a chart for each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truing.records import Curve
from truing.report.axis import Axis
from truing.report.numbers import number
from truing.report.svg import line, plain, tag, text

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 330, 12, 186
STYLES = ("first", "second", "third", "fourth")
ORDERS = ("influence", "attribution", "activation", "random")
"""Orders in which they are listed; any other follows."""
KEPT = {
    "faithfulness": "Faithfulness: only the first k nodes are kept",
    "completeness": "Completeness: the first k nodes are taken away",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """One chart, with the same as a table."""

    heading: str
    plot: Markup
    orders: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """k, and the share by each order."""


def kept(curves: Sequence[Curve]) -> tuple[Kept, ...]:
    """Charts by question and ablation; curves without points are left out."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        if curve.points:
            groups.setdefault((curve.name, curve.ablation), []).append(curve)
    return tuple(_chart(name, ablation, _ordered(group)) for (name, ablation), group in groups.items())


def _ordered(group: list[Curve]) -> list[Curve]:
    return sorted(group, key=lambda c: (ORDERS.index(c.choice) if c.choice in ORDERS else len(ORDERS), c.choice))


def _chart(name: str, ablation: str, group: list[Curve]) -> Kept:
    steps = sorted({k for curve in group for k, _ in curve.points})
    up = Axis.over([0.0, 1.0, *(share for curve in group for _, share in curve.points)])
    across = {k: LEFT + (RIGHT - LEFT) * (place + 0.5) / len(steps) for place, k in enumerate(steps)}
    parts = _frame(up, across)
    for curve, style in zip(group, _styles(len(group)), strict=True):
        points = [(across[k], up.at(share, BOTTOM, TOP)) for k, share in sorted(curve.points)]
        parts.append(tag("polyline", points=" ".join(f"{plain(x)},{plain(y)}" for x, y in points),
                         class_=f"curve {style}"))  # fmt: skip
        parts += [
            tag("circle", tag("title", f"{curve.choice}, k = {k}: {number(share)}"), cx=x, cy=y, r=6, class_="touch")
            for (x, y), (k, share) in zip(points, sorted(curve.points), strict=True)
        ]
    parts += _ends(group, up)
    heading = f"{KEPT[name]} ({ablation} ablation)"
    svg = tag("svg", *parts, class_="curves", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
              aria_label=f"{heading}, by {', '.join(curve.choice for curve in group)}")  # fmt: skip
    shares = [dict(curve.points) for curve in group]
    rows = tuple((k, tuple(number(of[k]) if k in of else "" for of in shares)) for k in steps)
    return Kept(heading, svg, tuple(curve.choice for curve in group), rows)


def _styles(count: int) -> list[str]:
    return [STYLES[min(place, len(STYLES) - 1)] for place in range(count)]


def _ends(group: list[Curve], up: Axis) -> list[Markup]:
    """The name of each order, with its line, beside the end of it; names that would touch move apart."""
    parts, last = [], TOP - 14.0
    places = sorted((up.at(max(curve.points)[1], BOTTOM, TOP), place) for place, curve in enumerate(group))
    styles = _styles(len(group))
    for y, place in places:
        last = max(y, last + 14.0)
        parts += [line(RIGHT + 6, last, RIGHT + 22, last, f"curve {styles[place]}"),
                  text(group[place].choice, RIGHT + 26, last + 4, anchor="start")]  # fmt: skip
    return parts


def _frame(up: Axis, across: dict[int, float]) -> list[Markup]:
    parts = []
    for value, said in up.ticks(4):
        y = up.at(value, BOTTOM, TOP)
        parts += [line(LEFT, y, RIGHT, y, "grid"), text(said, LEFT - 6, y + 4, anchor="end")]
    for value in (0.0, 1.0):
        parts.append(line(LEFT, up.at(value, BOTTOM, TOP), RIGHT, up.at(value, BOTTOM, TOP), "mark"))
    every = -(-len(across) // 8)
    for place, (k, x) in enumerate(across.items()):
        if place % every == 0:
            parts.append(text(str(k), x, BOTTOM + 16))
    return [*parts, text("k nodes (each step alike wide)", (LEFT + RIGHT) / 2, HEIGHT - 6)]
