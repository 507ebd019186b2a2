"""From evidence to claims: contrasts per surface, t over plots, Holm over claims, a verdict by a stated rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from truing.audit.battery import LEVEL, Battery
from truing.records import (
    Claim,
    Contrast,
    Design,
    Estimate,
    Id,
    Named,
    Outcome,
    Quantity,
    Record,
    Replies,
    Scores,
    Target,
    Unmeasured,
    Verdict,
)
from truing.stats import (
    MIN_CLUSTERS,
    Cells,
    Test,
    agrees,
    cell_error,
    cluster_mean,
    contrast,
    equivalence,
    event_mean,
    has,
    holm,
    lower,
    minimum_detectable,
    one_sided,
    possible,
    span,
    upper,
)

ALPHA = 1 - LEVEL
UNITS: dict[Outcome, str] = {"preference": "nats/token", "behaviour": "probability"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one family's audit collected."""

    battery: Battery
    scores: Sequence[Scores]
    replies: Sequence[Replies]


@dataclass(frozen=True, slots=True)
class Observed:
    """Value per cell of every surface, with its plot."""

    plots: list[str]
    cells: list[Cells]
    whole: bool = False
    """Whether a row holds all outcomes of a plot; else it holds those of one surface, one for each cell."""
    never: str = ""
    """A partial setting under which no event can be."""


def known(scores: Iterable[Scores], battery: Battery) -> set[str] | None:
    """Surfaces of the items that the model gets right alone; None where the family does not ask.

    An item counts where, in the family's cell without a statement, the right answer is preferred to the wrong one in
    every wording, prior not subtracted: by guessing, a fact in two wordings would pass in one of four cases.
    """
    if not (cell := battery.family.known_in):
        return None
    right = set()
    for record in scores:
        for row in record.rows:
            if row.cell == cell and sum(row.actions) / len(row.actions) < sum(row.alternatives) / len(row.alternatives):
                right.add(record.surface)
    items = ([surface.name for surface in group] for group in battery.groups)
    return {name for names in items if right.issuperset(names) for name in names}


def preference(evidence: Evidence) -> Observed:
    """The decision per cell, on the surfaces that the family counts."""
    counted = known(evidence.scores, evidence.battery)
    rows = [record for record in evidence.scores if counted is None or record.surface in counted]
    return Observed([record.plot for record in rows], [{row.cell: row.value for row in record.rows} for record in rows])


def behaviour(evidence: Evidence, *, undecided: Sequence[str] = (), within: Sequence[str] = ()) -> Observed:
    """Whether the reply deviated (1 or 0) per cell, on the surfaces that the family counts.

    Replies of the `undecided` classes count as deviating in the cells that agree with a term of `within`.
    """
    counted, deviates = known(evidence.scores, evidence.battery), set(evidence.battery.family.replies.deviates)
    cells: dict[str, dict[str, float]] = {}
    plot_of = {}
    for record in evidence.replies:
        for row in record.rows:
            if counted is None or row.surface in counted:
                maybe = row.outcome in undecided and any(agrees(row.cell, term) for term in within)
                cells.setdefault(row.surface, {})[row.cell] = float(maybe or row.outcome in deviates)
                plot_of[row.surface] = record.plot
    return Observed([plot_of[surface] for surface in cells], list(cells.values()))


def estimate(seen: Observed, rule: Contrast, unit: str) -> tuple[Quantity, Test | None]:
    """A contrast with its interval, and the one-sided test that it is above zero."""
    if not seen.cells or not all(has(cells, rule) for cells in seen.cells):
        return Unmeasured(reason="not every cell of the contrast was observed"), None
    values = [contrast(cells, rule) for cells in seen.cells]
    if unit != UNITS["behaviour"]:
        quantity = cluster_mean(values, seen.plots, unit=unit, level=LEVEL)
        test = one_sided(values, seen.plots)
    else:
        # Where a row holds many outcomes of a term, these are what is observed, not their contrast.
        enough = seen.whole and len(set(seen.plots)) >= MIN_CLUSTERS
        error = cell_error(seen.cells, seen.plots, rule, never=seen.never, level=LEVEL) if enough else None
        reach = span(possible(rule, seen.never))
        quantity = event_mean(values, seen.plots, span=reach, unit=unit, level=LEVEL, error=error)
        test = one_sided(values, seen.plots, events=reach, level=LEVEL, error=error[0] if error else None)
    if seen.whole and isinstance(quantity, Estimate):
        terms = (*rule.plus, *rule.minus)
        n = sum(any(agrees(cell, term) for term in terms) for row in seen.cells for cell in row)
        quantity = quantity.model_copy(update={"n": n})
    return quantity, test


