"""The neurons of a graph at their places, and the orders and shams that they are checked against."""

# K places  L layers  T nodes  F neurons of a layer

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truing.trace.engine import Spot

BLOCK = 16
"""Scores are dealt out anew among so many places that are neighbours by layer and node."""
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """Neurons at places, shape (K, 3): layer, node, neuron; what each adds to the decision, and its influence."""

    places: Tensor
    score_K: Floats
    """Total contribution to the decision: what is lost where the neuron is set to zero, to first order."""
    influence_K: Floats

    @classmethod
    def of(cls, spots: Sequence[Spot], scores: Sequence[float], influences: Sequence[float]) -> Picked:
        """From lists. ValueError where they differ in length, or name a place twice."""
        if not len(spots) == len(scores) == len(influences) or len(set(spots)) < len(spots):
            raise ValueError(f"{len(set(spots))} places, {len(scores)} scores and {len(influences)} influences")
        score_K, influence_K = (np.asarray(x, dtype=np.float64) for x in (scores, influences))
        return cls(torch.tensor(spots, dtype=torch.long).reshape(-1, 3), score_K, influence_K)

    def __len__(self) -> int:
        return len(self.score_K)

    def by(self, key_K: Floats) -> Tensor:
        """The places, the largest key first."""
        return self.places[torch.from_numpy(np.argsort(-key_K, kind="stable"))]


def shuffled(places: Tensor, rng: np.random.Generator, block: int = BLOCK) -> Numbers:
    """A permutation of places that moves none far: in order of layer and node, within blocks of so many neighbours."""
    order = np.lexsort((places[:, 1].numpy(), places[:, 0].numpy()))
    found = np.arange(len(order))
    for start in range(0, len(order), block):
        some = order[start : start + block]
        found[some] = rng.permutation(some)
    return found


def matched(places: Tensor, width: int, rng: np.random.Generator) -> Tensor:
    """As many other neurons of the same layers at the same nodes, in the same order; none of these, while others are
    there.
    """
    found = places.clone()
    cells, cell_K = np.unique(places[:, :2].numpy(), axis=0, return_inverse=True)
    for cell in range(len(cells)):
        here = np.nonzero(cell_K.ravel() == cell)[0]
        own = places[here, 2].numpy()
        others = rng.permutation(np.setdiff1d(np.arange(width), own))[: len(here)]
        drawn = np.concatenate([others, rng.permutation(own)[: len(here) - len(others)]])
        found[here, 2] = torch.from_numpy(drawn)
    return found


def most_active(neurons: Sequence[Any], count: int) -> Tensor:
    """The places of the largest |activation| of all, the largest first. `neurons`: by layer, shape (T, F)."""
    values, places = [], []
    for layer, values_TF in enumerate(neurons):
        if not values_TF.numel():
            continue  # a layer without a dictionary has no features
        best = values_TF.abs().flatten().topk(min(count, values_TF.numel()))
        node, neuron = best.indices // values_TF.shape[1], best.indices % values_TF.shape[1]
        values.append(best.values)
        places.append(torch.stack([torch.full_like(node, layer), node, neuron], 1))
    order = torch.cat(values).argsort(descending=True, stable=True)[:count]
    return torch.cat(places)[order].cpu()


__all__ = ["Picked", "matched", "most_active", "shuffled"]
