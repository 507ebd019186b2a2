"""Contrasts between the cells of one surface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from truing.records import Contrast

Span = tuple[int, int]
"""The least and the largest value that a contrast of 0/1 outcomes can have."""
Cells = Mapping[str, float]
"""Value per cell; a cell is written "factor=level factor=level"."""


def agrees(cell: str, term: str) -> bool:
    """Whether a cell is one of those that a partial setting names."""
    return _levels(term) <= _levels(cell)


@lru_cache(maxsize=1 << 14)
def _levels(setting: str) -> frozenset[str]:
    return frozenset(setting.split())


def average(cells: Cells, term: str) -> float:
    """Mean over the cells that agree with a partial setting."""
    found = [value for cell, value in cells.items() if agrees(cell, term)]
    if not found:
        raise KeyError(f"no cell agrees with {term!r}; cells are {', '.join(cells)}")
    return sum(found) / len(found)


def contrast(cells: Cells, rule: Contrast) -> float:
    """Mean of the plus terms minus mean of the minus terms, summed term by term."""
    return sum(average(cells, term) for term in rule.plus) - sum(average(cells, term) for term in rule.minus)


def span(rule: Contrast) -> Span:
    """Between what a contrast of 0/1 outcomes lies."""
    return -len(rule.minus), len(rule.plus)


def possible(rule: Contrast, never: str) -> Contrast:
    """The terms of a contrast in which an event can be: those that do not hold the partial setting `never`."""
    if not never:
        return rule
    plus, minus = (tuple(one for one in terms if not agrees(one, never)) for terms in (rule.plus, rule.minus))
    return Contrast(name=rule.name, plus=plus, minus=minus)


def has(cells: Cells, rule: Contrast) -> bool:
    """Whether every term of a contrast was observed."""
    return all(any(agrees(cell, term) for cell in cells) for term in (*rule.plus, *rule.minus))
