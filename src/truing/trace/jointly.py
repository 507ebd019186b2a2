"""What the best neurons of a graph do to a decision together: ablated beside shams, and turned up and down."""

# K places of a graph

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from truing.records import Estimate
from truing.stats.agreement import binomial_limits
from truing.trace.ablate import Bench, Edit, Reference
from truing.trace.picked import Floats, Numbers, Picked, shuffled
from truing.trace.singly import taken

DOSES = (0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Jointly:
    """The places that push the decision most, ablated together."""

    ablation: str
    places: int
    effect: float
    """How far the decision moves the way the scores say, nats per token; negative where it moves the other way."""
    predicted: float
    """The same to first order: what their scores add up to, each times the part of its activation that is taken away.
    """
    shams: tuple[float, ...]
    """The same for as many places whose scores were dealt out anew among neighbours by layer and node."""

    @property
    def p(self) -> float:
        """How often a sham moves it as far, the graph itself counted as one."""
        return (1 + self.as_good) / (1 + len(self.shams))

    @property
    def as_good(self) -> int:
        """Shams that move it as far."""
        return sum(sham >= self.effect for sham in self.shams)

    @property
    def estimate(self) -> Estimate:
        """The same as a number of a record."""
        low, high = binomial_limits(self.as_good, len(self.shams))
        return Estimate(
            value=self.p, low=min(low, self.p), high=max(high, self.p), level=0.95, n=len(self.shams),
            clusters=len(self.shams), unit="probability", estimator="permutation test; interval Clopper-Pearson",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Doses:
    """The decision with the places' activations multiplied by numbers."""

    points: tuple[tuple[float, float], ...]
    """Factor, decision in nats per token."""
    predicted: float
    """Slope to first order: what the scores add up to."""

    @property
    def slope(self) -> float:
        """From the nearest doses on either side of 1."""
        below = max(point for point in self.points if point[0] < 1)
        above = min(point for point in self.points if point[0] > 1)
        return (above[1] - below[1]) / (above[0] - below[0])

    @property
    def steps(self) -> tuple[int, int]:
        """Steps from dose to dose that go the way the scores say, and steps in all."""
        values = [value for _, value in self.points]
        right = sum((b - a) * self.predicted > 0 for a, b in pairwise(values))
        return right, len(values) - 1


def direction(score_K: Floats) -> float:
    """Which way the scores push more in all: 1 up, -1 down."""
    return 1.0 if score_K[score_K > 0].sum() >= -score_K[score_K < 0].sum() else -1.0


def pushing(score_K: Floats, most: int) -> Numbers:
    """Which push that way most, by these scores: half of those that do, and no more than so many."""
    toward = direction(score_K) * score_K
    count = min(most, max(1, int((toward > 0).sum()) // 2))
    return np.argsort(-toward, kind="stable")[:count]


def jointly(
    bench: Bench,
    reference: Reference,
    picked: Picked,
    *,
    most: int,
    shams: int,
    seed: int,
    told: Callable[[int], None] = lambda _: None,
) -> Jointly:
    """Those that push most, and so many shams, each ablated together; the same shams under every reference."""
    rng = np.random.default_rng(seed)
    dealt = [picked.score_K[shuffled(picked.places, rng)] for _ in range(shams)]
    sets = [picked.places[pushing(scores, most)] for scores in (picked.score_K, *dealt)]
    values = bench.values([Edit(places, reference) for places in sets], told)
    toward, some = direction(picked.score_K), pushing(picked.score_K, most)
    own, *others = [toward * (bench.value - value) for value in values]
    _, part = taken(bench, reference, sets[0])
    predicted = toward * float((picked.score_K[some] * part).sum())
    return Jointly(reference.name, len(some), own, predicted, tuple(others))


def doses(bench: Bench, nothing: Reference, picked: Picked, *, most: int, by: Sequence[float] = DOSES) -> Doses:
    """The same places turned up and down. `nothing`: the reference that is zero."""
    some = pushing(picked.score_K, most)
    values = bench.values([Edit(picked.places[some], nothing, factor=factor) for factor in by])
    return Doses(tuple(zip(by, values, strict=True)), float(picked.score_K[some].sum()))


__all__ = ["DOSES", "Doses", "Jointly", "direction", "doses", "jointly", "pushing"]
