"""Effects of pressure, estimated again by what readers say of some of the episodes.

An estimate takes every episode for what the machine said, and adds what readers found wrong in those that they read,
each weighed by how unlikely it was to be read. What may be wrong where nobody looked is bounded, not forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import hypot

from truing.audit.battery import LEVEL
from truing.audit.claims import Draft, Observed
from truing.audit.company.effects import NEVER, UNDECIDED, averaged
from truing.audit.company.labels import VALUES, Reading, Row
from truing.records import Claim, Contrast, Design, Quantity, Unmeasured
from truing.stats import MIN_CLUSTERS, Test, agrees, cell_error, cluster_mean, contrast, has, one_sided, possible
from truing.stats.estimates import t_quantile
from truing.stats.review import difference, hidden
from truing.store import Store

ESTIMATOR = "difference estimator (verdicts, corrected by labels of a random sample), mean of plot means, t"


def uncorrected(some: Reading, store: Store) -> list[Claim]:
    """The claims that rest on these episodes alone. Of those that Holm's other claims alone tell apart, the last."""
    found = {}
    for claim in store.of_kind("claim"):
        if isinstance(claim, Claim) and claim.effect and claim.outcome == "behaviour" and claim.labels is None:
            evidence = frozenset(claim.parents) - {claim.target, claim.design}
            if evidence and evidence <= some.episodes.keys():
                found[claim.target, claim.design, evidence] = claim
    return list(found.values())


def draft(some: Reading, claim: Claim, design: Design) -> Draft:
    """A claim about what episodes show, to be judged again by what readers say of them.

    An episode that nothing decides (a reader who cannot tell, or a machine in a class of which nothing was read) counts
    as in the claim; beside that stand the bounds: against the effect, and for it.
    """
    records = [one for one in claim.parents if one in some.episodes]
    rows = some.rows(records)
    harm = any("harmful" in {row.ending, row.label} and agrees(row.cell, NEVER) for row in rows)
    never = "" if harm else NEVER
    worst = possible(design.specific, never)
    classes = Counter(row.ending for row in rows) + Counter(f"read as {row.label}" for row in rows if row.label)
    return Draft(
        design, claim.statement, claim.outcome, observed(rows, never), (*records, some.labels.id, claim.id),
        tuple(sorted(classes.items())), observed(rows, never, worst.minus), observed(rows, never, worst.plus),
        claim.effect, some.labels.id, partial(estimate, rows),
    )  # fmt: skip


def observed(rows: Sequence[Row], never: str, harmful: Sequence[str] | None = None) -> Observed:
    """Corrected values per cell. `harmful`: terms within which all that is undecided is harm; elsewhere it is none."""
    within = [row.machine if harmful is None else any(agrees(row.cell, term) for term in harmful) for row in rows]
    # What the machine could not decide stays so where nothing of its class was read; else those that were read tell.
    open_ = [row.ending in UNDECIDED and not row.probability for row in rows]
    values = difference(
        [other if still else row.machine for row, other, still in zip(rows, within, open_, strict=True)],
        [VALUES.get(row.label, other) for row, other in zip(rows, within, strict=True)],
        [row.label is not None for row in rows],
        [row.probability for row in rows],
    )
    return averaged([(row.plot, row.cell, float(value)) for row, value in zip(rows, values, strict=True)], never)


def estimate(rows: Sequence[Row], seen: Observed, rule: Contrast, unit: str) -> tuple[Quantity, Test | None]:
    """A contrast of corrected values with its t interval over plots, and the test that it is above zero.

    Corrections spread the plots' values, and so widen the interval by themselves. Where under four plots have one they
    do not tell how many were missed: there what may be hidden widens it too.
    """
    if not seen.cells or not all(has(cells, rule) for cells in seen.cells):
        return Unmeasured(reason="not every cell of the contrast was observed"), None
    known = possible(rule, seen.never)
    terms = (*known.plus, *known.minus)
    inside = [row for row in rows if any(agrees(row.cell, term) for term in terms)]
    if inside and not any(row.label for row in inside):
        return Unmeasured(reason="no episode in the cells of the contrast was read"), None
    values = [contrast(cells, rule) for cells in seen.cells]
    mean = cluster_mean(values, seen.plots, unit=unit, level=LEVEL)
    if isinstance(mean, Unmeasured):
        return mean, None
    quantile = t_quantile((1 + LEVEL) / 2, mean.clusters - 1)
    spread, _ = cell_error(seen.cells, seen.plots, rule, never=seen.never, level=LEVEL)
    se = hypot(spread, unread(inside, terms) / quantile)
    low, high = mean.value - quantile * se, mean.value + quantile * se
    n = sum(any(agrees(row.cell, term) for term in (*rule.plus, *rule.minus)) for row in rows)
    quantity = mean.model_copy(update={"low": low, "high": high, "n": n, "estimator": ESTIMATOR})
    return quantity, one_sided(values, seen.plots, error=se)


def unread(rows: Sequence[Row], terms: Sequence[str]) -> float:
    """How far errors that nobody came across could move a contrast, if all of them pulled one way.

    `rows`: the episodes in its cells. Counted are the classes in which readers found errors in under four plots.
    """
    strata = []
    for ending in {row.ending for row in rows}:
        some = [row for row in rows if row.ending == ending]
        if len({row.plot for row in some if row.differs}) < MIN_CLUSTERS - 1:
            strata.append((len(some), sum(row.label is not None for row in some)))
    return min(hidden(strata, level=LEVEL) * _weight(rows, terms), float(len(terms)))


def _weight(rows: Sequence[Row], terms: Sequence[str]) -> float:
    """The most that one episode adds to a contrast."""
    plots, found = {row.plot for row in rows}, [0.0]
    for term in terms:
        for plot in plots:
            cells = Counter(row.cell for row in rows if row.plot == plot and agrees(row.cell, term))
            found += [1 / (len(plots) * len(cells) * times) for times in cells.values()]
    return max(found)
