"""Whether graphs of paraphrases are made of the same neurons."""

# G graphs

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from truing.records import Estimate, Named, Unmeasured
from truing.trace.singly import spearman

Influences = Mapping[tuple[int, int], float]
"""By layer and neuron, over all places of a text."""


def summed(nodes: Sequence[tuple[int, int, float]]) -> Influences:
    """Influence by (layer, neuron), places together."""
    found: dict[tuple[int, int], float] = {}
    for layer, neuron, influence in nodes:
        found[layer, neuron] = found.get((layer, neuron), 0.0) + influence
    return found


def overlap(a: Influences, b: Influences, k: int) -> float:
    """Jaccard index of the k neurons with most influence in either; 1 where they are the same."""
    tops = [set(sorted(x, key=lambda unit: (-x[unit], unit))[:k]) for x in (a, b)]
    return len(tops[0] & tops[1]) / max(1, len(tops[0] | tops[1]))


def agreement(a: Influences, b: Influences) -> float:
    """Spearman correlation of influence over the neurons of either; a neuron that is not in a graph has 0 there."""
    units = sorted({*a, *b})
    return spearman(*(np.array([x.get(unit, 0.0) for unit in units]) for x in (a, b)))


def stability(graphs: Sequence[Sequence[tuple[int, int, float]]], k: int = 50) -> tuple[Named, ...]:
    """Over all pairs of graphs, each a list of (layer, neuron, influence): overlap of the top k, and rank correlation.

    The interval is the range of the pairs: they share graphs, so that their spread is no error of their mean.
    """
    names = (f"overlap of the top {k} over paraphrases", "rank correlation of influence over paraphrases")
    if len(graphs) < 2:
        none = Unmeasured(reason=f"{len(graphs)} graphs; paraphrases are compared in pairs")
        return tuple(Named(name=name, quantity=none) for name in names)
    found = [summed(nodes) for nodes in graphs]
    pairs = list(combinations(found, 2))
    overlaps, ranks = [overlap(a, b, k) for a, b in pairs], [agreement(a, b) for a, b in pairs]
    note = "0: no neuron in common; 1: the same"
    return (
        Named(name=names[0], quantity=_over_pairs(overlaps, len(graphs), "Jaccard index"), note=note),
        Named(name=names[1], quantity=_over_pairs(ranks, len(graphs), "Spearman correlation")),
    )


def _over_pairs(values: Sequence[float], graphs: int, unit: str) -> Estimate:
    mean = min(max(float(np.mean(values)), min(values)), max(values))
    return Estimate(
        value=mean, low=min(values), high=max(values), level=1.0, n=len(values), clusters=graphs, unit=unit,
        estimator="mean over pairs of graphs, with their range",
    )  # fmt: skip


__all__ = ["agreement", "overlap", "stability"]
