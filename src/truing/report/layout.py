"""Where the nodes of a graph stand: segments of the prompt across, layers upwards, the decision on top."""

from __future__ import annotations

import math
from dataclasses import dataclass

from truing.records import Graph, Node

LEFT, TOP = 58.0, 64.0
LAYERS = 580.0
"""Height of all layers together."""
LANE = 56.0
"""Height of the lane of remainders, and of the lane of inputs."""
GAP = 26.0
STAGGER = 15.0
"""Neighbouring layers stand this far apart sideways, so that edges up a column can be told apart."""
COLUMN = 104.0
"""Least width of a segment's column."""
FLOOR, RADIUS = 4.5, 13.0
"""Radius of a neuron that adds nothing by itself, and of the one that adds most."""
APART = 24.0
"""Least distance of two neurons' centres."""
BOX = (76.0, 24.0)
"""Width and height of an input, a remainder and the decision."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node with its centre and, for a neuron, its radius."""

    number: int
    node: Node
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that has a position."""

    width: float
    height: float
    places: tuple[Place, ...]
    columns: tuple[tuple[str, float, float], ...]
    """Segment, left edge, right edge."""
    layers: tuple[tuple[int, float], ...]
    """Layer and its height."""
    rest_y: float
    input_y: float


def layout(graph: Graph, *, largest: float) -> Layout:
    """Positions of all nodes, the same for every graph with the same neurons; `largest` contribution has `RADIUS`.

    Neurons that would overlap move sideways inside their column.
    """
    count = _count(graph)
    offsets = {segment: _offsets(graph, segment, count) for segment in _segments(graph)}
    columns, left = [], LEFT
    for segment, moved in offsets.items():
        half = max([COLUMN / 2 - 6, *(abs(x) + RADIUS + 4 for x, _ in moved.values())])
        columns.append((segment, left, left + 2 * half))
        left += 2 * half + 12
    centre = {segment: (start + end) / 2 for segment, start, end in columns}
    shift = {node: move for moved in offsets.values() for node, move in moved.items()}
    width, rest_y = left + 8, TOP + LAYERS + LANE / 2
    up = {"rest": rest_y, "input": rest_y + LANE, "bias": rest_y + LANE}

    def place(number: int, node: Node) -> Place:
        if node.kind == "output":
            return Place(number, node, (LEFT + width) / 2, GAP, RADIUS)
        dx, dy = shift.get(node.id, (0.0, 0.0))
        y = up[node.kind] if node.kind in up else _height(node.layer, count) + dy
        return Place(number, node, centre[node.segment] + dx, y, _radius(node, largest))

    places = tuple(place(number, node) for number, node in enumerate(graph.nodes))
    layers = tuple((layer, _height(layer, count)) for layer in range(0, count, math.ceil(count / 15)))
    return Layout(width, rest_y + LANE + 54, places, tuple(columns), layers, rest_y, rest_y + LANE)


def name(node: Node) -> str:
    """A node's name in words."""
    if node.kind == "neuron":
        return f"neuron {node.layer}.{node.index} at {node.segment}"
    if node.kind == "output":
        return "decision"
    if node.kind == "bias":
        return "biases and added numbers"
    return f"{'input' if node.kind == 'input' else 'other neurons'}: {node.segment}"


def _segments(graph: Graph) -> list[str]:
    return list(dict.fromkeys([*graph.segments, *(node.segment for node in graph.nodes if node.kind != "output")]))


def _count(graph: Graph) -> int:
    """Number of layers."""
    neurons = (node.layer + 1 for node in graph.nodes if node.kind == "neuron")
    return max([1, *neurons, *(node.layer for node in graph.nodes if node.kind == "output")])


def _height(layer: int, count: int) -> float:
    return TOP + LAYERS * (1 - (layer + 0.5) / count)


def _radius(node: Node, largest: float) -> float:
    """Area in proportion to the absolute contribution, with a floor that can be hit by a finger."""
    share = min(1.0, abs(node.contribution) / largest) if largest else 0.0
    return FLOOR + (RADIUS - FLOOR) * math.sqrt(share)


def _offsets(graph: Graph, segment: str, count: int) -> dict[str, tuple[float, float]]:
    """Moves of a column's neurons by id, sideways and, in the band of a layer that is high enough, up or down."""
    neurons = sorted((n for n in graph.nodes if n.kind == "neuron" and n.segment == segment), key=lambda node: node.id)
    moves = _moves(LAYERS / count)
    settled: dict[str, tuple[float, float]] = {}
    taken: list[tuple[float, float]] = []
    for node in neurons:
        start, y = STAGGER * (node.layer % 3 - 1), _height(node.layer, count)
        free = (m for m in moves if all(math.hypot(start + m[0] - a, y + m[1] - b) >= APART for a, b in taken))
        dx, dy = next(free, (0.0, 0.0))
        settled[node.id] = start + dx, dy
        taken.append((start + dx, y + dy))
    return settled


def _moves(band: float) -> list[tuple[float, float]]:
    """Moves to try, those inside the column's least width first."""
    rows = int(0.4 * band / APART)
    moves = [(6.0 * step, APART * row) for step in range(-60, 61) for row in range(-rows, rows + 1)]
    inside = COLUMN / 2 - STAGGER - RADIUS
    return sorted(moves, key=lambda move: (max(0.0, abs(move[0]) - inside), math.hypot(*move), move))
