"""Two values of each plot on one axis: the naive and the specific contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truing.report.axis import Axis
from truing.report.numbers import number
from truing.report.svg import line, percent, tag

HEIGHT = 22


@dataclass(frozen=True, slots=True)
class Pairing:
    """A plot with its two values, drawn and in numbers."""

    plot: str
    strip: Markup
    naive: str
    specific: str


def pairings(by_plot: Sequence[tuple[str, float, float]], bound: float) -> tuple[Pairing, ...]:
    """One strip for each plot: hollow the naive value, filled the specific one."""
    axis = Axis.over([0.0, -bound, bound, *(value for _, *both in by_plot for value in both)])
    return tuple(
        Pairing(plot, _strip(axis, naive, specific, bound), *_said(naive, specific))
        for plot, naive, specific in by_plot
    )


def _said(*values: float) -> list[str]:
    return [number(value, signed=True, decimals=3) for value in values]


def _strip(axis: Axis, naive: float, specific: float, bound: float) -> Markup:
    first, second, zero = (percent(axis.at(x)) for x in (naive, specific, 0.0))
    left, right = axis.at(-bound), axis.at(bound)
    middle = HEIGHT / 2
    return tag(
        "svg", tag("rect", x=percent(left), y=0, width=percent(right - left), height=HEIGHT, class_="bound"),
        line(zero, 0, zero, HEIGHT, "zero"), line(first, middle, second, middle, "join"),
        tag("circle", cx=first, cy=middle, r=4, class_="value hollow"),
        tag("circle", cx=second, cy=middle, r=4.5, class_="value"),
        class_="strip", width="100%", height=HEIGHT, aria_hidden="true",
    )  # fmt: skip
