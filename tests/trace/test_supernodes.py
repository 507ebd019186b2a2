"""Groups of neurons that are planted in a graph."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

from scipy.spatial.distance import cdist

from truing.errors import UsageError
from truing.records import EVERYWHERE, NODE_KINDS, Circuit
from truing.trace.supernodes import profiles, silhouette, supernodes

KIND = {name: number for number, name in enumerate(NODE_KINDS)}
TOKENS = 4


def circuit(edges: dict[tuple[int, int], float], neurons: int, *, layer: tuple[int, ...] = ()) -> Circuit:
    """Four tokens (nodes 0 to 3), neurons (from 4), the decision."""
    nodes = TOKENS + neurons + 1
    kinds = [KIND["embedding"]] * TOKENS + [KIND["neuron"]] * neurons + [KIND["decision"]]
    layers = [-1] * TOKENS + list(layer or [0] * neurons) + [2]
    positions = [*range(TOKENS), *[TOKENS - 1] * neurons, EVERYWHERE]
    sources, targets = zip(*edges, strict=True)
    return Circuit(
        np.array(kinds, np.int8), np.array(layers, np.int32), np.array(positions, np.int32),
        np.array([*range(TOKENS), *range(neurons), EVERYWHERE], np.int32), np.ones(nodes, np.float32),
        np.zeros(nodes, np.float32), np.array(sources, np.int32), np.array(targets, np.int32),
        np.array(list(edges.values()), np.float32),
    )  # fmt: skip


def planted(*, noise: float = 0.05) -> tuple[Circuit, list[set[int]]]:
    """Three groups: from token 0 for the decision, from token 2 for it, from token 2 against it; of several sizes."""
    rng = np.random.default_rng(0)
    rules = [(0, 1.0)] * 5 + [(2, 1.0)] * 3 + [(2, -1.0)] * 4
    order = rng.permutation(len(rules))
    edges: dict[tuple[int, int], float] = {}
    for place, which in enumerate(order):
        source, sign = rules[which]
        strength = rng.uniform(0.1, 30)
        for token in range(TOKENS):
            edges[token, TOKENS + place] = strength * ((token == source) + noise * rng.normal())
        edges[TOKENS + place, TOKENS + len(rules)] = sign * rng.uniform(0.1, 30)
    groups = [{TOKENS + p for p, w in enumerate(order) if rules[w] == rule} for rule in dict.fromkeys(rules)]
    return circuit(edges, len(rules)), groups


def test_planted_groups_are_found_whatever_their_strength() -> None:
    graph, groups = planted()
    found = supernodes(graph, ["You", "are", "Paris", "now"])
    assert [set(one.members) for one in found] == [groups[0], groups[2], groups[1]]  # the largest first
    assert [one.name for one in found] == [
        "You for the decision", "Paris against the decision", "Paris for the decision",
    ]  # fmt: skip
    assert supernodes(graph, ["You", "are", "Paris", "now"]) == found


def test_tokens_of_a_segment_count_together() -> None:
    graph, _ = planted(noise=0.0)
    (into, _) = profiles(graph, ["said", "said", "asked", "asked"])
    assert into.shape[1] == 2
    assert set(map(tuple, into.round(6).tolist())) == {(1.0, 0.0), (0.0, 1.0)}


def test_inputs_are_followed_back_through_neurons() -> None:
    """4 is fed by token 0; 5 by 4 and, less and with the other sign, by token 1."""
    graph = circuit({(0, 4): 2.0, (4, 5): 3.0, (1, 5): -1.0, (5, 6): 1.0}, 2, layer=(0, 1))
    into, out = profiles(graph, list("abcd"))
    np.testing.assert_allclose(into[0], [1, 0, 0, 0])
    np.testing.assert_allclose(into[1], np.array([3, -1, 0, 0]) / np.sqrt(10))
    np.testing.assert_allclose(out, [[0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1]])
    names = [one.name for one in supernodes(graph, list("abcd"), count=2)]
    assert names == ["a to layer 1 at d", "a for the decision"]


def test_the_number_can_be_given_or_a_distance() -> None:
    graph, groups = planted()
    assert len(supernodes(graph, count=2)) == 2
    assert len(supernodes(graph, count=12)) == 12
    assert [set(one.members) for one in supernodes(graph, cut=0.3)] == [groups[0], groups[2], groups[1]]
    assert len(supernodes(graph, cut=2.0)) == 1
    same = supernodes(graph, count=6)
    assert len({one.name for one in same}) == 6  # equal names are told apart
    assert sorted(itertools.chain(*(one.members for one in same))) == list(range(4, 16))


def test_a_silhouette_is_what_it_says() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0], [50.0]])
    group = np.array([0, 0, 1, 1, 2])
    own = [1, 1, 1, 1]
    other = [10.5, 9.5, 9.5, 10.5]
    expected = sum((b - a) / max(a, b) for a, b in zip(own, other, strict=True)) / 5
    assert silhouette(cdist(points, points), group) == pytest.approx(expected)


def test_graphs_that_leave_nothing_to_group() -> None:
    assert supernodes(circuit({(0, 4): 1.0}, 0)) == ()
    one = circuit({(0, 4): 1.0, (4, 5): 1.0}, 1)
    assert [found.members for found in supernodes(one)] == [(4,)]
    alike = circuit({(0, k): 1.0 for k in (4, 5, 6)} | {(k, 7): 1.0 for k in (4, 5, 6)}, 3)
    assert len(supernodes(alike)) == 1
    with pytest.raises(UsageError, match="2 places for a graph of 4 positions"):
        supernodes(one, ["a", "b"])
