"""What adds up to some targets, kept sparsely: the largest neurons one by one, the others by layer and place.

No contribution is lost: whatever is not listed is in a remainder, and the sum is the value of the target.
"""

# B targets  L layers  T nodes of the tree  E listed neurons  Q listed remainders  P cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truing.trace.engine import Engine, Goal, Layer

LISTED = 1500
"""Neurons that a row lists at most; of remainders, a third as many."""
FAINT = 1e-4
"""A neuron that adds less than this part of the target's value is not listed."""
CELLS = 4096
"""Cells whose neurons are looked at one by one at once."""
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """One target and what adds up to it."""

    goal: Goal
    value: float
    layer_E: Numbers
    node_E: Numbers
    index_E: Numbers
    weight_E: Floats
    rest_layer_Q: Numbers
    rest_node_Q: Numbers
    rest_Q: Floats
    """What a layer's other neurons add at a node."""
    embedding_T: Floats
    bias: float
    unlisted: tuple[float, float]
    """Remainders that are not listed, together: those that add, and those that take away, so that none cancels out."""

    @property
    def size(self) -> float:
        """The sum of absolute contributions."""
        parts = [np.abs(x).sum() for x in (self.weight_E, self.rest_Q, self.embedding_T)]
        return float(sum(parts)) + abs(self.bias) + self.unlisted[0] - self.unlisted[1]

    @property
    def total(self) -> float:
        """The sum of contributions."""
        listed = float(self.weight_E.sum() + self.rest_Q.sum() + self.embedding_T.sum())
        return listed + self.bias + sum(self.unlisted)

    @property
    def error(self) -> float:
        """|total - value| over the sum of absolute contributions: whether the account closes."""
        return abs(self.total - self.value) / max(self.size, 1e-30)


@dataclass(slots=True)
class _Gathering:
    """What has been seen of some rows, from the highest layer down."""

    floor_B: Tensor
    """What a neuron has to add to be listed; rises where a row has many."""
    listed: int
    total_BLT: Tensor
    found: list[NDArray[np.float64]] = field(default_factory=list)
    """Rows, layers, nodes, indices, weights; shape (5, n)."""

    def take(self, layer: Layer) -> None:
        """A layer's neurons."""
        count = len(layer.total_BT)
        self.total_BLT[:count, layer.number] = layer.total_BT
        floor_B = self.floor_B[:count].to(layer.total_BT.device)
        if layer.largest is not None:
            some_4E = layer.largest(floor_B, self.listed).double().cpu().numpy()
            self.found.append(np.insert(some_4E, 1, layer.number, axis=0))
            self._trim()
            return
        for cells in (layer.bound_BT >= floor_B[:, None]).nonzero().split(CELLS):
            parts = layer.parts(cells)
            cell, index = (parts.abs() >= floor_B[cells[:, 0], None]).nonzero().T
            row, node = cells[cell].T
            some = [row, torch.full_like(row, layer.number), node, index, parts[cell, index]]
            self.found.append(torch.stack([x.double() for x in some]).cpu().numpy())
        self._trim()

    def _trim(self) -> None:
        """Only the largest of each row, where there are too many."""
        if sum(part.shape[1] for part in self.found) <= 2 * self.listed * len(self.floor_B):
            return
        self.found = [self.largest()]
        rows, weights = self.found[0][0].astype(int), np.abs(self.found[0][4])
        full = np.bincount(rows, minlength=len(self.floor_B)) >= self.listed
        least = np.full(len(full), np.inf)
        np.minimum.at(least, rows, weights)
        floor_B = np.where(full, np.maximum(least, self.floor_B.numpy()), self.floor_B.numpy())
        self.floor_B = torch.from_numpy(floor_B).to(self.floor_B)

    def largest(self) -> NDArray[np.float64]:
        """By row, the largest first."""
        if not self.found:
            return np.zeros((5, 0))
        every = np.concatenate(self.found, 1)
        every = every[:, np.lexsort((-np.abs(every[4]), every[0]))]
        starts = np.searchsorted(every[0], np.arange(len(self.floor_B)))
        rank = np.arange(every.shape[1]) - starts[every[0].astype(int)]
        return every[:, rank < self.listed]


def rows(engine: Engine, goals: Sequence[Goal], *, listed: int = LISTED) -> list[Row]:
    """What adds up to each of these targets, computed together."""
    values = [engine.value(goal) for goal in goals]
    floor_B = torch.tensor([FAINT * abs(value) for value in values])
    seen = _Gathering(floor_B, listed, torch.zeros(len(goals), engine.layers, engine.nodes))
    sources = engine.into(goals, seen.take)
    every = seen.largest()
    ends = np.searchsorted(every[0], np.arange(len(goals) + 1))
    embeddings = sources.embeddings_BT.double().cpu().numpy()
    return [
        _row(
            goal, values[b], every[1:, ends[b] : ends[b + 1]], seen.total_BLT[b].double().numpy(), embeddings[b],
            float(sources.biases_B[b]), listed // 3,
        )
        for b, goal in enumerate(goals)
    ]  # fmt: skip


def _row(
    goal: Goal, value: float, listed: NDArray[np.float64], total_LT: Floats, embedding_T: Floats, bias: float, most: int
) -> Row:
    layer, node, index = (x.astype(np.int64) for x in listed[:3])
    rest_LT = total_LT.copy()
    np.subtract.at(rest_LT, (layer, node), listed[3])
    size = np.abs(rest_LT)
    floor = FAINT * abs(value)
    if size.size > most:
        floor = max(floor, float(np.partition(size.ravel(), -most)[-most]))
    where = (size >= floor) & (size > 0)
    at = np.nonzero(where)
    return Row(
        goal, value, layer, node, index, listed[3].copy(), at[0], at[1], rest_LT[where], embedding_T, bias,
        (float(rest_LT[~where].clip(min=0).sum()), float(rest_LT[~where].clip(max=0).sum())),
    )  # fmt: skip
