"""What adds up to spots and to the decision in one run, by segment: in any decoder, by autograd under the linear rules.

A spot is a neuron over all places of a segment. Biases stand at no place: what they and added numbers give is together.
"""

# B target nodes  T nodes of the tree  F neurons of a layer  S segments

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from truing.trace.auto import AutoEngine, Back
from truing.trace.twins import Side

TOGETHER = 8
"""Targets that go back through the graph of a pass together."""
Spot = tuple[int, int, str]
"""Layer, neuron, segment."""


@dataclass(frozen=True, slots=True)
class Account:
    """Contributions of one run: rows are the spots and, last, the decision; columns spots, remainders, inputs, and
    biases where there may be any.
    """

    flow: Tensor
    values: Tensor
    error: float
    """Largest |sum of a row - its value| over the sum of the absolute contributions of single nodes: within a segment
    they may cancel."""


def by_autograd(
    model: Any, side: Side, spots: Sequence[Spot], segments: Sequence[str], *, at_once: int = TOGETHER
) -> Account:
    """All contributions into every spot and into the decision; so many of them go back at once."""
    engine = AutoEngine(model, side.functional)
    where_ST = torch.tensor([[label == segment for label in side.segment_T] for segment in segments], dtype=model.dtype)
    where_ST = where_ST.to(model.device)
    books = _Books(engine, list(spots), where_ST, {segment: s for s, segment in enumerate(segments)})
    for layer, numbers in _together(spots, engine.layers, at_once):
        outputs = [books.output(number) for number in numbers]
        books.values[numbers] = torch.stack(outputs).detach().double().cpu()
        books.enter(numbers, engine.back(layer, torch.stack(outputs)))
    return books.closed()


class _Books:
    """Rows of contributions as they come in."""

    def __init__(self, engine: AutoEngine, spots: list[Spot], where_ST: Tensor, index: dict[str, int]) -> None:
        self.engine, self.spots, self.where_ST, self.index = engine, spots, where_ST, index
        rows = len(spots) + 1
        self.flow = torch.zeros(rows, len(spots) + 2 * len(where_ST) + 1, dtype=torch.double)
        self.absolute, self.values = torch.zeros(rows, dtype=torch.double), torch.zeros(rows, dtype=torch.double)

    def output(self, number: int) -> Tensor:
        """What a row explains, a scalar with its graph."""
        if number == len(self.spots):
            return self.engine.decision
        layer, neuron, segment = self.spots[number]
        return self.engine.given(layer)[:, neuron] @ self.where_ST[self.index[segment]]

    def enter(self, numbers: list[int], back: Back) -> None:
        """What some targets are made of."""
        first = len(self.spots)
        second = first + len(self.where_ST)
        for layer in range(back.layer):
            parts_BTF = back.neurons[layer] * self.engine.neurons(layer)
            rest_BT = parts_BTF.sum(-1)
            for column, (at, neuron, segment) in enumerate(self.spots):
                if at == layer:
                    part_BT = parts_BTF[..., neuron] * self.where_ST[self.index[segment]]
                    self._add(numbers, slice(column, column + 1), part_BT, part_BT.sum(-1, keepdim=True))
                    rest_BT = rest_BT - part_BT
            self._add(numbers, slice(first, second), rest_BT, rest_BT @ self.where_ST.T)
        inputs_BT = back.embeddings_BT
        self._add(numbers, slice(second, -1), inputs_BT, inputs_BT @ self.where_ST.T.to(inputs_BT))
        self._add(numbers, slice(-1, None), back.biases_B[:, None], back.biases_B[:, None])

    def _add(self, numbers: list[int], columns: slice, single_BX: Tensor, together_BC: Tensor) -> None:
        self.flow[numbers, columns] += together_BC.double().cpu()
        self.absolute[numbers] += single_BX.abs().sum(-1).double().cpu()

    def closed(self) -> Account:
        """With how far sums are from values."""
        off = (self.flow.sum(-1) - self.values).abs() / self.absolute.clamp(min=1e-12)
        return Account(self.flow, self.values, float(off.max()))


def _together(spots: Sequence[Spot], top: int, most: int) -> Iterator[tuple[int, list[int]]]:
    """Rows of one layer, so many at a time at most; the decision's by itself."""
    order = sorted(range(len(spots)), key=lambda number: spots[number][0])
    for layer, numbers in groupby(order, key=lambda number: spots[number][0]):
        every = list(numbers)
        for start in range(0, len(every), most):
            yield layer, every[start : start + most]
    yield top, [len(spots)]


__all__ = ["TOGETHER", "Account", "Spot", "by_autograd"]
