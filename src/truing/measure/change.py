"""Before against after, on the same surfaces: paired, clustered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from truing.records import Contrast, Named, Quantity, Replies, Scores, Unmeasured
from truing.stats import Cells, Span, agrees, cluster_mean, cluster_ratio, contrast, event_mean, has, span

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Cases:
    """Value per cell of each surface, and the surface's plot."""

    cells: Mapping[str, Cells]
    plot: Mapping[str, str]

    def among(self, names: Collection[str] | None) -> Cases:
        """The same, for some of the surfaces; for all of them where none are named."""
        return self if names is None else Cases({n: c for n, c in self.cells.items() if n in names}, self.plot)


def preferences(records: Sequence[Scores]) -> Cases:
    """The decision per cell, nats per token."""
    cells = {record.surface: {row.cell: row.value for row in record.rows} for record in records}
    return Cases(cells, {record.surface: record.plot for record in records})


def behaviours(
    records: Sequence[Replies],
    deviates: Collection[str],
    *,
    undecided: Collection[str] = (),
    within: Sequence[str] = (),
) -> Cases:
    """1 where the reply deviated, else 0, per cell.

    With `undecided`, replies of these classes count as deviating too, in the cells that agree with a term of `within`:
    then a fix that merely silences the model changes nothing for the better.
    """
    cells: dict[str, dict[str, float]] = {}
    plot = {}
    for record in records:
        for row in record.rows:
            feared = any(agrees(row.cell, term) for term in within)
            deviated = row.outcome in deviates or (feared and row.outcome in undecided)
            cells.setdefault(row.surface, {})[row.cell] = float(deviated)
            plot[row.surface] = record.plot
    return Cases(cells, plot)


def level(cases: Cases, rule: Contrast, *, unit: str) -> Quantity:
    """A contrast in one target."""
    usable = [name for name, cells in cases.cells.items() if has(cells, rule)]
    if not usable:
        return Unmeasured(reason=f"no surface has every cell of {rule.name!r}")
    return _mean([contrast(cases.cells[n], rule) for n in usable], [cases.plot[n] for n in usable], unit, span(rule))


def change(before: Cases, after: Cases, rule: Contrast, *, unit: str) -> Quantity:
    """After minus before of a contrast, paired by surface. Both must have the same surfaces."""
    if before.cells.keys() != after.cells.keys():
        raise ValueError("before and after were not measured on the same surfaces")
    usable = [name for name, cells in before.cells.items() if has(cells, rule) and has(after.cells[name], rule)]
    if not usable:
        return Unmeasured(reason=f"no surface has every cell of {rule.name!r}")
    values = [contrast(after.cells[n], rule) - contrast(before.cells[n], rule) for n in usable]
    low, high = span(rule)
    return _mean(values, [before.plot[n] for n in usable], unit, (low - high, high - low))


def retained(before: Cases, after: Cases, rule: Contrast) -> Quantity:
    """Share of a contrast that is still there: after over before, summed over surfaces."""
    usable = [n for n in before.cells if n in after.cells and has(before.cells[n], rule) and has(after.cells[n], rule)]
    return cluster_ratio(
        [contrast(after.cells[n], rule) for n in usable],
        [contrast(before.cells[n], rule) for n in usable],
        [before.plot[n] for n in usable],
    )


def _mean(values: Sequence[float], plots: Sequence[str], unit: str, events: Span) -> Quantity:
    if unit == "probability":
        return event_mean(values, plots, span=events, unit=unit, level=LEVEL)
    return cluster_mean(values, plots, unit=unit, level=LEVEL)


def below_zero(named: Named) -> bool:
    """Whether a 95% interval lies below zero."""
    return not isinstance(named.quantity, Unmeasured) and named.quantity.high < 0
