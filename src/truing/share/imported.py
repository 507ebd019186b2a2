"""Attribution graphs in the JSON of Neuronpedia and circuit-tracer, from anywhere, as arrays.

Hostile until parsed: sizes are bounded, every number is finite, every link joins two nodes that are there, and links
never lead back. Ids are compared, never taken apart: in files of this kind two kinds of node can have ids that look
alike.
"""

# N nodes  E edges

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truing.errors import RecordError
from truing.records import ADDS, EVERYWHERE, NODE_KINDS, TAKES, Circuit, NodeKind
from truing.share.exported import MOST_BYTES, PLACEHOLDER, cantor
from truing.text import short

KINDS: dict[str, NodeKind] = {
    "embedding": "embedding", "bias": "bias", "cross layer transcoder": "neuron", "mlp neuron": "neuron",
    "lorsa": "neuron", "mlp reconstruction error": "remainder", "lorsa error": "remainder", "logit": "decision",
}  # fmt: skip
MOST_NODES, MOST_LINKS = 200_000, 2_000_000
MOST_GROUPS, MOST_MEMBERS = 1000, 10_000
MOST_LAYER, MOST_INDEX, MOST_WEIGHT = 4096, 2**31 - 1, 3e38


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Node(_Part):
    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    activation: float | None = None
    token_prob: float | None = 0.0
    # Truing's own keys.
    unit: str = ""
    everywhere: bool = False
    side: Literal[-1, 0, 1] = 0
    """Of a remainder of all layers that holds what adds (1) or what takes away (-1) alone."""
    token_id: int = EVERYWHERE
    share: float | None = None


class _Link(_Part):
    source: str
    target: str
    weight: float


class _Ours(_Part):
    layers: int | None = None


class _Metadata(_Part):
    scan: str
    prompt: str
    prompt_tokens: list[str]
    schema_version: int | None = None
    truing: _Ours = _Ours()


class _Query(_Part):
    supernodes: Annotated[
        list[Annotated[list[str], Field(min_length=1, max_length=1 + MOST_MEMBERS)]], Field(max_length=MOST_GROUPS)
    ] = []


class _File(_Part):
    metadata: _Metadata
    qParams: _Query = _Query()
    nodes: Annotated[list[_Node], Field(max_length=MOST_NODES)]
    links: Annotated[list[_Link], Field(max_length=MOST_LINKS)]


@dataclass(frozen=True)
class Imported:
    """A graph from elsewhere. What its nodes' inputs add up to need not be their values: biases are often no nodes."""

    circuit: Circuit
    tokens: tuple[str, ...]
    prompt: str
    scan: str
    """The model, as the file names it."""
    ids: tuple[str, ...]
    """The file's id of each node; that of the decision is "", where it is made of several logits."""
    logits: tuple[tuple[str, float], ...]
    """The logits that the decision is made of, with their weights, which add up to 1."""
    supernodes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Nodes that the file draws as one, with their name; those that are not in the graph are left out."""


def from_neuronpedia(data: bytes, *, logit: str = "") -> Imported:
    """A graph from the bytes of such a file. RecordError names what is wrong.

    A graph here has one decision: the mean of the file's logits, weighted by their probabilities, or the one whose id
    is `logit`. Influence is Truing's own where the file has it, else computed anew: of it
    the file holds no more than its order.
    """
    file = _parsed(data)
    nodes = _checked(file)
    parts = _decision(nodes, logit)
    number = {node.node_id: place for place, node in enumerate(nodes)}
    weights = _weights(file, nodes, number, parts)
    order = _ordered(len(nodes), weights, [place for place, node in enumerate(nodes) if node.feature_type != "logit"])
    circuit = _circuit([nodes[place] for place in order], _renamed(weights, order), file)
    ids = (*(nodes[place].node_id for place in order), nodes[next(iter(parts))].node_id if len(parts) == 1 else "")
    logits = tuple((nodes[place].node_id, share) for place, share in parts.items())
    said = file.metadata
    groups = _groups(file.qParams, {name: place for place, name in enumerate(ids[:-1])})
    return Imported(circuit, tuple(said.prompt_tokens), said.prompt, said.scan, ids, logits, groups)


def _groups(query: _Query, place: Mapping[str, int]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Supernodes with nodes in place of ids. Viewers keep ids of nodes that were pruned since."""
    found = (
        (name, tuple(place[one] for one in dict.fromkeys(some) if one in place)) for name, *some in query.supernodes
    )
    return tuple((name, nodes) for name, nodes in found if nodes)


