"""Choices of units patched on twins, both ways, and the shares of the effect that they carry."""

from __future__ import annotations

from collections.abc import Sequence

from truing.records import Arrays, Mediation, Quantity, digest_of
from truing.runner import Watcher
from truing.stats import cluster_ratio
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.inside import Site
from truing.trace.mediate import Choice, Rule, back, both_ways
from truing.trace.plotwise import arrays, units_of_work
from truing.trace.twins import Twin, by_plot


def patched_on(
    target: LocalTarget, pairs: Sequence[Twin], choices: Sequence[Choice], store: Store, watcher: Watcher | None = None
) -> list[Arrays]:
    """The decision in either cell of each twin, and with each choice patched, both ways. One unit of work is a plot."""
    again = back(choices)

    def work(item: tuple[str, list[Twin]]) -> list[Arrays]:
        plot, members = item
        numbers: list[tuple[str, float]] = []
        for twin in members:
            found = both_ways(target.model, twin, choices, again)
            numbers += [("first", found.first), ("second", found.second)]
            numbers += [(choice.label, value) for choice, value in zip(choices, found.removed, strict=True)]
            numbers += [(choice.back_label, value) for choice, value in zip(again, found.restored, strict=True)]
        return [arrays(target, "patching", plot, members, numbers=numbers)]

    chosen = {
        "choices": digest_of([[c.label, [list(u) for u in c.units]] for c in choices]),
        "back": [c.label for c in again],
    }
    return units_of_work("patch", target, by_plot(pairs), chosen, work, store, watcher)


def shares(records: Sequence[Arrays], choices: Sequence[Choice]) -> tuple[Mediation, ...]:
    """The shares of each choice; what was drawn several times is averaged per twin."""
    draws: dict[tuple[Site, Rule, int], list[Choice]] = {}
    for choice in choices:
        draws.setdefault((choice.site, choice.rule, choice.k), []).append(choice)
    return tuple(
        Mediation(
            kind=site,
            choice=rule,
            k=k,
            draws=len(members),
            share=share_of(records, [choice.label for choice in members], "first"),
            restored=share_of(records, [choice.back_label for choice in again], "second") if again else None,
        )
        for (site, rule, k), members in draws.items()
        for again in [back(members)]
    )


def share_of(records: Sequence[Arrays], labels: Sequence[str], cell: str, *, less: Sequence[str] = ()) -> Quantity:
    """By how much patching moves the decision in a cell towards the other, over how far they are apart.

    Of several labels their mean; `less`: beyond what patching these others does, twin by twin.
    """
    sign = 1 if cell == "first" else -1
    parts, wholes, plots = [], [], []
    for record in records:
        rows = decisions(record)
        starts = _means(record, less) if less else [a if cell == "first" else b for _, a, b in rows]
        for (plot, a, b), start, patched in zip(rows, starts, _means(record, labels), strict=True):
            parts.append(sign * (start - patched))
            wholes.append(a - b)
            plots.append(plot)
    return cluster_ratio(parts, wholes, plots)


def _means(record: Arrays, labels: Sequence[str]) -> list[float]:
    """The mean over labels, twin by twin."""
    drawn = [[value for label, value in record.numbers if label == wanted] for wanted in labels]
    return [sum(values) / len(values) for values in zip(*drawn, strict=True)]


def decisions(record: Arrays) -> list[tuple[str, float, float]]:
    """Plot, and the decision in the first and in the second cell, twin by twin."""
    first = [value for label, value in record.numbers if label == "first"]
    second = [value for label, value in record.numbers if label == "second"]
    return [(record.plot, a, b) for a, b in zip(first, second, strict=True)]
