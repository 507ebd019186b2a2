"""What a trace takes beside the graph of a case, said before it is done: rows with neurons ablated, and twins."""

# L layers  T nodes  F neurons of a layer  A width of all heads together  D width of the stream

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from truing.errors import TargetError
from truing.targets.local import Functional
from truing.targets.local.change import Units, counts, entering, layers, place
from truing.targets.local.memory import Costs
from truing.trace.twins import Twin

FP32 = 4
ROWS = 16
"""Rows of a batch of ablations at most: with more, a row takes no less time."""
WIDE = 16_384
"""Nodes of all rows of a batch together at most, so that long cases fit."""


class Taken(Protocol):
    """What is ablated, by what it takes for each node of the tree: beyond a pass, and as values that are kept."""

    bytes_a_node: int
    held_a_node: int


@dataclass(frozen=True, slots=True)
class Room:
    """A piece of work and the bytes that it takes beyond the weights: an upper estimate."""

    what: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.what}: about {self.bytes / 1e6:,.0f} MB beyond the weights"

    def within(self, budget: int, lower: str) -> Room:
        """Itself. TargetError, with the numbers and what to do, where it is more than so many bytes."""
        if self.bytes > budget:
            raise TargetError(
                f"{self.what} takes about {self.bytes / 1e6:,.0f} MB beyond the weights, more than the"
                f" {budget / 1e6:,.0f} MB allowed. {lower}, or raise max_memory (TRUING_MAX_MEMORY)."
            )
        return self


def ablating(model: Any, case: Functional, basis: Taken, *, budget: int, twin: bool, unit: str = "neuron") -> Room:
    """What ablating takes on a bench, with as many rows as fit. TargetError where not even one does.

    `twin`: whether the values of another case are kept too; `unit`: what is ablated.
    """
    fixed, one = bench_costs(model, case, basis)
    fixed += held(model, len(case.tree), basis) if twin else 0
    rows = rows_within(budget, fixed, one, len(case.tree))
    what = f"ablating {unit}s in a case of {len(case.tree):,} tokens, {rows} row{'s' * (rows > 1)} at once"
    return Room(what, fixed + rows * one).within(budget, "Shorten the case, trace without a check (--no-check)")


def bench_costs(model: Any, case: Functional, basis: Taken) -> tuple[int, int]:
    """Bytes of a bench: what it keeps, with the pass that reads it, and each row of a batch."""
    costs, nodes, kept = Costs.of(model), len(case.tree), len(case.before_M.unique())
    one = nodes * (basis.bytes_a_node + costs.passing + 3 * costs.kept + min(nodes, costs.together) * costs.pair)
    return held(model, nodes, basis) + costs.block(nodes, nodes), one + kept * costs.out


def held(model: Any, nodes: int, basis: Taken) -> int:
    """What a bench keeps of a case: values, what blocks gave, keys."""
    stream = len(layers(model)) * model.config.get_text_config().hidden_size * FP32
    return nodes * (basis.held_a_node + stream + Costs.of(model).kept)


def rows_within(budget: int, fixed: int, one: int, nodes: int) -> int:
    """As many rows of so many nodes as fit and are allowed, and one where none is."""
    return int(max(1, min(ROWS, WIDE // nodes, (budget - fixed) // one)))


def through_twins(model: Any, pairs: Sequence[Twin], *, rows: int, spots: int, budget: int, more: int = 0) -> Room:
    """What going through twins takes: the inside of both sides, and the most of a pass over one, of so many `rows`
    that are patched together, and of so many `spots` whose contributions are drawn together. TargetError where it is
    more than the budget. `more`: bytes that are kept besides.
    """
    costs, config = Costs.of(model), model.config.get_text_config()
    sides = [(side.functional, twin.shared) for twin in pairs for side in (twin.first, twin.second)]
    nodes, kept = max(len(f.tree) for f, _ in sides), max(len(f.before_M.unique()) for f, _ in sides)
    attended = max(entering(place(model, Units("head", layer))[0]) for layer in range(len(layers(model))))
    # Gate, up, neurons; attention outputs, queries, keys; masks.
    inside = nodes * len(layers(model)) * 3 * (counts(model)["neuron"] + attended) * FP32 + nodes * nodes * FP32
    reading = costs.block(nodes, nodes) + kept * costs.out
    row = max(_row(costs, f, shared) for f, shared in sides)
    drawing = (spots + 1) * nodes * (8 * config.hidden_size + 4 * attended) * FP32
    what = f"going through {len(pairs)} twins of up to {nodes:,} tokens"
    what += f", {rows} choices of units patched at once" if rows else ""
    fewer = ", ask for fewer choices of units (heads, neurons and draws of the settings)" if rows else ""
    return Room(what, 2 * inside + max(reading, rows * row, drawing) + more).within(budget, f"Shorten the texts{fewer}")


def _row(costs: Costs, case: Functional, shared: int) -> int:
    """A row of a patched pass: from the nodes on that its twin does not share, whose keys are there for every row, and
    once more for the layer that is at work.
    """
    nodes, own = len(case.tree), len(case.tree) - shared
    of_own = own * (costs.passing + costs.kept) + min(own, costs.together) * nodes * costs.pair
    return of_own + nodes * costs.kept + len(case.before_M.unique()) * costs.out


__all__ = ["FP32", "ROWS", "Room", "Taken", "ablating", "bench_costs", "held", "rows_within", "through_twins"]
