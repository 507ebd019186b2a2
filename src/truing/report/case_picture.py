"""The picture of a case: edges below, nodes above, readable without colour and without script."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from truing.report.case_layout import BOX, LEFT, TOKENS, TOP, CaseLayout, Column, Spot, layout
from truing.report.case_nodes import Drawn, flow, label, percent
from truing.report.numbers import number
from truing.report.svg import line, plain, tag, text, upright
from truing.report.text import clip

SHOWN = 140
"""Edges that are visible before a node is chosen."""
NAMED = 12
"""Neurons that carry their name in the picture."""
SHRINK = 0.8
"""How far a wide picture may be made smaller before it scrolls."""
LABELS = 16
"""Layers that are numbered at most."""


@dataclass(frozen=True, slots=True)
class CasePicture:
    """The drawing and what its slider needs."""

    svg: Markup
    shown: int
    least: float
    most: float
    """Smallest and largest influence of what is drawn, the decision aside."""


def picture(drawn: Drawn, title: str) -> CasePicture:
    """Draw a case."""
    placed = layout(drawn)
    at = {spot.node: (number_, spot) for number_, spot in enumerate(placed.spots)}
    edges = tag("g", *reversed(_edges(drawn, at, placed.width)), class_="edges")
    nodes = tag("g", *(_node(drawn, number_, spot) for number_, spot in at.values()), class_="nodes")
    svg = tag(
        "svg", tag("title", title), _ground(drawn, placed), edges, nodes, tag("g", *_names(drawn, placed)),
        class_="network", role="group", viewBox=f"0 0 {plain(placed.width)} {plain(placed.height)}",
        width=round(placed.width * SHRINK),
    )  # fmt: skip
    shares = [float(drawn.circuit.influence_N[node]) for node in drawn.nodes[:-1]]
    return CasePicture(svg, SHOWN, min(shares, default=0.0), max(shares, default=0.0))


def _ground(drawn: Drawn, placed: CaseLayout) -> Markup:
    bottom = placed.lane_y + 18
    parts = [*_segments(drawn, placed, bottom)]
    every = math.ceil(len(placed.bands) / LABELS)
    for layer, y in placed.bands:
        if layer % every == 0:
            parts += [line(LEFT - 4, y, placed.width - 10, y, "grid"), text(str(layer), LEFT - 8, y + 4, anchor="end")]
    parts.append(upright("layer", 14, (TOP + placed.lane_y) / 2))
    parts.append(text("tokens", LEFT - 8, placed.lane_y + 4, anchor="end"))
    for column in placed.columns:
        parts += _token(drawn, column, bottom)
    return tag("g", *parts, class_="ground", aria_hidden="true")


def _token(drawn: Drawn, column: Column, bottom: float) -> list[Markup]:
    said, y = label(drawn.case.tokens[column.position]), bottom + 8
    place = f"translate({plain(column.middle + 3)} {plain(y)}) rotate(-52)"
    parts = [tag("text", said, transform=place, text_anchor="end", class_="token")]
    if column.skipped:
        parts.append(text("⋯", column.left - 10, y - 20))
    return parts


def _segments(drawn: Drawn, placed: CaseLayout, bottom: float) -> list[Markup]:
    """A field behind the tokens of each segment, a dashed one behind continuations, with its name below."""
    parts = []
    for (named, after, _), group in groupby(_runs(drawn, placed.columns), key=lambda run: run[0]):
        columns = [column for _, column in group]
        start, end = columns[0].left, columns[-1].right
        parts.append(
            tag("rect", x=start + 1, y=TOP, width=end - start - 2, height=bottom - TOP, rx=5,
                class_="column after" if after else "column")
        )  # fmt: skip
        said = clip(named, max(2, int((end - start) / 6.6)))
        y = bottom + TOKENS + 8
        parts.append(tag("g", tag("title", named), text(said, (start + end) / 2, y, class_="segment"),
                         line(start + 3, y - 15, end - 3, y - 15, "rule")))  # fmt: skip
    return parts


def _runs(drawn: Drawn, columns: tuple[Column, ...]) -> Iterable[tuple[tuple[str, bool, int], Column]]:
    """Columns with what tells their field from the next: the segment, the side of the prompt's end, the branch."""
    branch, last = 0, -1
    for column in columns:
        if column.position >= drawn.case.prompt and drawn.case.before[column.position] != last:
            branch += 1
        last = column.position
        yield (drawn.case.segments[column.position], column.position >= drawn.case.prompt, branch), column


def _edges(drawn: Drawn, at: dict[int, tuple[int, Spot]], width: float) -> list[Markup]:
    """Strongest first: by how much of the decision's inputs runs through them."""
    circuit = drawn.circuit
    through = flow(circuit)
    largest = max((float(through[edge]) for edge in drawn.edges), default=1.0) or 1.0
    parts = []
    for rank, edge in enumerate(drawn.edges):
        weight = float(circuit.weight_E[edge])
        source, target = (at[int(end[edge])] for end in (circuit.source_E, circuit.target_E))
        kind = f"edge {_sign(weight)}" + (" weak" if rank >= SHOWN else "")
        wide = 0.5 + 4.5 * math.sqrt(min(1.0, float(through[edge]) / largest))
        parts.append(
            tag("path", d=_bend(source[1], target[1], width if target[1].node == drawn.nodes[-1] else 0), class_=kind,
                stroke_width=wide, data_from=str(source[0]), data_to=str(target[0]),
                data_weight=number(weight, signed=True))
        )  # fmt: skip
    return parts