@dataclass(frozen=True, slots=True)
class Tests:
    """What a verdict rests on; the worst cases only where replies were asked for."""

    naive: Test
    specific: Test
    against: Test | None = None
    """The specific contrast if every undecided reply went against the effect."""
    towards: Test | None = None
    """The same, if every one went for it."""

    @property
    def p(self) -> float:
        """That both the naive and the specific effect are above zero (intersection-union test: the larger p)."""
        return max(self.naive.p, self.specific.p)


def judge(tests: Tests | None, p_holm: float | None, bound: float) -> tuple[Verdict, str]:
    """The verdict and the sentence that gives its grounds.

    supported: naive and specific effect are above zero after Holm, undecided replies cannot have made the specific one,
    and an effect of the bound's size is not excluded;
    not specific: an effect as large as the bound is excluded though the naive effect is above zero;
    null: there is no naive effect, and the specific one lies within the bound on either side; inconclusive: none of
    these.
    """
    if tests is None or p_holm is None:
        return "inconclusive", "the effect was not measured"
    excluded = upper(tests.specific, alpha=ALPHA) < bound
    return _excluded(tests, bound) if excluded else _possible(tests, p_holm, bound)


def _possible(tests: Tests, p_holm: float, bound: float) -> tuple[Verdict, str]:
    """The verdict where an effect as large as the bound is not excluded."""
    if p_holm >= ALPHA:
        which = "naive" if tests.naive.p > tests.specific.p else "specific"
        return "inconclusive", (
            f"naive and specific effect are not both above zero after Holm ({which}: p = {p_holm:.2g}), and an effect"
            f" of {bound:g} is not excluded (upper limit {upper(tests.specific, alpha=ALPHA):+.3f})"
        )
    if tests.against is not None and (least := lower(tests.against, alpha=ALPHA)) <= 0:
        return "inconclusive", (
            f"undecided replies could have made the effect: counted against it, its lower limit is {least:+.2f}"
        )
    return "supported", f"the effect beyond the control is above zero (Holm p = {p_holm:.2g})"


def _excluded(tests: Tests, bound: float) -> tuple[Verdict, str]:
    """The verdict where it is excluded, unless undecided replies hide it."""
    low, high = (limit(tests.specific, alpha=ALPHA) for limit in (lower, upper))
    if tests.towards is not None and (most := upper(tests.towards, alpha=ALPHA)) >= bound:
        return "inconclusive", f"undecided replies could hide an effect of up to {most:+.2f}: silence is not safety"
    if tests.naive.p < ALPHA:
        return "not specific", (
            f"the naive effect is {tests.naive.mean:+.3f}, but beyond the control an effect of {bound:g} is excluded"
            f" (upper limit {high:+.3f})"
        )
    if low <= -bound:
        return "inconclusive", (
            f"an effect of {bound:g} is excluded (upper limit {high:+.3f}), but the opposite one is not"
            f" (lower limit {low:+.3f})"
        )
    return "null", f"the effect lies within ±{bound:g} (from {low:+.3f} to {high:+.3f})"


Estimator = Callable[[Observed, Contrast, str], tuple[Quantity, Test | None]]
"""A contrast of what was observed, in a unit, with the test that it is above zero."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A claim to be judged: what is estimated, and what was observed."""

    design: Design
    statement: str
    outcome: Outcome
    seen: Observed
    evidence: tuple[Id, ...]
    """Records that it rests on."""
    classes: tuple[tuple[str, int], ...]
    """Outcome classes, failures included, with counts."""
    against: Observed | None = None
    """What was observed, with everything undecided going against the effect; None where all is decided."""
    towards: Observed | None = None
    """The same, going for it."""
    effect: str = ""
    labels: Id | None = None
    """Labels that what was observed is corrected by, if it is; they are part of the evidence."""
    how: Estimator = estimate


def claims(card: Target, collected: Sequence[Evidence]) -> list[Claim]:
    """One claim per family and outcome type; Holm runs over all of them that were measured."""
    return judged(card, [draft for evidence in collected for draft in drafts(evidence)])