def _parsed(data: bytes) -> _File:
    if len(data) > MOST_BYTES:
        raise RecordError(f"the graph has {len(data)} bytes; at most {MOST_BYTES} are read. Prune it further")
    try:
        return _File.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise RecordError(f"no attribution graph: {short(where)}: {short(first['msg'])}{more}") from error


def _checked(file: _File) -> list[_Node]:
    """The nodes; those of one kind only that a graph can hold, at places that there are, with ids of their own."""
    nodes = [node for node in file.nodes if node.unit != PLACEHOLDER]
    if twice := [name for name, count in Counter(node.node_id for node in nodes).items() if count > 1]:
        raise RecordError(f"{len(twice)} ids of nodes stand twice, {short(repr(twice[0]))} among them: links to them"
                          " mean either")  # fmt: skip
    count = len(file.metadata.prompt_tokens)
    for node in nodes:
        if node.feature_type not in KINDS:
            raise RecordError(f"node {short(repr(node.node_id))} is a {short(repr(node.feature_type))}; known:"
                              f" {', '.join(KINDS)}")  # fmt: skip
        if not 0 <= node.ctx_idx < max(1, count):
            raise RecordError(f"node {short(repr(node.node_id))} is at token {short(node.ctx_idx, length=20)}; the"
                              f" prompt has {count}")  # fmt: skip
    return nodes


def _decision(nodes: Sequence[_Node], logit: str) -> dict[int, float]:
    """The logits that are explained, with their weights."""
    found = {place: node for place, node in enumerate(nodes) if node.feature_type == "logit"}
    if logit:
        found = {place: node for place, node in found.items() if node.node_id == logit}
    if not found:
        raise RecordError(f"the graph has no logit {short(repr(logit))}" if logit else "the graph has no logit")
    chances = [max(0.0, node.token_prob or 0.0) for node in found.values()]
    if not 0 < (whole := sum(chances)) < math.inf:
        return dict.fromkeys(found, 1 / len(found))
    return {place: chance / whole for place, chance in zip(found, chances, strict=True)}


Weights = dict[tuple[int, int], float]
"""By source and target; the decision is -1."""


def _weights(file: _File, nodes: Sequence[_Node], number: Mapping[str, int], parts: Mapping[int, float]) -> Weights:
    """Links between nodes; those to logits are links to the decision, and those to logits left out are dropped."""
    found: Weights = {}
    skipped = {node.node_id for node in file.nodes if node.unit == PLACEHOLDER}
    for link in file.links:
        if lost := [end for end in (link.source, link.target) if end not in number and end not in skipped]:
            raise RecordError(f"a link names the node {short(repr(lost[0]))}, which the graph does not have")
        if link.source in skipped or link.target in skipped:
            continue
        source, target = number[link.source], number[link.target]
        if nodes[source].feature_type == "logit":
            raise RecordError(f"a link leads on from the logit {short(repr(link.source))}")
        if nodes[target].feature_type == "logit":
            if target not in parts:
                continue
            key, weight = (source, -1), link.weight * parts[target]
        else:
            key, weight = (source, target), link.weight
        found[key] = found.get(key, 0.0) + weight
        if not abs(found[key]) < MOST_WEIGHT:
            raise RecordError(f"links from {short(repr(link.source))} have a weight of {found[key]:.3g}, too large")
    return found


def _ordered(count: int, weights: Weights, places: Sequence[int]) -> list[int]:
    """Nodes but logits, each source before its targets, else in the file's order. RecordError in a circle."""
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for source, target in weights:
        if target >= 0:
            after[source].append(target)
            missing[target] += 1
    ready = [place for place in places if not missing[place]]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for target in after[order[-1]]:
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    if len(order) < len(places):
        raise RecordError(f"links lead in a circle among {len(places) - len(order)} nodes; in one pass none can")
    return order


def _renamed(weights: Weights, order: Sequence[int]) -> list[tuple[int, int, float]]:
    """Edges by the places in the new order, by target and then by source."""
    place = {old: new for new, old in enumerate(order)} | {-1: len(order)}
    edges = [(place[source], place[target], weight) for (source, target), weight in weights.items()]
    return sorted(edges, key=lambda edge: (edge[1], edge[0]))


