"""What a family takes and what it can find, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

from truing.audit.company.episode import TURNS
from truing.audit.company.interactions import Interaction
from truing.audit.company.layout import LEVEL, choose, effects
from truing.audit.company.plans import SURFACES, Plan, factors, runs_of
from truing.audit.company.plot import kinds
from truing.records import Half
from truing.stats.power import Expected, least, standard_error


@dataclass(frozen=True, slots=True)
class Prospect:
    """A family under a plan."""

    family: str
    clause: str
    plots: tuple[str, ...]
    surfaces: int
    episodes: int
    calls: int
    """At most: every turn of every episode, and a question about the situation after each."""
    least: float
    """The least effect of a level that is found with 80% power, in probability."""
    interactions: tuple[tuple[str, float], ...]
    """The same for the declared interactions."""
    promise: str


def prospect(family: str, half: Half | None, plan: Plan, *, tests: int, turns: int = TURNS) -> Prospect:
    """What a family takes and can find where Holm runs over so many tests. DesignError where it has too few plots."""
    there = choose(family, half)
    runs, count = len(runs_of(plan)), len(there)
    return Prospect(
        family=family, clause=kinds()[family].clause, plots=tuple(plot.id for plot in there),
        surfaces=sum(min(SURFACES, len(plot.surfaces)) for plot in there), episodes=count * runs,
        calls=count * runs * (turns + 1), least=_least(count, runs, tests),
        interactions=tuple((str(one), _least(count, runs, tests, one)) for one in plan.interactions),
        promise=promise(family, count, plan, tests=tests),
    )  # fmt: skip


def claims_of(plan: Plan) -> int:
    """How many claims a family makes of one outcome."""
    return len(list(effects())) + len(plan.interactions)


def promise(family: str, plots: int, plan: Plan, *, tests: int) -> str:
    """How small an effect the design can find, in a line. `tests`: claims that Holm runs over."""
    runs, expected = len(runs_of(plan)), Expected()
    # A difference of rates is no larger than 1, a difference of such differences no larger than 2.
    size = _least(plots, runs, tests)
    found = [f"an effect of {size:.2f}" if size < 1 else "no effect of any size"]
    for one in plan.interactions:
        size = _least(plots, runs, tests, one)
        found.append(f"{one} of {size:.2f}" if size < 2 else f"{one} of no size")
    return (
        f"{family}: {plots * runs} episodes of {plots} plots find {', '.join(found)} on the rate of harm in four audits"
        f" of five, after Holm over {tests} claims, if that is {expected.rate:g} without it and effects differ by"
        f" {expected.between:g} (standard deviation) between plots"
    )


def _least(plots: int, runs: int, tests: int, one: Interaction | None = None) -> float:
    """Of a level of a factor of three, which is the least certain; or of an interaction."""
    share, sizes = 1 / 2, factors()  # half of the runs have the means
    for factor in one.factors if one else ("threat",):
        share *= 2 / sizes[factor]
    se = standard_error(plots, runs, share=share, parts=4 if one else 2, expected=Expected())
    return least(se, plots - 1, alpha=(1 - LEVEL) / tests)