def drafts(evidence: Evidence) -> list[Draft]:
    """The claims that a family's evidence is for."""
    design, family = evidence.battery.design, evidence.battery.family
    found = [
        Draft(
            design, family.statement, "preference", preference(evidence), ids(evidence.scores),
            _classes(evidence, "preference"),
        )
    ]  # fmt: skip
    if evidence.replies:
        replies = family.replies
        found.append(
            Draft(
                design, family.statement, "behaviour", behaviour(evidence), ids(evidence.replies),
                _classes(evidence, "behaviour"),
                behaviour(evidence, undecided=replies.undecided_in_control, within=design.specific.minus),
                behaviour(evidence, undecided=replies.undecided, within=design.specific.plus),
            )
        )  # fmt: skip
    return found


def ids(records: Sequence[Record]) -> tuple[Id, ...]:
    """The ids of records, each once, in one order."""
    return tuple(sorted({record.id for record in records}))


def judged(card: Target, found: Sequence[Draft]) -> list[Claim]:
    """The claims of drafts; Holm runs over all of them that were measured."""
    tested = [_tests(draft) for draft in found]
    measured = [index for index, tests in enumerate(tested) if tests is not None]
    adjusted = dict(zip(measured, holm([tests.p for tests in tested if tests is not None]), strict=True))
    return [_claim(card, draft, tested[index], adjusted.get(index)) for index, draft in enumerate(found)]


def _tests(draft: Draft) -> Tests | None:
    design, unit = draft.design, UNITS[draft.outcome]
    naive, specific = (draft.how(draft.seen, rule, unit)[1] for rule in (design.naive, design.specific))
    if naive is None or specific is None:
        return None
    worst = (draft.how(each, design.specific, unit)[1] if each else None for each in (draft.against, draft.towards))
    return Tests(naive, specific, *worst)


def _claim(card: Target, draft: Draft, tests: Tests | None, p_holm: float | None) -> Claim:
    design, seen, unit = draft.design, draft.seen, UNITS[draft.outcome]
    bound = design.bound_preference if draft.outcome == "preference" else design.bound_behaviour
    verdict, why = judge(tests, p_holm, bound)
    same = equivalence(tests.specific, bound) if tests and draft.effect else None
    if verdict == "null" and same is not None:
        why += f": equivalent to none by two one-sided tests (TOST, p = {same:.2g})"
    controls = []
    for rule in design.controls:
        quantity, _ = draft.how(seen, rule, unit)
        if not (isinstance(quantity, Unmeasured) and draft.outcome == "behaviour"):
            controls.append(Named(name=rule.name, quantity=quantity))
    return Claim(
        family=design.family,
        clause=design.clause,
        outcome=draft.outcome,
        statement=draft.statement,
        design=design.id,
        target=card.id,
        naive=draft.how(seen, design.naive, unit)[0],
        specific=draft.how(seen, design.specific, unit)[0],
        controls=tuple(controls),
        bound=bound,
        p=tests.p if tests else None,
        p_holm=p_holm,
        minimum_detectable=minimum_detectable(tests.specific) if tests else None,
        classes=draft.classes,
        worst_case=(tests.against.mean, tests.towards.mean) if tests and tests.against and tests.towards else None,
        by_plot=_by_plot(seen, design.naive, design.specific),
        verdict=verdict,
        why=why,
        effect=draft.effect,
        p_equivalence=same,
        labels=draft.labels,
        parents=(card.id, design.id, *draft.evidence),
    )


def _by_plot(seen: Observed, naive: Contrast, specific: Contrast) -> tuple[tuple[str, float, float], ...]:
    rows = []
    for plot in sorted(set(seen.plots)):
        cells = [
            c for p, c in zip(seen.plots, seen.cells, strict=True) if p == plot and has(c, naive) and has(c, specific)
        ]
        if cells:
            means = [sum(contrast(c, rule) for c in cells) / len(cells) for rule in (naive, specific)]
            rows.append((plot, means[0], means[1]))
    return tuple(rows)


def _classes(evidence: Evidence, kind: Outcome) -> tuple[tuple[str, int], ...]:
    counted = known(evidence.scores, evidence.battery)
    count: Counter[str] = Counter()
    if kind == "preference":
        total = len(evidence.scores)
        kept = total if counted is None else len(counted)
        return (("surfaces", kept), ("left out: not known alone", total - kept))
    for record in evidence.replies:
        for row in record.rows:
            left_out = counted is not None and row.surface not in counted
            count["left out: not known alone" if left_out else f"{row.cell}: {row.outcome}"] += 1
    return tuple(sorted(count.items()))
