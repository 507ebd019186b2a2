"""Where the nodes of a case stand: tokens along, layers up, the decision on top."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from truing.report.case_nodes import Drawn

LEFT, TOP = 54.0, 66.0
LAYERS = 400.0
"""Height of all layers where none needs more."""
PITCH = 17.0
"""Distance of neighbouring nodes."""
FLOOR, RADIUS = 3.2, 8.2
"""Least radius of a node, and that of the one through which most runs."""
DECADES = 4
"""Between them: a token or a remainder may have a thousand times the influence of a neuron."""
COLUMN, GUTTER, BREAK = 13.0, 58.0, 20.0
"""Least width of a token's column; width of the column of what has no token; room where tokens are left out."""
TOKENS = 92.0
"""Height of the names of tokens."""
BOX = (216.0, 32.0)
"""Width and height of the decision."""
EVERYWHERE = -1


@dataclass(frozen=True, slots=True)
class Spot:
    """A node with its centre and radius."""

    node: int
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Column:
    """A token with its left and right edge, and how many tokens are left out before it."""

    position: int
    left: float
    right: float
    skipped: int

    @property
    def middle(self) -> float:
        """Its centre."""
        return (self.left + self.right) / 2


@dataclass(frozen=True, slots=True)
class CaseLayout:
    """Everything that has a position."""

    width: float
    height: float
    spots: tuple[Spot, ...]
    """In the order of `Drawn.nodes`."""
    columns: tuple[Column, ...]
    bands: tuple[tuple[int, float], ...]
    """Layers with their heights."""
    lane_y: float
    """Height of the lane of tokens."""


Cell = tuple[int, int]
"""Position and layer; -1 for what has none, and for the lane of tokens."""


def layout(drawn: Drawn) -> CaseLayout:
    """Positions of all drawn nodes. A column is as wide, and a layer as high, as what stands in it needs."""
    cells = _cells(drawn)
    columns, right = _columns(drawn, cells)
    bands, lane_y = _bands(drawn.case.layers, cells)
    width = max(right + 10, LEFT + BOX[0] + 24)
    middle = {column.position: column.middle for column in columns} | {EVERYWHERE: LEFT + GUTTER / 2}
    placed = {drawn.nodes[-1]: Spot(drawn.nodes[-1], _above(drawn, columns, width), TOP / 2 - 6, RADIUS)}
    largest = max((float(drawn.circuit.influence_N[node]) for node in drawn.nodes[:-1]), default=1.0)
    for (position, layer), nodes in cells.items():
        y = bands.get(layer, lane_y)
        for node, dx, dy in _grid(nodes):
            radius = _radius(float(drawn.circuit.influence_N[node]), largest)
            placed[node] = Spot(node, middle[position] + dx + _stagger(layer), y + dy, radius)
    spots = tuple(placed[node] for node in drawn.nodes)
    return CaseLayout(width, lane_y + TOKENS + 34, spots, columns, tuple(bands.items()), lane_y)


def _radius(influence: float, largest: float) -> float:
    """On a logarithmic scale, the same for all kinds of nodes."""
    if influence <= 0:
        return FLOOR
    return FLOOR + (RADIUS - FLOOR) * max(0.0, 1 + math.log10(influence / largest) / DECADES)


def _above(drawn: Drawn, columns: tuple[Column, ...], width: float) -> float:
    """Where the decision stands: above the continuations that it is read from, inside the picture."""
    read = [column.middle for column in columns if column.position >= drawn.case.prompt - 1]
    middle = (min(read) + max(read)) / 2 if read else (LEFT + width) / 2
    return max(min(middle, width - BOX[0] / 2 - 12), min(LEFT + BOX[0] / 2, width / 2))


def _cells(drawn: Drawn) -> dict[Cell, list[int]]:
    """Nodes by place, those with the largest influence first."""
    found: dict[Cell, list[int]] = {}
    for node in sorted(drawn.nodes[:-1], key=lambda node: (-float(drawn.circuit.influence_N[node]), node)):
        inside = drawn.kind(node) in ("neuron", "remainder")
        layer = int(drawn.circuit.layer_N[node]) if inside else EVERYWHERE
        layer = min(layer, drawn.case.layers - 1)
        found.setdefault((int(drawn.circuit.position_N[node]), layer), []).append(node)
    return found


def _across(count: int) -> int:
    return min(4, math.ceil(math.sqrt(count)))


def _grid(nodes: list[int]) -> Iterator[tuple[int, float, float]]:
    """Nodes of a cell around its centre."""
    across = _across(len(nodes))
    rows = math.ceil(len(nodes) / across)
    for place, node in enumerate(nodes):
        row, step = divmod(place, across)
        there = min(across, len(nodes) - row * across)
        yield node, PITCH * (step - (there - 1) / 2), PITCH * (row - (rows - 1) / 2)


def _stagger(layer: int) -> float:
    """Neighbouring layers stand apart sideways, so that edges up a column can be told apart."""
    return 0.0 if layer == EVERYWHERE else 2.5 * (layer % 3 - 1)


def _columns(drawn: Drawn, cells: dict[Cell, list[int]]) -> tuple[tuple[Column, ...], float]:
    most: dict[int, int] = {}
    for (position, _), nodes in cells.items():
        most[position] = max(most.get(position, 0), _across(len(nodes)))
    left, last = LEFT + max(GUTTER, most.get(EVERYWHERE, 0) * PITCH + 10), -1
    found: list[Column] = []
    case = drawn.case
    for position in drawn.columns:
        skipped = position - last - 1
        apart = bool(found) and not skipped and case.segments[position] != case.segments[last]
        turned = bool(found) and case.before[position] != last
        left += BREAK if skipped else 9.0 if apart or turned else 0.0
        right = left + max(COLUMN, most.get(position, 0) * PITCH + 7)
        found.append(Column(position, left, right, skipped))
        left, last = right, position
    return tuple(found), left


def _bands(layers: int, cells: dict[Cell, list[int]]) -> tuple[dict[int, float], float]:
    """The height of each layer's middle, and that of the lane of tokens."""
    rows: dict[int, int] = {}
    for (_, layer), nodes in cells.items():
        rows[layer] = max(rows.get(layer, 0), math.ceil(len(nodes) / _across(len(nodes))))
    least = min(84.0, max(3.0, LAYERS / layers))
    found: dict[int, float] = {}
    y = TOP
    for layer in reversed(range(layers)):
        high = max(least, rows.get(layer, 0) * PITCH + 4 if layer in rows else 0.0)
        found[layer] = y + high / 2
        y += high
    return found, y + max(26.0, rows.get(EVERYWHERE, 1) * PITCH / 2 + 14)
