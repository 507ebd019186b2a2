"""What adds up to a target: one interface over engines, by hand for Llama-shaped blocks and by autograd for all.

Features of dictionaries stand in the place of neurons where there are any, and are called neurons here.
"""

# B targets  T nodes of the tree  F neurons of a layer  P cells, each a target and a node  E listed neurons

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Spot = tuple[int, int, int]
"""A neuron at one place: layer, node of the tree, index."""
Goal = Spot | None
"""What is explained: a neuron at one place, or (None) the decision."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What the neurons of a layer add to targets above it: the first B of those that were asked for."""

    number: int
    total_BT: Tensor
    """All neurons of the layer together, with what no neuron of it stands for (the error of a dictionary)."""
    bound_BT: Tensor
    """No single neuron adds more than this, in absolute value."""
    parts: Callable[[Tensor], Tensor]
    """Every neuron by itself at some cells: from places (P, 2) to (P, F)."""
    largest: Callable[[Tensor, int], Tensor] | None = None
    """Where few neurons are active: those that add at least so much, shape (B,), to a target, and of each target so
    many at most. Rows, nodes, indices and contributions, shape (4, E); in the place of looking at cells."""


Sink = Callable[[Layer], None]
"""Is given the layers below the highest target, from above."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What is no neuron."""

    embeddings_BT: Tensor
    biases_B: Tensor
    """All biases and constants together; 0 in a model without."""


class Engine(Protocol):
    """One case under the linear rules."""

    layers: int
    width: int
    """F."""
    nodes: int
    """T."""

    def value(self, goal: Goal) -> float:
        """What is explained: an activation, or the decision with frozen probabilities (nats; see `linear`)."""

    def by_all_paths(self, spots: Sequence[Spot]) -> tuple[Sources, Tensor]:
        """What tokens and biases (one row), and these neurons (K,), add to the decision through all neurons above."""

    def into(self, goals: Sequence[Goal], sink: Sink) -> Sources:
        """What every source adds to each target. The highest stand first: the decision, then by layer."""
