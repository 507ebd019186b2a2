"""Groups of neurons of a circuit that are fed alike and feed alike: what a person would draw as one node."""

# N nodes  K neurons  S places (tokens or segments)  G groups

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from truing.errors import UsageError
from truing.records import EVERYWHERE, Circuit

Floats = NDArray[np.float64]
MOST = 20
"""Groups that are tried."""
NEURONS = 4000
"""Distances of more at once would not be small."""


@dataclass(frozen=True, slots=True)
class Supernode:
    """Neurons that go together."""

    name: str
    """Where most of their inputs come from, and what most of their outputs go to."""
    members: tuple[int, ...]
    """Nodes of the circuit."""


def supernodes(
    circuit: Circuit, places: Sequence[str] = (), *, count: int | None = None, cut: float | None = None
) -> tuple[Supernode, ...]:
    """Neurons grouped by their attribution profile: what each is given from the tokens of every place, and what it adds
    to every target; both signed, each of length 1, so that strong and weak neurons compare. The largest group first.

    `places`: a label for every position (a token, a segment); inputs of those that share one are added up. Average
    linkage on cosine distance; as many groups as `count` says, or as are farther apart than `cut` (0 to 2), or as have
    the best silhouette (Rousseeuw 1987), one where none is above 0. The same circuit always gives the same groups.
    """
    neurons = circuit.of("neuron").nonzero()[0]
    if len(neurons) > NEURONS:
        raise UsageError(f"{len(neurons)} neurons are too many to group (at most {NEURONS}); prune the graph first")
    if not len(neurons):
        return ()
    names = _names(circuit, places)
    into_KS, out_KN = profiles(circuit, names)
    group_K = _grouped(_distances(into_KS, out_KN), count, cut)
    found = [np.flatnonzero(group_K == g) for g in range(group_K.max() + 1)]
    found.sort(key=lambda members: (-len(members), int(members[0])))
    labels = list(dict.fromkeys(names))
    said = [_name(circuit, into_KS[members].sum(0), out_KN[members].sum(0), labels, names) for members in found]
    return tuple(
        Supernode(name if said.count(name) == 1 else f"{name} ({1 + said[:at].count(name)})",
                  tuple(neurons[members].tolist()))
        for at, (name, members) in enumerate(zip(said, found, strict=True))
    )  # fmt: skip


def profiles(circuit: Circuit, names: Sequence[str]) -> tuple[Floats, Floats]:
    """For each neuron its inputs by place, (K, S), and what it adds to every node, (K, N); of length 1 where there are
    any. `names`: the place of every position.

    Inputs are traced back to tokens along all paths, each node handing on what it is given in proportion.
    """
    neurons = circuit.of("neuron").nonzero()[0]
    labels = {name: at for at, name in enumerate(dict.fromkeys(names))}
    share_NS = np.zeros((len(circuit), len(labels)))
    tokens = circuit.of("embedding")
    for node in tokens.nonzero()[0]:
        share_NS[node, labels[names[circuit.position_N[node]]]] = 1.0
    size_N = np.bincount(circuit.target_E, weights=np.abs(circuit.weight_E), minlength=len(circuit))
    order = np.argsort(circuit.target_E, kind="stable")
    targets, starts = np.unique(circuit.target_E[order], return_index=True)
    # Sources stand before what they add to, so one walk is enough.
    for target, edges in zip(targets, np.split(order, starts[1:]), strict=True):
        weights = circuit.weight_E[edges].astype(np.float64) / max(size_N[target], 1e-30)
        share_NS[target] = weights @ share_NS[circuit.source_E[edges]]
    out_KN = np.zeros((len(neurons), len(circuit)))
    row = np.full(len(circuit), EVERYWHERE)
    row[neurons] = np.arange(len(neurons))
    from_neuron = row[circuit.source_E] >= 0
    np.add.at(
        out_KN, (row[circuit.source_E[from_neuron]], circuit.target_E[from_neuron]), circuit.weight_E[from_neuron]
    )
    return _unit(share_NS[neurons]), _unit(out_KN)


def silhouette(distance_KK: Floats, group_K: NDArray[np.int64]) -> float:
    """Mean over neurons of how much nearer the own group is than the next: -1 to 1; 0 for one that is alone."""
    groups = int(group_K.max()) + 1
    member_KG = (group_K[:, None] == np.arange(groups)).astype(np.float64)
    size_G = member_KG.sum(0)
    sums_KG = distance_KK @ member_KG
    rows = np.arange(len(group_K))
    own = sums_KG[rows, group_K] / np.maximum(size_G[group_K] - 1, 1)
    other_KG = sums_KG / size_G
    other_KG[rows, group_K] = np.inf
    nearest = other_KG.min(1)
    score = (nearest - own) / np.maximum(np.maximum(nearest, own), 1e-30)
    return float(np.where(size_G[group_K] > 1, score, 0.0).mean())


def _grouped(distance_KK: Floats, count: int | None, cut: float | None) -> NDArray[np.int64]:
    """The group of each neuron, from 0."""
    if len(distance_KK) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = linkage(squareform(distance_KK, checks=False), "average")

    def groups(number: int) -> NDArray[np.int64]:
        return np.asarray(fcluster(tree, number, "maxclust"), dtype=np.int64) - 1

    if cut is not None:
        return np.asarray(fcluster(tree, cut, "distance"), dtype=np.int64) - 1
    if count is not None:
        return groups(max(1, count))
    tried = [groups(number) for number in range(2, min(MOST, len(distance_KK) - 1) + 1)]
    scored = [(silhouette(distance_KK, one), -number) for number, one in enumerate(tried) if one.max() > 0]
    best = max(scored, default=(0.0, 0))
    return tried[-best[1]] if best[0] > 0 else np.zeros(len(distance_KK), dtype=np.int64)


def _distances(into_KS: Floats, out_KN: Floats) -> Floats:
    profile = _unit(np.concatenate([into_KS, out_KN], axis=1))
    distance = np.clip(1 - profile @ profile.T, 0, 2)
    np.fill_diagonal(distance, 0)
    return np.asarray((distance + distance.T) / 2)


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30))


def _names(circuit: Circuit, places: Sequence[str]) -> list[str]:
    """A label for each position."""
    positions = int(circuit.position_N.max()) + 1
    if places and len(places) < positions:
        raise UsageError(f"{len(places)} places for a graph of {positions} positions; give one for each")
    return list(places) or [str(position) for position in range(positions)]


def _name(circuit: Circuit, into_S: Floats, out_N: Floats, labels: Sequence[str], names: Sequence[str]) -> str:
    source = labels[int(np.abs(into_S).argmax())] if np.abs(into_S).max() > 0 else "nothing listed"
    if not np.abs(out_N).max():
        return f"{source} to nothing listed"
    target = int(np.abs(out_N).argmax())
    if target == len(circuit) - 1:
        sign = "for" if out_N[target] > 0 else "against"
        return f"{source} {sign} the decision"
    return f"{source} to layer {circuit.layer_N[target]} at {names[circuit.position_N[target]]}"


__all__ = ["Supernode", "profiles", "silhouette", "supernodes"]
