"""Whether a graph of one case says what its neurons do: a rule over numbers, each beside what chance and trifles give.

A sham graph, whose scores were dealt out anew among neighbouring places, passes either test of at most ALPHA by
construction: both are permutation tests. No sufficiency is claimed from one ablation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from truing.records import Estimate, Quantity

Verdict = Literal["supported", "weak", "refuted", "inconclusive"]
ALPHA = 0.025
"""Of each of the two tests, so that a sham that either of them passes is rarer than 1 in 20."""
CLEAR = 0.5
"""A correlation with exact effects from here on is one; below it, none that a graph can stand on."""
OFF = 0.5
"""How far from 1 the share of the decision that a graph's neurons carry alone may be."""
TIMES = 4.0
"""A joint effect that is so many times what scores foretell, or so small a part of it, is not theirs: another decision
of the same model may run through the same neurons."""
ENOUGH = 2
"""Ablations that have to agree."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured under one ablation. Shares are of the decision; None where it was not measured."""

    ablation: str
    told: Quantity | None
    """Spearman of predicted with exact effects of single neurons, with their signs."""
    told_p: float
    moved: float
    """How far the best neurons together move the decision the way the scores say, nats per token."""
    moved_p: float
    foretold: float = 0.0
    """The same to first order."""
    carried: float | None = None
    """F of all neurons of the graph; None where neurons carry hardly any of the decision."""
    active: float | None = None
    """F of as many of the most active neurons."""
    random: tuple[float, ...] = ()
    """F of as many random neurons of the same places, by draw."""
    ranked: float = 0.0
    """Spearman of the predicted effects' size with that of the exact ones."""
    ranked_by_activation: float = 0.0

    @property
    def tells(self) -> bool:
        """Whether scores say what single neurons do."""
        return isinstance(self.told, Estimate) and self.told.value >= CLEAR and self.told_p <= ALPHA

    @property
    def moves(self) -> bool:
        """Whether the best neurons move the decision together, and more than shams do."""
        return self.moved > 0 and self.moved_p <= ALPHA

    @property
    def sized(self) -> bool:
        """Whether that is about as far as the scores say."""
        return self.foretold > 0 and 1 / TIMES <= self.moved / self.foretold <= TIMES

    @property
    def holds(self) -> bool:
        """Whether the graph's neurons alone carry the decision, and random ones do not."""
        return self.carried is not None and self.off <= OFF and all(self.off < abs(1 - one) for one in self.random)

    @property
    def off(self) -> float:
        """How far from the whole decision the graph's neurons alone are, as a share of it."""
        return float("inf") if self.carried is None else abs(1 - self.carried)


def verdict(found: Sequence[Evidence]) -> tuple[Verdict, str]:
    """The verdict, and its grounds in plain words.

    supported: scores say what single neurons do; the best of them move the decision together, more than shams do and
    about as far as they say, both under every ablation that was tested; and the graph's neurons alone carry at least
    half of the decision and at most one and a half times it, nearer to the whole than random ones, under two ablations.
    weak: one of the tests is passed, but not all of that holds. refuted: every ablation speaks against both.
    inconclusive: they differ, or too little was measured.
    """
    tested = [one for one in found if one.told is not None]
    if len(tested) < ENOUGH or not all(isinstance(one.told, Estimate) for one in tested):
        why = next((str(one.told) for one in tested if not isinstance(one.told, Estimate)), "under two ablations")
        return "inconclusive", f"too little was measured: {why}"
    tells, moves, sized = (all(getattr(one, test) for one in tested) for test in ("tells", "moves", "sized"))
    said = f"{_tells(tested, tells)}; {_moves(tested, moves)}"
    measured = [one for one in found if one.carried is not None]
    alone = sum(one.holds for one in measured) >= ENOUGH
    if not (tells or moves):
        against = all(_against(one) for one in tested)
        return ("refuted" if against else "inconclusive"), said
    remark = _trifles(tested, measured)
    if len(measured) < ENOUGH:
        return "inconclusive", f"{said}; but neurons carry hardly any of this decision{remark}"
    carried = _listed(measured, lambda one: f"{one.carried:.0%}")
    if moves and not sized:
        said += f", but not as far as scores say ({_listed(tested, lambda one: f'{one.foretold:+.2f}')})"
    if tells and moves and sized and alone:
        return "supported", f"{said}; alone, the graph's neurons carry {carried} of the decision{remark}"
    kept = "" if alone else ", too little, too much, or no better than random neurons"
    return "weak", f"{said}; alone, the graph's neurons carry {carried} of the decision{kept}{remark}"


def _against(one: Evidence) -> bool:
    assert isinstance(one.told, Estimate)
    return one.told.high < CLEAR and not one.moves


def _tells(tested: Sequence[Evidence], tells: bool) -> str:
    r = _listed(tested, lambda one: f"{one.told.value:.2f}" if isinstance(one.told, Estimate) else "-")
    return f"scores {'say' if tells else 'do not clearly say'} what each neuron does by itself (rank correlation {r})"


def _moves(tested: Sequence[Evidence], moves: bool) -> str:
    by = _listed(tested, lambda one: f"{one.moved:+.2f}")
    more = "more" if moves else "no more, or not always more,"
    return f"together the best ones move the decision by {by} nats per token, {more} than shams"


def _listed(found: Sequence[Evidence], what: Callable[[Evidence], str]) -> str:
    return ", ".join(f"{what(one)} ({one.ablation})" for one in found)


def _trifles(tested: Sequence[Evidence], measured: Sequence[Evidence]) -> str:
    """What does as well without any graph."""
    remark = ""
    if measured and all(one.active is not None and abs(1 - one.active) <= one.off for one in measured):
        remark += "; as many of the most active neurons carry as much"
    if all(one.ranked_by_activation >= one.ranked for one in tested):
        remark += "; activation size alone ranks single neurons as well"
    if measured and all(any(abs(1 - share) <= one.off for share in one.random) for one in measured):
        remark += "; random neurons of the same places carry as much"
    return remark


__all__ = ["ALPHA", "Evidence", "Verdict", "verdict"]
