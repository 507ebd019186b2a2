"""Interval rows: estimates with the same unit, one below the other on one axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from truing.records import Estimate, Named, Quantity
from truing.report import numbers
from truing.report.axis import Axis
from truing.report.svg import line, percent, tag, text

HEIGHT = 28
MIDDLE = 12
RUG = 24
"""Where cluster means stand, below the interval."""
FAR = 20
"""How many times farther from zero a quantity reaches that is drawn apart from the others."""
Mark = Literal["filled", "hollow", "strong"]


@dataclass(frozen=True, slots=True)
class Row:
    """A quantity to draw. Dots are the cluster means that it is taken over."""

    label: str
    quantity: Quantity
    mark: Mark = "filled"
    note: str = ""
    dots: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row as it stands in the page: either a strip with its numbers, or the reason why there is none."""

    label: str
    note: str
    mark: Mark
    strip: Markup | None
    value: str
    counts: str
    reason: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows, their axis, and how they were estimated."""

    rows: tuple[Drawn, ...]
    axis: Markup | None
    caption: str


def chart(
    rows: Sequence[Row],
    *,
    bound: float | None = None,
    lines: Sequence[float] = (),
    signed: bool = False,
    source: str = "",
) -> Chart:
    """One chart.

    `bound` shades the effects too small to matter, `lines` are drawn beside the zero line, `signed` is for differences.
    """
    seen = [row.quantity for row in rows if isinstance(row.quantity, Estimate)]
    ends = [end for one in seen for end in (one.low, one.high)]
    dots = [dot for row in rows for dot in row.dots]
    edges = [-bound, bound] if bound else []
    axis = Axis.over([0.0, *ends, *dots, *edges, *lines])
    signed = signed or any(one.low < 0 for one in seen)
    back = _background(axis, bound, lines)
    drawn = tuple(_drawn(row, axis, back, signed) for row in rows)
    return Chart(drawn, _axis(axis) if seen else None, _caption(rows, seen, source))


def by_unit(rows: Iterable[Row], *, signed: bool = False, split: bool = False, source: str = "") -> list[Chart]:
    """One chart for each unit; what was not measured stands last.

    With `split`, quantities that others would dwarf get a chart of their own (not for rows that are to be compared).
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.quantity.unit if isinstance(row.quantity, Estimate) else "", []).append(row)
    units = sorted(groups, key=lambda unit: (unit == "", unit))
    parts = [part for unit in units for part in (_apart(groups[unit]) if split else [groups[unit]])]
    return [chart(part, signed=signed, source=source) for part in parts]


def named(quantities: Iterable[Named], mark: Mark = "filled") -> list[Row]:
    """Rows of a list of named quantities."""
    return [Row(one.name, one.quantity, mark, one.note) for one in quantities]


def _apart(rows: Sequence[Row]) -> list[list[Row]]:
    farthest = max(map(_reach, rows))
    far = [row for row in rows if _reach(row) * FAR >= farthest]
    near = [row for row in rows if _reach(row) * FAR < farthest]
    return [part for part in (far, near) if part]


def _reach(row: Row) -> float:
    seen = row.quantity
    return max(abs(seen.low), abs(seen.high)) if isinstance(seen, Estimate) else 0.0


def _drawn(row: Row, axis: Axis, back: Markup, signed: bool) -> Drawn:
    if not isinstance(row.quantity, Estimate):
        return Drawn(row.label, row.note, row.mark, None, "", "", row.quantity.reason)
    value = numbers.interval(row.quantity, signed=signed)
    strip = _strip(row, row.quantity, axis, back)
    return Drawn(row.label, row.note, row.mark, strip, value, numbers.counts(row.quantity), "")


def _strip(row: Row, seen: Estimate, axis: Axis, back: Markup) -> Markup:
    low, value, high = (percent(axis.at(x)) for x in (seen.low, seen.value, seen.high))
    dots = [tag("circle", cx=percent(axis.at(dot)), cy=RUG, r=2.5, class_="cluster") for dot in row.dots]
    marks = [
        line(low, MIDDLE, high, MIDDLE, "whisker"),
        line(low, MIDDLE - 4, low, MIDDLE + 4, "whisker"),
        line(high, MIDDLE - 4, high, MIDDLE + 4, "whisker"),
        tag("circle", cx=value, cy=MIDDLE, r=5.5 if row.mark == "strong" else 4.5, class_="value"),
    ]
    return tag("svg", back, *dots, *marks, class_=f"strip {row.mark}", width="100%", height=HEIGHT, aria_hidden="true")


def _background(axis: Axis, bound: float | None, lines: Sequence[float]) -> Markup:
    parts = []
    if bound:
        left, right = axis.at(-bound), axis.at(bound)
        parts.append(tag("rect", x=percent(left), y=0, width=percent(right - left), height=HEIGHT, class_="bound"))
    parts += [line(percent(axis.at(x)), 0, percent(axis.at(x)), HEIGHT, "mark") for x in lines]
    zero = percent(axis.at(0))
    return Markup("").join([*parts, line(zero, 0, zero, HEIGHT, "zero")])


def _axis(axis: Axis) -> Markup:
    parts = [line("0%", 1, "100%", 1, "rule")]
    for value, said in axis.ticks():
        x = axis.at(value)
        parts += [line(percent(x), 1, percent(x), 5, "rule"), text(said, percent(x), 17)]
    return tag("svg", *parts, class_="ticks", width="100%", height=20, aria_hidden="true")


def _caption(rows: Sequence[Row], seen: Sequence[Estimate], source: str) -> str:
    if not seen:
        return source
    levels = " and ".join(f"{level:.0%}" for level in sorted({one.level for one in seen}))
    estimators = sorted({one.estimator for one in seen})
    how = estimators[0] if len(estimators) == 1 else "; ".join(_how(rows, estimator) for estimator in estimators)
    return ". ".join(part for part in (f"{levels} intervals: {how}", source) if part) + "."


def _how(rows: Sequence[Row], estimator: str) -> str:
    of = [row.label for row in rows if isinstance(row.quantity, Estimate) and row.quantity.estimator == estimator]
    return f"{estimator} ({', '.join(dict.fromkeys(of))})"
