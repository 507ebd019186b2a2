"""The picture of a graph: edges below, nodes above, all of it readable without colour and without script."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from truing.records import Edge, Graph
from truing.report.layout import BOX, LEFT, TOP, Layout, Place, layout, name
from truing.report.numbers import number, places
from truing.report.svg import line, plain, tag, text, upright
from truing.report.text import clip

SHOWN = 60
"""Edges that are visible at first."""
LABELLED = 10
"""Neurons that carry their name in the picture."""
SHRINK = 0.9
"""How far a wide picture may be made smaller before it scrolls."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The drawing and what its slider needs."""

    svg: Markup
    edges: int
    shown: int
    unknown: int
    """Edges that name a node which the graph does not have."""


def picture(graph: Graph, title: str, *, scale: Graph) -> Picture:
    """Draw a graph, with sizes and widths on the scale of a graph (its own, or the one that it is compared with)."""
    placed = layout(graph, largest=_largest(node.contribution for node in scale.nodes if node.kind == "neuron"))
    by_id = {place.node.id: place for place in placed.places}
    known = [edge for edge in graph.edges if edge.source in by_id and edge.target in by_id]
    known.sort(key=lambda edge: (-abs(edge.weight), edge.source, edge.target))
    decimals = places(*(node.contribution for node in scale.nodes))
    heaviest = _largest(edge.weight for edge in scale.edges)
    drawn = tag("g", *reversed(_edges(known, by_id, heaviest, decimals)), class_="edges")
    nodes = tag("g", *(_node(place, decimals) for place in placed.places), class_="nodes")
    labels = tag("g", *_labels(placed), class_="labels")
    svg = tag(
        "svg", tag("title", title), _ground(placed), drawn, nodes, labels, class_="network", role="group",
        viewBox=f"0 0 {plain(placed.width)} {plain(placed.height)}", width=round(placed.width * SHRINK),
    )  # fmt: skip
    return Picture(svg, len(known), min(SHOWN, len(known)), len(graph.edges) - len(known))


def _ground(placed: Layout) -> Markup:
    parts = []
    bottom = placed.input_y + 24
    for segment, start, end in placed.columns:
        parts.append(tag("rect", x=start, y=TOP, width=end - start, height=bottom - TOP, rx=6, class_="column"))
        label = clip(segment, int((end - start) / 7))
        parts.append(tag("g", tag("title", segment), text(label, (start + end) / 2, bottom + 18)))
    for layer, y in placed.layers:
        parts += [line(LEFT - 4, y, placed.width - 14, y, "grid"), text(str(layer), LEFT - 10, y + 4, anchor="end")]
    middle = (TOP + placed.rest_y) / 2
    parts.append(upright("layer", 14, middle))
    parts += [
        text(said, LEFT - 8, y + 4, anchor="end") for said, y in (("others", placed.rest_y), ("inputs", placed.input_y))
    ]
    return tag("g", *parts, class_="ground", aria_hidden="true")


def _edges(known: list[Edge], by_id: dict[str, Place], heaviest: float, decimals: int) -> list[Markup]:
    """Strongest first. `data-share`: part of the kept flow that this edge and all stronger ones make up."""
    whole = sum(abs(edge.weight) for edge in known) or 1.0
    drawn, sofar = [], 0.0
    for rank, edge in enumerate(known, start=1):
        sofar += abs(edge.weight)
        source, target = by_id[edge.source], by_id[edge.target]
        kind = "edge " + _sign(edge.weight) + (" weak" if rank > SHOWN else "")
        weight = number(edge.weight, signed=True, decimals=decimals)
        said = f"{name(source.node)} adds {weight} to {name(target.node)}"
        drawn.append(
            tag(
                "path", tag("title", said), d=_bend(source, target), class_=kind,
                stroke_width=0.7 + 6 * min(1.0, abs(edge.weight) / heaviest),
                data_rank=str(rank), data_source=str(source.number), data_target=str(target.number), data_weight=weight,
                data_share=f"{sofar / whole:.0%}",
            )
        )  # fmt: skip
    return drawn


def _bend(source: Place, target: Place) -> str:
    """An S-shaped curve from below the target to above the source."""
    reach = 0.45 * (source.y - target.y)
    end = target.x
    if target.node.kind == "output":  # edges arrive all along the box
        end += max(-BOX[0] * 0.9, min(BOX[0] * 0.9, (source.x - target.x) / 3))
    points = ((source.x, source.y), (source.x, source.y - reach), (end, target.y + reach), (end, target.y))
    start, *others = (f"{plain(round(x, 1))} {plain(round(y, 1))}" for x, y in points)
    return f"M{start}C{' '.join(others)}"


def _node(place: Place, decimals: int) -> Markup:
    node = place.node
    value, contribution = (number(x, signed=True, decimals=decimals) for x in (node.value, node.contribution))
    said = f"{name(node)}: changes by {value} between the twins, adds {contribution} to the decision"
    if node.kind == "output":
        said = f"decision: changes by {value} nats per token between the twins"
    elif node.kind != "neuron":
        said = f"{name(node)}: adds {contribution} to the decision directly"
    return tag(
        "g", tag("title", said), *_shape(place, contribution), class_=f"node {node.kind} {_sign(node.contribution)}",
        tabindex="0" if place.number == 0 else "-1", role="button", aria_pressed="false", aria_label=said,
        data_node=str(place.number), data_name=name(node), data_said=said,
    )  # fmt: skip


def _shape(place: Place, said: str) -> list[Markup]:
    """A neuron that adds is a circle, one that takes away a diamond; boxes carry their number."""
    x, y, radius = place.x, place.y, place.radius
    if place.node.kind == "neuron":
        if place.node.contribution >= 0:
            return [tag("circle", cx=x, cy=y, r=radius)]
        reach = radius * math.sqrt(math.pi / 2)  # the same area as the circle
        right, down, left, top = (plain(value) for value in (x + reach, y + reach, x - reach, y - reach))
        return [tag("path", d=f"M{plain(x)} {top}L{right} {plain(y)}L{plain(x)} {down}L{left} {plain(y)}z")]
    width, height = BOX if place.node.kind != "output" else (BOX[0] + 74, BOX[1] + 6)
    said = f"decision {said}" if place.node.kind == "output" else said
    round_ = 5 if place.node.kind == "rest" else 12
    box = tag("rect", x=x - width / 2, y=y - height / 2, width=width, height=height, rx=round_)
    return [box, text(said, x, y + 4)]


def _labels(placed: Layout) -> list[Markup]:
    """Names of the strongest neurons, each beside its node where there is room; where there is none it is left out."""
    neurons = [place for place in placed.places if place.node.kind == "neuron"]
    taken = [_around(place.x, place.y, place.radius, place.radius) for place in neurons]
    drawn = []
    for place in sorted(neurons, key=lambda place: (-abs(place.node.contribution), place.number))[:LABELLED]:
        said = f"{place.node.layer}.{place.node.index}"
        half = 3.2 * len(said)
        for x, y in _beside(place, half):
            box = _around(x, y, half, 6)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                drawn.append(text(said, x, y + 4, class_="label"))
                break
    return drawn


def _beside(place: Place, half: float) -> list[tuple[float, float]]:
    """Where a label may stand: above, right, left, below."""
    away = place.radius + 8
    across = place.radius + half + 4
    x, y = place.x, place.y
    return [(x, y - away), (x + across, y), (x - across, y), (x, y + away)]


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _largest(values: Iterable[float]) -> float:
    return max(map(abs, values), default=0.0) or 1.0


def _sign(value: float) -> str:
    return "pos" if value >= 0 else "neg"
