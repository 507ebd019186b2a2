"""What is left of a decision when all but the best k neurons are ablated, and when those k are.

F(k) = (m(C_k) - m(0)) / (m(M) - m(0)): m(M) is the decision, m(0) that with all neurons ablated, m(C_k) that with all
but k (faithfulness), or with these k (completeness). The area between F and 1 is CMD in MIB (Mueller et al. 2025,
arXiv:2504.13151), there over all nodes of a model; here over those of the graph.
"""

# K places of a graph

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from truing.records import Curve
from truing.trace.ablate import Bench, Edit, Reference

SLIGHT = 0.1
"""Where ablating all neurons changes a decision by less than this part of it, there is no share of it to give."""
NOTHING = torch.zeros(0, 3, dtype=torch.long)
Orders = Mapping[str, Sequence[Tensor]]
"""By the name of an order: places, the best first, shape (K, 3); several where they were drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A curve of one order under one ablation, the most places measured, and the shares of its draws there."""

    curve: Curve
    most: int
    ends: tuple[float, ...]

    @property
    def share(self) -> float:
        """With all places of the graph."""
        return float(np.mean(self.ends))


def sizes(most: int, count: int) -> tuple[int, ...]:
    """About so many numbers of places from 1 to all of the graph's, evenly on a logarithmic axis."""
    return tuple(sorted({round(float(k)) for k in np.geomspace(1, most, count)} | {most})) if most else ()


def emptied(bench: Bench, references: Sequence[Reference]) -> list[float]:
    """The decision with all neurons ablated, by reference."""
    return bench.values([Edit(NOTHING, reference, others=True) for reference in references])


def slight(whole: float, empty: float) -> bool:
    """Whether neurons carry hardly any of a decision."""
    return abs(whole - empty) < SLIGHT * max(abs(whole), abs(empty))


def curves(
    bench: Bench,
    reference: Reference,
    empty: float,
    orders: Orders,
    ks: Sequence[int],
    told: Callable[[int], None] = lambda _: None,
) -> list[Drawn]:
    """Faithfulness of each order at each k; completeness at every second, of one draw.

    `empty`: the decision without neurons.
    """
    every_second = ks[::-1][::2][::-1]
    plan = [
        (name, order, draw, k)
        for name, some, most in (("faithfulness", ks, None), ("completeness", every_second, 1))
        for order, draws in orders.items()
        for draw in range(len(draws[:most]))
        for k in some
    ]
    edits = [Edit(orders[order][draw][:k], reference, others=name == "faithfulness")
             for name, order, draw, k in plan]  # fmt: skip
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (name, order, _, k), value in zip(plan, bench.values(edits, told), strict=True):
        share = (value - empty) / (bench.value - empty)
        found.setdefault((name, order), {}).setdefault(k, []).append(share)
    return [_drawn(name, reference, order, at, bench.candidates) for (name, order), at in found.items()]


def _drawn(name: str, reference: Reference, order: str, at: Mapping[int, list[float]], every: int) -> Drawn:
    measured = {k: float(np.mean(shares)) for k, shares in at.items()}
    known = {0: 0.0, every: 1.0} if name == "faithfulness" else {0: 1.0, every: 0.0}
    curve = Curve(
        name="faithfulness" if name == "faithfulness" else "completeness", ablation=reference.name, choice=order,
        points=tuple(sorted((known | measured).items())),
    )  # fmt: skip
    return Drawn(curve, max(at), tuple(at[max(at)]))


def gap(drawn: Drawn) -> float:
    """CMD: the mean of |1 - F| over the places of the graph, by trapezoids on a linear axis; 0 is best."""
    k, share = (np.array(x) for x in zip(*[p for p in drawn.curve.points if p[0] <= drawn.most], strict=True))
    off = np.abs(1 - share)
    return float(((off[1:] + off[:-1]) / 2 * np.diff(k)).sum() / drawn.most)


def enough(drawn: Drawn, share: float = 0.8) -> int | None:
    """The least k of those measured in the graph at which F reaches a share; None where none does."""
    return next((k for k, value in drawn.curve.points if 0 < k <= drawn.most and value >= share), None)


__all__ = ["Drawn", "Orders", "curves", "emptied", "enough", "gap", "sizes", "slight"]
