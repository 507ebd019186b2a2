"""The result in plain words, and what it can and cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from truing.records import Claim, Design, Estimate, Gate, Graph, Loop, Named, Replies, Training, Verdict
from truing.report import numbers
from truing.report.claims import called, effect, means
from truing.report.pool import Pool, short

GROUPS: tuple[tuple[Verdict, str], ...] = (
    ("supported", "Supported by the evidence"),
    ("not specific", "Struck down by their controls: a naive reading would have reported them"),
    ("null", "Not there: an effect of a size that matters is excluded"),
    ("inconclusive", "Undecided"),
)


SHOWN = 60
"""Claims of one verdict that are listed."""


@dataclass(frozen=True, slots=True)
class Line:
    """A claim in one line, with a link to it."""

    anchor: str
    family: str
    outcome: str
    statement: str
    effect: str


@dataclass(frozen=True, slots=True)
class Result:
    """The first thing that a reader sees."""

    tested: str
    groups: tuple[tuple[Verdict, str, tuple[Line, ...]], ...]
    carried: str
    explained: str
    changed: tuple[str, ...]
    failed: tuple[str, ...]
    gate: str
    limits: tuple[str, ...]


def result(claims: Sequence[Claim], loop: Loop | None, pool: Pool) -> Result:
    """Sentences about these claims and, if there is one, the loop."""
    return Result(
        tested=_tested(claims, pool), groups=_groups(claims), carried=_carried(loop, pool) if loop else "",
        explained=_explained(pool.get(Graph, loop.graph)) if loop and loop.graph else "",
        changed=_changed(loop, pool) if loop else (), failed=loop.failed if loop else (),
        gate=_judged(loop, pool) if loop else "", limits=_limits(claims, pool),
    )  # fmt: skip


def _judged(loop: Loop, pool: Pool) -> str:
    """The gate's verdict, or why there is none."""
    gate = pool.get(Gate, loop.judged) if loop.judged else None
    return f"{gate.verdict}: {gate.why}" if gate else quantity(loop.gate)


def quantity(one: object) -> str:
    """A quantity in running text."""
    return numbers.full(one, signed=one.low < 0) if isinstance(one, Estimate) else str(one)


def _tested(claims: Sequence[Claim], pool: Pool) -> str:
    if not claims:
        return "No claim was tested."
    families = list(dict.fromkeys(claim.family for claim in claims))
    again = sum(claim.labels is not None for claim in claims)
    count = len(claims) - again
    number = "One claim was" if count == 1 else f"{count} claims were"
    halves = sorted({design.half for design in pool.some(Design, (claim.design for claim in claims))})
    where = f", on the {' and '.join(halves)} half of the cases" if halves else ""
    return (
        f"{number} tested, from the {'family' if len(families) == 1 else 'families'} {', '.join(families)}{where}."
        + (f" Readers' labels corrected {again} estimates of them." if again else "")
    )


def _groups(claims: Sequence[Claim]) -> tuple[tuple[Verdict, str, tuple[Line, ...]], ...]:
    found = []
    for verdict, heading in GROUPS:
        some = [claim for claim in claims if claim.verdict == verdict]
        if some:
            more = f" ({SHOWN} of {len(some)}; all stand below)" if len(some) > SHOWN else ""
            found.append((verdict, heading + more, tuple(map(_line, some[:SHOWN]))))
    return tuple(found)


def _line(claim: Claim) -> Line:
    unit = f" {claim.specific.unit}" if isinstance(claim.specific, Estimate) else ""
    return Line(f"claim-{short(claim.id)}", called(claim), claim.outcome, claim.statement, f"{effect(claim)}{unit}")


def _carried(loop: Loop, pool: Pool) -> str:
    if loop.claim is None:
        return f"No claim was carried on. {_sentence(loop.why)}."
    claim = pool.get(Claim, loop.claim)
    said = f"“{claim.statement}” ({claim.family}, as {claim.outcome})" if claim else f"Claim {short(loop.claim)}"
    return f"{said}. {_sentence(loop.why)}."


def _sentence(why: str) -> str:
    return why[:1].upper() + why[1:]


def _explained(graph: Graph | None) -> str:
    return f"The explanation is {graph.verdict}: {graph.why}." if graph else "The graph is not among these records."


def _changed(loop: Loop, pool: Pool) -> tuple[str, ...]:
    if loop.training is None:
        return ("No fix was trained.",)
    training = pool.get(Training, loop.training)
    how = f"by training {short(loop.training)}"
    if training:
        how = f"by {training.method.upper()} in {len(training.steps)} steps"
    if not loop.runout:
        return (f"A fix was trained {how}; what it changed was not measured.",)
    return (f"A fix was trained {how}. After minus before:", *(_moved(named) for named in loop.runout))


def _moved(named: Named) -> str:
    seen = named.quantity
    if not isinstance(seen, Estimate):
        return f"{named.name}: {seen}"
    sure = "" if seen.low > 0 or seen.high < 0 else "; the interval holds zero, so no change is shown"
    return f"{named.name}: {numbers.full(seen, signed=True)}{sure}"


def _limits(claims: Sequence[Claim], pool: Pool) -> tuple[str, ...]:
    """What each outcome type that was tested amounts to."""
    found = []
    for outcome in ("preference", "behaviour"):
        some = [claim for claim in claims if claim.outcome == outcome]
        if some:
            asked = [record for claim in some for record in pool.some(Replies, claim.parents)]
            found.append(f"A claim as {outcome} is about {means(some[0], asked)}.")
    return tuple(found)
