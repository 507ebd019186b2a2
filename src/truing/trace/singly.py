"""What each of some neurons does to a decision when it alone is ablated, beside what the graph says of it."""

# n places that were drawn

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from truing.records import Estimate, Quantity, Unmeasured
from truing.trace.ablate import Bench, Edit, Reference
from truing.trace.picked import Floats, Picked, shuffled

FEWEST = 8
"""Under so many places nothing is said of a correlation."""
LEVEL = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Singly:
    """Places each ablated alone, under one ablation."""

    ablation: str
    effect: Floats
    """The decision minus that without the neuron: exact."""
    predicted: Floats
    """The same to first order: its score, times the part of its activation that is taken away."""
    influence: Floats
    activation: Floats
    """Absolute."""
    told: Quantity
    """Spearman of predicted and exact effects, with their signs. One neuron whose effect is far from linear, and very
    large activations have such, would decide Pearson's."""
    told_p: float
    """How often scores that are dealt out anew among neighbours correlate as well."""

    @property
    def measured(self) -> bool:
        """Whether there is a correlation."""
        return isinstance(self.told, Estimate)


def singly(
    bench: Bench,
    reference: Reference,
    picked: Picked,
    *,
    count: int,
    seed: int,
    resamples: int = 999,
    told: Callable[[int], None] = lambda _: None,
) -> Singly:
    """The exact effects of so many of the places, drawn at random; the same places under every reference."""
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(picked))[:count])
    places = picked.places[some]
    edits = [Edit(places[n : n + 1], reference) for n in range(len(places))]
    effect = bench.value - np.array(bench.values(edits, told), dtype=np.float64)
    value, part = taken(bench, reference, places)
    score = picked.score_K[some]
    again = [spearman(score[shuffled(places, rng)] * part, effect) for _ in range(resamples)]
    correlation = between(spearman, score * part, effect, "Spearman correlation", seed=seed, resamples=resamples)
    as_good = sum(one >= correlation.value for one in again) if isinstance(correlation, Estimate) else resamples
    return Singly(
        reference.name, effect, score * part, picked.influence_K[some], np.abs(value), correlation,
        (1 + as_good) / (1 + resamples),
    )  # fmt: skip


def taken(bench: Bench, reference: Reference, places: Tensor) -> tuple[Floats, Floats]:
    """Activations at places, and the part of each that ablation takes away: 1 where the reference is zero."""
    at = places.tolist()
    value = np.array([float(bench.neurons[layer][node, i]) for layer, node, i in at], dtype=np.float64)
    to = np.array([reference.at(layer, node, i) for layer, node, i in at], dtype=np.float64)
    return value, np.divide(value - to, value, out=np.zeros_like(value), where=value != 0)


def pearson(x: Floats, y: Floats) -> float:
    """0 where either does not vary."""
    if not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return 0.0
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def spearman(x: Floats, y: Floats) -> float:
    """0 where either does not vary."""
    return pearson(ranks(x), ranks(y))


def ranks(x: Floats) -> Floats:
    """From 1; what is equal shares the mean of its ranks."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    found: Floats = (count.cumsum() - (count - 1) / 2)[place.ravel()]
    return found


def between(
    how: Callable[[Floats, Floats], float], x: Floats, y: Floats, name: str, *, seed: int, resamples: int = 999
) -> Quantity:
    """A correlation over places, with a percentile interval from places drawn anew."""
    if len(x) < FEWEST:
        return Unmeasured(reason=f"{len(x)} neurons; a correlation needs at least {FEWEST}")
    if not np.ptp(y) > 0:
        return Unmeasured(reason="ablating any one of the neurons changes nothing")
    rng, value = np.random.default_rng(seed), how(x, y)
    draws = [how(x[some], y[some]) for some in rng.integers(0, len(x), (resamples, len(x)))]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(
        value=value, low=min(float(low), value), high=max(float(high), value), level=LEVEL, n=len(x), clusters=len(x),
        unit="correlation", estimator=f"{name}, bootstrap over neurons",
    )  # fmt: skip


__all__ = ["FEWEST", "Singly", "between", "pearson", "singly", "spearman", "taken"]
