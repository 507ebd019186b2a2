"""Which neurons a graph is made of: those that most of the decision runs through, found from the decision down.

After Ameisen et al. 2025 ("Circuit Tracing", adaptive selection): rows of the neurons with the largest influence, as
far as it is known, are computed next, until there are enough. Here rows are sparse, so that nothing grows with the
number of neurons squared.
"""

# N nodes  E edges

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from truing.records import ADDS, EVERYWHERE, NODE_KINDS, TAKES, Circuit
from truing.trace.engine import Engine, Goal
from truing.trace.influence import influence
from truing.trace.rows import LISTED, Row, rows

BATCH = 64
Numbers = NDArray[np.int64]


def select(
    engine: Engine,
    count: int,
    *,
    batch: int = BATCH,
    rounds: int = 1,
    listed: int = LISTED,
    told: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """The row of the decision, and those of so many neurons; fewer where nothing else adds to it.

    `batch`: rows that are computed together; `rounds`: batches after which neurons are chosen anew.
    """
    found = rows(engine, [None], listed=listed)
    while (missing := count + 1 - len(found)) > 0:
        if not (chosen := most_influential(found, min(batch * rounds, missing), engine)):
            break
        # Highest layers together: a recursion begins at the highest of its targets.
        for start in range(0, len(chosen), batch):
            found += rows(engine, chosen[start : start + batch], listed=listed)
            told(len(found) - 1)
    return found


def most_influential(found: Sequence[Row], count: int, engine: Engine) -> list[Goal]:
    """The neurons without a row that most of the decision is known to run through, highest layer first."""
    keys = [_keys(row, engine) for row in found]
    known = np.unique(np.concatenate(keys))
    through = np.zeros(len(known))
    places = [np.searchsorted(known, key) for key in keys]
    done = np.zeros(len(known), dtype=bool)
    # From the decision down: what runs through a neuron is known when its own row is reached.
    order = sorted(range(len(found)), key=lambda i: -_height(found[i].goal, engine))
    for i in order:
        row, own = found[i], 1.0
        if row.goal is not None:
            place = int(np.searchsorted(known, _key(row.goal, engine)))
            if place == len(known) or known[place] != _key(row.goal, engine):
                continue
            done[place], own = True, float(through[place])
        through[places[i]] += own * np.abs(row.weight_E) / max(row.size, 1e-30)
    through[done] = -1
    best = np.argsort(-through, kind="stable")[:count]
    goals = [_spot(int(known[i]), engine) for i in best if through[i] > 0]
    return sorted(goals, key=lambda goal: -_height(goal, engine))


def assembled(found: Sequence[Row], engine: Engine, tokens: Sequence[int]) -> Circuit:
    """The graph of these rows. What neurons without a row add is in the remainders. `tokens`: ids by node."""
    chosen = np.array(sorted(_key(row.goal, engine) for row in found if row.goal is not None), dtype=np.int64)
    rests = np.unique(np.concatenate([_rest_keys(row, engine, chosen)[0] for row in found]))
    T, F = engine.nodes, engine.width
    # In this order every source stands before what it adds to: remainders of a layer beside its neurons.
    layer = np.concatenate([np.full(T + 3, -1), rests // T, chosen // (T * F), [engine.layers]])
    kind = np.concatenate(
        [[3, 3], np.zeros(T), [1], np.full(len(rests), 3), np.full(len(chosen), 2), [NODE_KINDS.index("decision")]]
    )
    none = [EVERYWHERE]
    position = np.concatenate([none, none, np.arange(T), none, rests % T, chosen // F % T, none])
    index = np.concatenate([[ADDS, TAKES], tokens, none, np.full(len(rests), EVERYWHERE), chosen % F, none])
    order = np.argsort(layer, kind="stable")
    place = np.argsort(order)  # where each stands after sorting
    first_token, bias = 2, 2 + T
    first_rest, first_neuron = T + 3, T + 3 + len(rests)
    value = np.zeros(len(layer))
    sources, targets, weights = [], [], []
    for row in found:
        target = len(layer) - 1
        if row.goal is not None:
            target = first_neuron + int(np.searchsorted(chosen, _key(row.goal, engine)))
        value[target] = row.value
        rest, rest_weights = _rest_keys(row, engine, chosen)
        keys = _keys(row, engine)
        inside = np.isin(keys, chosen)
        into = [np.arange(first_token, bias), first_rest + np.searchsorted(rests, rest),
                first_neuron + np.searchsorted(chosen, keys[inside])]  # fmt: skip
        by = [row.embedding_T, rest_weights, row.weight_E[inside]]
        sources.append(np.concatenate([[0, 1, bias], *into]))
        weights.append(np.concatenate([[*row.unlisted, row.bias], *by]))
        targets.append(np.full(len(weights[-1]), target))
    source, target_E, weight = (np.concatenate(x) for x in (sources, targets, weights))
    some = weight != 0
    circuit = Circuit(
        kind[order].astype(np.int8), layer[order].astype(np.int32), position[order].astype(np.int32),
        index[order].astype(np.int32), value[order].astype(np.float32), np.zeros(len(layer), np.float32),
        place[source[some]].astype(np.int32), place[target_E[some]].astype(np.int32), weight[some].astype(np.float32),
    )  # fmt: skip
    return replace(circuit, influence_N=influence(circuit).astype(np.float32))


def _rest_keys(row: Row, engine: Engine, chosen: Numbers) -> tuple[Numbers, NDArray[np.float64]]:
    """Remainders of a row by layer and node, with the neurons that are not chosen in them."""
    left = ~np.isin(_keys(row, engine), chosen)
    layers = np.concatenate([row.rest_layer_Q, row.layer_E[left]])
    nodes = np.concatenate([row.rest_node_Q, row.node_E[left]])
    keys, place = np.unique(layers * engine.nodes + nodes, return_inverse=True)
    weights = np.concatenate([row.rest_Q, row.weight_E[left]])
    return keys, np.bincount(place, weights=weights, minlength=len(keys)).astype(np.float64)


def _keys(row: Row, engine: Engine) -> Numbers:
    return (row.layer_E * engine.nodes + row.node_E) * engine.width + row.index_E


def _key(goal: Goal, engine: Engine) -> int:
    assert goal is not None
    return (goal[0] * engine.nodes + goal[1]) * engine.width + goal[2]


def _spot(key: int, engine: Engine) -> Goal:
    layer, rest = divmod(key, engine.nodes * engine.width)
    return layer, *divmod(rest, engine.width)


def _height(goal: Goal, engine: Engine) -> int:
    return engine.layers if goal is None else goal[0]
