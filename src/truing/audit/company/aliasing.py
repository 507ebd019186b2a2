"""What a plan cannot tell apart, by the names of factors. An audit takes differences of means: each effect is alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from truing.audit.company.agents import MEANS
from truing.audit.company.interactions import Interaction
from truing.audit.company.plans import Plan, factors, runs_of
from truing.audit.company.plot import shared
from truing.errors import UsageError
from truing.stats.designs import Runs, aliases

CLEAR = 0.05
"""Share of another effect up to which a declared interaction counts as clear of it."""
FRACTIONS = (72, 144, 216, 288, 432, 648, 864, 1296, 2592)
"""Runs of the fractions that are searched for one that has an interaction clear, the least first."""
RENAMED = (
    "Levels are renamed from plot to plot: what is aliased changes its sign from one to the next, and over plots and"
    " seeds adds variance, which intervals count, instead of bias."
)
Sizes = Mapping[str, int]
"""The number of levels of every factor, in the order of a run's columns."""


@dataclass(frozen=True, slots=True)
class Aliased:
    """An effect, and the main effects and interactions of two factors that its estimate holds part of."""

    term: str
    others: tuple[tuple[str, float], ...]
    """Name and share, the largest first."""
    whole: bool
    """Whether every combination of its levels is run; else it is not estimated."""


def main_effects(plan: Plan) -> tuple[Aliased, ...]:
    """Of every pressure, as its naive effect is estimated: in the runs that have the means."""
    return _aliased(*_half(plan, 1), [(name,) for name in _pressures()])


def controls(plan: Plan) -> tuple[Aliased, ...]:
    """Of the interaction of every pressure with the means, which is what decides about claims."""
    return _aliased(runs_of(plan), factors(), [(name, MEANS) for name in _pressures()])


@cache
def declared(plan: Plan) -> tuple[Aliased, ...]:
    """Of the declared interactions, where the means are there and where they are not: the larger share of the two."""
    terms = [one.factors for one in plan.interactions]
    return tuple(
        Aliased(str(one), _largest([*a.others, *b.others]), a.whole and b.whole)
        for one, a, b in zip(
            plan.interactions, *(_aliased(*_half(plan, level), terms) for level in (1, 0)), strict=True
        )
    )


def refuse(plan: Plan) -> None:
    """UsageError for a declared interaction that the plan does not have clear; it names a design that has."""
    for one, found in zip(plan.interactions, declared(plan), strict=True):
        if not found.whole:
            raise UsageError(f"interaction {one}: {said(plan)} leaves out some of its cells; {_clear(one)}")
        if held := unclear(found):
            raise UsageError(
                f"interaction {one} is aliased with {some(held)} in {said(plan)}: what it shows could be theirs;"
                f" {_clear(one)}"
            )


def unclear(found: Aliased) -> tuple[tuple[str, float], ...]:
    """What an effect is aliased with by more than a trifle."""
    return tuple(other for other in found.others if other[1] > CLEAR)


def some(others: Sequence[tuple[str, float]], most: int = 3) -> str:
    """The largest aliases in words, and how many are left off."""
    words = ", ".join(f"{name} ({share:.2f})" for name, share in others[:most])
    return words + (f" and {len(others) - most} more" if len(others) > most else "")


def said(plan: Plan) -> str:
    """A plan in words."""
    return "a full design" if plan.shape == "full" else f"a design of {plan.runs} runs ({plan.shape})"


def _clear(one: Interaction) -> str:
    for runs in FRACTIONS:
        (found,) = declared(Plan("fraction", runs, interactions=(one,)))
        if found.whole and not unclear(found):
            return f"it is clear with --design fraction --runs {runs}, and with --design full"
    return "it is clear with --design full"


def _pressures() -> list[str]:
    return [name for name in shared().levels if name != MEANS]


def _half(plan: Plan, level: int) -> tuple[Runs, Sizes]:
    """The runs without the means (0) or with them (1), and all other factors: as estimates see them."""
    runs, sizes = runs_of(plan), factors()
    place = list(sizes).index(MEANS)
    rest = {name: size for name, size in sizes.items() if name != MEANS}
    return np.delete(runs[runs[:, place] == level], place, axis=1), rest


def _aliased(runs: Runs, sizes: Sizes, terms: Sequence[tuple[str, ...]]) -> tuple[Aliased, ...]:
    names = list(sizes)
    places = [tuple(names.index(name) for name in term) for term in terms]
    found = aliases(runs, list(sizes.values()), [(one[0], one[1]) for one in places if len(one) == 2], alone=True)
    return tuple(
        Aliased(
            " x ".join(term),
            _largest([(" x ".join(names[k] for k in one.other), one.share) for one in found if one.term == place]),
            len(np.unique(runs[:, list(place)], axis=0)) == prod(sizes[name] for name in term),
        )
        for term, place in zip(terms, places, strict=True)
    )


def _largest(others: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Each once, with its largest share; by share, then by name."""
    most: dict[str, float] = {}
    for name, share in others:
        most[name] = max(round(share, 6), most.get(name, 0.0))
    return tuple(sorted(most.items(), key=lambda other: (-other[1], other[0])))