def _circuit(nodes: Sequence[_Node], edges: Sequence[tuple[int, int, float]], file: _File) -> Circuit:
    kinds = [KINDS[node.feature_type] for node in nodes]
    layers = [_layer(node, kind) for node, kind in zip(nodes, kinds, strict=True)]
    height = file.metadata.truing.layers
    if height is None or not max([-1, *layers]) < height <= MOST_LAYER:
        height = max([0, *(layer + 1 for layer in layers)])
    paired = file.metadata.schema_version == 1
    index = [_index(node, kind, layer, paired) for node, kind, layer in zip(nodes, kinds, layers, strict=True)]
    position = [EVERYWHERE if node.everywhere else node.ctx_idx for node in nodes]
    source, target, weight = (np.array(part) for part in zip(*edges, strict=True)) if edges else (np.array([]),) * 3
    total = np.bincount(target.astype(np.int64), weights=weight, minlength=len(nodes) + 1)
    value = [
        node.activation
        if kind == "neuron" and node.activation is not None
        else float(total[place]) * (kind == "neuron")
        for place, (node, kind) in enumerate(zip(nodes, kinds, strict=True))
    ]
    if not all(abs(one) < MOST_WEIGHT for one in (*value, total[-1])):
        raise RecordError("an activation, or the sum of a node's links, is too large")
    circuit = Circuit(
        np.array([NODE_KINDS.index(kind) for kind in (*kinds, "decision")], np.int8),
        np.array([*layers, height], np.int32), np.array([*position, EVERYWHERE], np.int32),
        np.array([*index, EVERYWHERE], np.int32), np.array([*value, total[-1]], np.float32),
        np.zeros(len(nodes) + 1, np.float32), source.astype(np.int32), target.astype(np.int32),
        weight.astype(np.float32),
    )  # fmt: skip
    shares = [node.share for node in nodes]
    if shares and all(share is not None and 0 <= share <= 1 for share in shares):
        return replace(circuit, influence_N=np.array([*shares, 1.0], np.float32))
    return replace(circuit, influence_N=_influence(circuit).astype(np.float32))


def _layer(node: _Node, kind: NodeKind) -> int:
    if kind == "embedding" or node.everywhere:
        return EVERYWHERE
    said = str(node.layer)
    if not (said.isascii() and said.isdigit() and len(said) < 6 and int(said) < MOST_LAYER):
        raise RecordError(f"node {short(repr(node.node_id))} has the layer {short(repr(node.layer))}; 0 to"
                          f" {MOST_LAYER - 1} are read")  # fmt: skip
    return int(said)


def _index(node: _Node, kind: NodeKind, layer: int, paired: bool) -> int:
    """Which neuron or feature of its layer, or which token."""
    if kind == "embedding":
        index = node.token_id
    elif kind == "remainder" and node.everywhere:
        return {1: ADDS, -1: TAKES}.get(node.side, EVERYWHERE)
    elif kind != "neuron" or node.feature is None:
        return EVERYWHERE
    else:
        index = _unpaired(node.feature, layer) if paired else node.feature
    if not EVERYWHERE <= index <= MOST_INDEX:
        raise RecordError(f"node {short(repr(node.node_id))} has the feature {short(index, length=20)}; at most"
                          f" {MOST_INDEX} is read")  # fmt: skip
    return index


def _unpaired(feature: int, layer: int) -> int:
    """The index, where the number is that of a pair with this layer; else the number as it is."""
    if feature < 0:
        return feature
    diagonal = (math.isqrt(8 * feature + 1) - 1) // 2
    index = feature - diagonal * (diagonal + 1) // 2
    return index if cantor(layer, index) == feature else feature


def _influence(circuit: Circuit) -> NDArray[np.float64]:
    """The share of the decision's inputs, direct and indirect, that runs through each node, shape (N,)."""
    size = np.abs(circuit.weight_E.astype(np.float64))
    total = np.bincount(circuit.target_E, weights=size, minlength=len(circuit))
    share_E = size / np.maximum(total, 1e-30)[circuit.target_E]
    found = np.zeros(len(circuit))
    found[-1] = 1.0
    # Edges are in the order of their targets.
    starts = np.searchsorted(circuit.target_E, np.arange(len(circuit) + 1))
    for target in reversed(range(len(circuit))):
        edges = slice(starts[target], starts[target + 1])
        np.add.at(found, circuit.source_E[edges], found[target] * share_E[edges])
    return found