def _bend(source: Spot, target: Spot, width: float) -> str:
    """An S-shaped curve from below the target to above the source. `width`: of the picture, for the decision alone."""
    reach = 0.42 * (source.y - target.y)
    end = target.x
    if width:  # edges arrive all along the box
        end += BOX[0] * 0.88 * ((source.x - LEFT) / (width - LEFT) - 0.5)
    points = ((source.x, source.y), (source.x, source.y - reach), (end, target.y + reach), (end, target.y))
    start, *others = (f"{plain(round(x, 1))} {plain(round(y, 1))}" for x, y in points)
    return f"M{start}C{' '.join(others)}"


def _node(drawn: Drawn, number_: int, spot: Spot) -> Markup:
    node, kind = spot.node, drawn.kind(spot.node)
    title, facts, carries = drawn.title(node), drawn.facts(node), float(drawn.carries_N[node])
    last = node == drawn.nodes[-1]
    return tag(
        "g", tag("title", f"{title}: {facts}"), *_shape(drawn, spot), class_=f"node {kind} {_sign(carries)}",
        tabindex="0" if last else "-1", role="button", aria_pressed="false", aria_label=f"{title}: {facts}",
        data_spot=str(number_), data_name=title, data_facts=facts, data_context=drawn.context(node) or None,
        data_influence=f"{1.0 if last else float(drawn.circuit.influence_N[node]):.6g}",
        data_share=percent(float(drawn.circuit.influence_N[node])), data_x=round(spot.x, 1), data_y=round(spot.y, 1),
        data_rest=_rest(drawn, node) or None,
    )  # fmt: skip


def _rest(drawn: Drawn, node: int) -> str:
    """What is said of edges of a node that are not drawn."""
    parts, circuit = [], drawn.circuit
    for ends, what in ((circuit.target_E, "inputs"), (circuit.source_E, "outputs")):
        edges = ((ends == node) & drawn.hidden_E).nonzero()[0]
        if len(edges):
            total = number(float(circuit.weight_E[edges].sum(dtype="float64")), signed=True)
            parts.append(f"{len(edges)} {what}" + (f", together {total}" if what == "inputs" else ""))
    return "Not drawn: " + "; ".join(parts) if parts else ""


def _shape(drawn: Drawn, spot: Spot) -> list[Markup]:
    """Neurons that carry the decision are circles, those against it diamonds; errors are crossed out."""
    x, y, radius, kind = spot.x, spot.y, spot.radius, drawn.kind(spot.node)
    carries = float(drawn.carries_N[spot.node])
    if kind == "decision":
        value = number(float(drawn.circuit.value_N[spot.node]), signed=True)
        box = tag("rect", x=x - BOX[0] / 2, y=y - BOX[1] / 2, width=BOX[0], height=BOX[1], rx=15)
        return [box, text(f"decision {value} nats/token", x, y + 4)]
    if kind == "neuron" and carries >= 0:
        return [tag("circle", cx=x, cy=y, r=radius)]
    if kind == "neuron":
        reach = radius * math.sqrt(math.pi / 2)  # the same area as the circle
        right, down, left, top = (plain(round(value, 2)) for value in (x + reach, y + reach, x - reach, y - reach))
        return [tag("path", d=f"M{plain(x)} {top}L{right} {plain(y)}L{plain(x)} {down}L{left} {plain(y)}z")]
    half = radius * math.sqrt(math.pi) / 2
    box = tag("rect", x=x - half, y=y - half, width=2 * half, height=2 * half, rx=1.5 if kind == "remainder" else 3)
    parts = [box]
    if kind == "remainder":
        a, b, c, d = (plain(round(value, 2)) for value in (x - half, y - half, x + half, y + half))
        parts.append(tag("path", d=f"M{a} {b}L{c} {d}M{a} {d}L{c} {b}", class_="cross"))
    if drawn.circuit.position_N[spot.node] < 0:
        said = "biases" if kind == "bias" else f"rest{drawn.side(spot.node)}" if kind == "remainder" else ""
        parts.append(text(said, x, y + half + 11, class_="label"))
    return parts


def _names(drawn: Drawn, placed: CaseLayout) -> list[Markup]:
    """Names of the strongest neurons, each above its node where nothing is in the way."""
    circuit = drawn.circuit
    neurons = [spot for spot in placed.spots if drawn.kind(spot.node) == "neuron"]
    taken = [(spot.x, spot.y, spot.radius + 1, spot.radius + 1) for spot in placed.spots[:-1]]
    parts = []
    for spot in sorted(neurons, key=lambda spot: (-float(circuit.influence_N[spot.node]), spot.node))[:NAMED]:
        said = f"{int(circuit.layer_N[spot.node])}.{int(circuit.index_N[spot.node])}"
        half = 3.0 * len(said)
        for dx, dy in ((0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0)):
            x, y = spot.x + dx * (spot.radius + half + 3), spot.y + dy * (spot.radius + 7)
            free = all(abs(x - a) >= half + w or abs(y - b) >= 5 + h for a, b, w, h in taken)
            if free and x - half > LEFT and x + half < placed.width:
                taken.append((x, y, half, 5.0))
                parts.append(text(said, x, y + 3.5, class_="label"))
                break
    return parts


def _sign(value: float) -> str:
    return "pos" if value >= 0 else "neg"
