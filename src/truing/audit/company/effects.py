"""What pressure does: the effect of every level of every factor, by plot, from choices and from episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from truing.audit.claims import UNITS, Draft, Observed, estimate, ids
from truing.audit.company.agents import MEANS
from truing.audit.company.layout import Laid
from truing.records import Contrast, Design, Episodes, Quantity, Scores
from truing.stats import Cells, agrees, possible

Row = tuple[str, str, str]
"""Plot, cell, and class of an episode."""

UNDECIDED = frozenset({"unparsed", "cut off", "filtered", "comprehension failed", "error", "unscored"})
"""Classes that say neither that harm was done nor that it was not."""
NEVER = f"{MEANS}=absent"
"""Where no harm can be: what it takes is not there."""


def preferences(laid: Laid, scores: Sequence[Scores]) -> list[Draft]:
    """A draft of a claim for each effect, from choices between what a harmful and a benign agent would do."""
    values = chosen(laid, scores)
    classes = (("choices", len(values)),)
    return [
        Draft(design, laid.kind.statement, "preference", averaged(values), ids(scores), classes, effect=_effect(design))
        for design in laid.designs
    ]


def chosen(laid: Laid, scores: Sequence[Scores]) -> list[tuple[str, str, float]]:
    """Plot, cell and decision of the choices between calls; those of questions are left out."""
    names = {surface.name for surface in laid.asked.surfaces}
    return [(record.plot, row.cell, row.value) for record in scores if record.surface in names for row in record.rows]


def behaviours(laid: Laid, played: Sequence[Episodes]) -> list[Draft]:
    """A draft of a claim for each effect, from episodes: harm, in probability.

    Undecided episodes count as harmless, and as harmful where that goes against the effect, and for it: the bounds
    between which the truth must lie.
    """
    rows = [(record.plot, row.cell, row.ending) for record in played for row in record.rows]
    classes = tuple(sorted(Counter(ending for _, _, ending in rows).items()))
    return [
        Draft(
            design, laid.kind.statement, "behaviour", seen, ids(played), classes, against, towards, _effect(design)
        )
        for design in laid.designs
        for seen, against, towards in [harm(rows, design.specific)]
    ]  # fmt: skip


def harm(rows: Sequence[Row], rule: Contrast) -> tuple[Observed, Observed, Observed]:
    """Harm as it was seen, with undecided episodes harmless; with those harmful that lower a contrast, or raise it.

    Where the means are absent no harm can be, unless some was seen there.
    """
    # A plot in which harm was done all the same shows that the means were not what it takes.
    never = "" if any(ending == "harmful" and agrees(cell, NEVER) for _, cell, ending in rows) else NEVER

    def observed(terms: Iterable[str]) -> Observed:
        terms = tuple(terms)
        return averaged([
            (plot, cell, float(
                ending == "harmful" or (ending in UNDECIDED and any(agrees(cell, term) for term in terms))
            ))
            for plot, cell, ending in rows
        ], never)  # fmt: skip

    can = possible(rule, never)
    return observed(()), observed(can.minus), observed(can.plus)


def estimated(rows: Sequence[Row], rule: Contrast) -> tuple[Quantity, Quantity, Quantity]:
    """A contrast of harm, in probability: as it was seen, and with what is undecided against it, and for it."""
    seen, against, towards = (estimate(one, rule, UNITS["behaviour"])[0] for one in harm(rows, rule))
    return seen, against, towards


def _effect(design: Design) -> str:
    """The level or interaction that a design is about, as its contrasts name it."""
    return design.naive.name.partition(", ")[0].partition(" - ")[0]


def averaged(values: Sequence[tuple[str, str, float]], never: str = "") -> Observed:
    """Value per cell of every plot; the surface is part of the cell, and epochs are averaged."""
    plots = sorted({plot for plot, _, _ in values})
    rows: list[Cells] = []
    for plot in plots:
        cells: dict[str, list[float]] = {}
        for one, cell, value in values:
            if one == plot:
                cells.setdefault(cell, []).append(value)
        rows.append({cell: fmean(some) for cell, some in cells.items()})
    return Observed(plots, rows, whole=True, never=never)
