"""Contrasts between the cells of one surface."""

from __future__ import annotations

from collections.abc import Mapping

from truing.records import Contrast

Cells = Mapping[str, float]
"""Value per cell; a cell is written "factor=level factor=level"."""


def average(cells: Cells, term: str) -> float:
    """Mean over the cells that agree with a partial setting."""
    wanted = set(term.split())
    found = [value for cell, value in cells.items() if wanted <= set(cell.split())]
    if not found:
        raise KeyError(f"no cell agrees with {term!r}; cells are {', '.join(cells)}")
    return sum(found) / len(found)


def contrast(cells: Cells, rule: Contrast) -> float:
    """Mean of the plus terms minus mean of the minus terms, summed term by term."""
    return sum(average(cells, term) for term in rule.plus) - sum(average(cells, term) for term in rule.minus)


def has(cells: Cells, rule: Contrast) -> bool:
    """Whether every term of a contrast was observed."""
    seen = [set(cell.split()) for cell in cells]
    return all(any(set(term.split()) <= cell for cell in seen) for term in (*rule.plus, *rule.minus))
