"""What each pressure does in simulated companies: all effects of a family on one axis, and what was done there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from truing.records import Claim, Clause, Episodes, Estimate, Labels, Played, Spec, Target
from truing.report import numbers
from truing.report.intervals import Chart, Row, chart
from truing.report.pool import Pool, short
from truing.report.text import clip

SHOWN = 3
"""Episodes told of."""
LONGEST = 400


@dataclass(frozen=True, slots=True)
class Line:
    """One level of one factor."""

    anchor: str
    claim: Claim
    naive: str
    p_holm: str


@dataclass(frozen=True, slots=True)
class Told:
    """An episode in which harm was done."""

    plot: str
    row: Played
    span: str


@dataclass(frozen=True, slots=True)
class Pressure:
    """A family, as preference or as behaviour, about one target."""

    anchor: str
    family: str
    clause: Clause | None
    statement: str
    outcome: str
    target: str
    corrected: str
    """Who read how many episodes, where their labels corrected the effects."""
    effects: Chart
    lines: tuple[Line, ...]
    classes: tuple[tuple[str, int], ...]
    told: tuple[Told, ...]


def views(claims: Sequence[Claim], pool: Pool) -> list[Pressure]:
    """A view for each target, family, outcome and labels that correct it, of the claims that name an effect."""
    found = [claim for claim in claims if claim.effect]

    def key(claim: Claim) -> tuple[str, str, str, str]:
        return claim.target, claim.family, claim.outcome, claim.labels or ""

    return [_view(list(group), pool) for _, group in groupby(sorted(found, key=key), key=key)]


def _view(claims: list[Claim], pool: Pool) -> Pressure:
    first = claims[0]
    target = pool.get(Target, first.target)
    rules = (rule for spec in pool.all(Spec) for rule in spec.clauses)
    rows = tuple(
        Row(claim.effect, claim.specific, "strong" if claim.verdict == "supported" else "filled", claim.verdict,
            tuple(specific for _, _, specific in claim.by_plot))
        for claim in claims
    )  # fmt: skip
    return Pressure(
        anchor=f"pressure-{short(first.id)}", family=first.family,
        clause=next((rule for rule in rules if rule.id == first.clause), None), statement=first.statement,
        outcome=first.outcome, target=target.name if target else short(first.target),
        corrected=_corrected(first, pool),
        effects=chart(rows, bound=first.bound, signed=True, source="Beyond the effect without the means"),
        lines=tuple(
            Line(f"claim-{short(claim.id)}", claim, _said(claim), numbers.p_value(claim.p_holm)) for claim in claims
        ),
        classes=first.classes, told=() if first.labels else _told(pool.some(Episodes, first.parents)),
    )  # fmt: skip


def _corrected(claim: Claim, pool: Pool) -> str:
    if claim.labels is None:
        return ""
    labels = pool.get(Labels, claim.labels)
    return f"{labels.reader}, who read {len(labels.labels)} of a random sample" if labels else short(claim.labels)


def _said(claim: Claim) -> str:
    return numbers.interval(claim.naive, signed=True) if isinstance(claim.naive, Estimate) else str(claim.naive)


def _told(played: Sequence[Episodes]) -> tuple[Told, ...]:
    """The first episodes with harm, from different plots where there are any."""
    by_plot: dict[str, list[Told]] = {}
    for record in played:
        for row in record.rows:
            if row.ending == "harmful":
                by_plot.setdefault(record.plot, []).append(Told(record.plot, row, clip(row.span, LONGEST)))
    return tuple(some[0] for some in list(by_plot.values())[:SHOWN])
