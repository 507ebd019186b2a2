"""The section on claims: the effect beside its controls, the verdict with its grounds, and the evidence behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from truing.records import Claim, Clause, Contrast, Design, Estimate, Replies, Scores, Spec, Target
from truing.report import numbers
from truing.report.examples import Cells, Example, cells, examples, tokens_per_reply
from truing.report.intervals import Chart, Row, chart
from truing.report.numbers import number
from truing.report.pairings import Pairing, pairings
from truing.report.pool import Pool, short


@dataclass(frozen=True, slots=True)
class Formula:
    """A contrast in words: what is added and what is taken away."""

    role: str
    contrast: Contrast


@dataclass(frozen=True, slots=True)
class Classes:
    """Counts by cell (rows) and outcome (columns), then those that belong to no cell."""

    outcomes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    others: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A claim as it stands in the page."""

    anchor: str
    claim: Claim
    clause: Clause | None
    design: Design | None
    target: Target | None
    means: str
    specific: str
    p: str
    p_holm: str
    minimum_detectable: str
    bound: str
    worst_case: tuple[str, str] | None
    effects: Chart
    by_plot: tuple[Pairing, ...]
    formulas: tuple[Formula, ...]
    classes: Classes
    examples: tuple[Example, ...]
    replies: int
    cells: Cells
    carried: bool
    source: str


def view(claim: Claim, pool: Pool, *, carried: bool = False) -> ClaimView:
    """A claim's view."""
    design = pool.get(Design, claim.design)
    asked = pool.some(Replies, claim.parents)
    scored = pool.some(Scores, claim.parents)
    worst = claim.worst_case and tuple(number(value, signed=True) for value in claim.worst_case)
    return ClaimView(
        anchor=f"claim-{short(claim.id)}", claim=claim, clause=_clause(claim, pool), design=design,
        target=pool.get(Target, claim.target), means=means(claim, asked), specific=effect(claim),
        p=numbers.p_value(claim.p), p_holm=numbers.p_value(claim.p_holm),
        minimum_detectable="not known" if claim.minimum_detectable is None else number(claim.minimum_detectable),
        bound=f"{claim.bound:g}", worst_case=(worst[0], worst[1]) if worst else None,
        effects=_effects(claim), by_plot=pairings(claim.by_plot, claim.bound), formulas=_formulas(design),
        classes=_classes(claim), examples=examples(asked), replies=sum(len(record.rows) for record in asked),
        cells=cells(scored), carried=carried, source=short(claim.id),
    )  # fmt: skip


def means(claim: Claim, asked: Sequence[Replies]) -> str:
    """What kind of thing an outcome type is, in a few words."""
    if claim.outcome == "preference":
        return "a preference over offered strings, not what it writes or does"
    length = tokens_per_reply(asked)
    return f"what it wrote in replies of about {length} tokens" if length else "what it wrote in short replies"


def effect(claim: Claim) -> str:
    """The specific effect in one line."""
    seen = claim.specific
    return numbers.interval(seen, signed=True) if isinstance(seen, Estimate) else str(seen)


def called(claim: Claim) -> str:
    """Its family, the level that it is about, if there is one, and whether labels corrected it."""
    return f"{claim.family} {claim.effect}".strip() + (", corrected by labels" if claim.labels else "")


def _clause(claim: Claim, pool: Pool) -> Clause | None:
    rules = (rule for spec in pool.all(Spec) for rule in spec.clauses)
    return next((rule for rule in rules if rule.id == claim.clause), None)


def _effects(claim: Claim) -> Chart:
    naive, specific = tuple(row[1] for row in claim.by_plot), tuple(row[2] for row in claim.by_plot)
    rows = (
        Row("naive reading", claim.naive, "hollow", "what a single-factor test would report", naive),
        *(Row(control.name, control.quantity, "filled", control.note or "control") for control in claim.controls),
        Row("specific effect", claim.specific, "strong", "beyond the control: this is the claim", specific),
    )
    return chart(rows, bound=claim.bound, signed=True, source=f"Source: claim {short(claim.id)}")


def _formulas(design: Design | None) -> tuple[Formula, ...]:
    if design is None:
        return ()
    controls = [Formula("control", contrast) for contrast in design.controls]
    return (Formula("naive", design.naive), *controls, Formula("specific", design.specific))


def _classes(claim: Claim) -> Classes:
    table: dict[str, dict[str, int]] = {}
    others = []
    for label, count in claim.classes:
        cell, _, outcome = label.partition(": ")
        if "=" in cell and outcome:
            table.setdefault(cell, {})[outcome] = count
        else:
            others.append((label, count))
    outcomes = tuple(sorted({outcome for row in table.values() for outcome in row}))
    rows = tuple((cell, tuple(row.get(outcome, 0) for outcome in outcomes)) for cell, row in table.items())
    return Classes(outcomes, rows, tuple(others))
