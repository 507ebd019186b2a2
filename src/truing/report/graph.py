"""The section on a graph: the effect, the accounts, the causal check, the units, and the same units after the fix."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from truing.records import Claim, Contrast, Design, Graph, Unit
from truing.report.intervals import Chart, Mark, Row, chart
from truing.report.layout import name
from truing.report.numbers import column, small
from truing.report.picture import Picture, picture
from truing.report.pool import Pool, short
from truing.report.scatter import Point, scatter
from truing.stats import agrees

TOP_UNITS = 12
TOP_EDGES = 30
LINES = (0.5, 1.0)
"""Of shares: half of the effect, and all of it."""


@dataclass(frozen=True, slots=True)
class GraphView:
    """One graph as it stands in the page."""

    anchor: str
    title: str
    graph: Graph
    claim: Claim | None
    design: Design | None
    effect: Chart
    closure: str
    picture: Picture
    mediation: tuple[tuple[str, Chart], ...]
    heads: tuple[tuple[str, str], ...]
    neurons: tuple[tuple[str, str], ...]
    nodes: tuple[tuple[str, str, str], ...]
    edges: tuple[tuple[str, str, str], ...]
    left_out_edges: int
    verdict: str
    naive: bool
    """Whether the traced twins are those of the claim's naive contrast."""


def view(graph: Graph, pool: Pool, title: str, *, scale: Graph | None = None) -> GraphView:
    """A graph's view. One that was only read in another model, not patched, has no verdict; `scale` is that model's."""
    names = {node.id: name(node) for node in graph.nodes}
    claim = pool.get(Claim, graph.claim)
    design = pool.get(Design, claim.design) if claim else None
    effect = Row(" minus ".join(graph.twins), graph.effect, "strong")
    strongest = sorted(graph.edges, key=lambda edge: (-abs(edge.weight), edge.source, edge.target))[:TOP_EDGES]
    return GraphView(
        anchor=f"graph-{short(graph.id)}", title=title, graph=graph, claim=claim,
        effect=chart([effect], signed=True, source=f"Source: graph {short(graph.id)}"),
        closure=small(graph.closure_error), picture=picture(graph, title, scale=scale or graph),
        mediation=_mediation(graph), heads=_units(graph, "head"), neurons=_units(graph, "neuron"), nodes=_nodes(graph),
        edges=tuple(
            (names.get(edge.source, edge.source), names.get(edge.target, edge.target), weight)
            for edge, weight in zip(strongest, column(edge.weight for edge in strongest), strict=True)
        ),
        left_out_edges=len(graph.edges) - len(strongest), verdict=graph.verdict if graph.mediated else "",
        design=design, naive=design is not None and _same(graph.twins, design.naive),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """Unit scores of one kind, before and after a fix."""

    kind: str
    plot: Markup
    rows: tuple[tuple[str, str, str], ...]


def changes(before: Graph, after: Graph) -> list[Change]:
    """The units that both graphs have, by kind, with the largest scores before as a table."""
    later = {_key(unit): unit.held for unit in after.units}
    found = []
    for kind in ("head", "neuron"):
        both = [unit for unit in before.units if unit.kind == kind and _key(unit) in later]
        if both:
            points = [Point(unit_name(unit), unit.held, later[_key(unit)]) for unit in both]
            top = sorted(points, key=lambda point: (-abs(point.x), point.name))[:TOP_UNITS]
            rows = tuple(zip((p.name for p in top), column(p.x for p in top), column(p.y for p in top), strict=True))
            found.append(Change(f"{kind}s", scatter(points, across="score before the fix", up="score after"), rows))
    return found


def unit_name(unit: Unit) -> str:
    """A unit's name: kind, layer and index."""
    return f"{unit.kind} {unit.layer}.{unit.index}"


def _same(twins: tuple[str, str], rule: Contrast) -> bool:
    """Whether two cells are those of a contrast, whatever else they settle."""
    return all(
        any(agrees(cell, term) for term in terms) for cell, terms in zip(twins, (rule.plus, rule.minus), strict=True)
    )


def _key(unit: Unit) -> tuple[str, int, int]:
    return unit.kind, unit.layer, unit.index


def _mediation(graph: Graph) -> tuple[tuple[str, Chart], ...]:
    """One chart for each kind and number of units: all choices, what was patched the other way, and how far the chosen
    ones exceed those of other effects.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    back: dict[tuple[str, int], list[Row]] = {}
    gaps: dict[tuple[str, int], list[Row]] = {}
    for one in graph.mediated:
        mark: Mark = "strong" if one.choice == "attribution" else "hollow"
        label = ("by " if one.choice == "attribution" else "") + one.choice
        label += f" ({one.of})" if one.of else ""
        label += f", mean of {one.draws} draws" if one.draws > 1 else ""
        rows = groups.setdefault((one.kind, one.k), [])
        rows.append(Row(label, one.share, mark))
        if one.restored is not None:
            back.setdefault((one.kind, one.k), []).append(Row(f"restored, {label.split(',')[0]}", one.restored, mark))
        for what, gap in (("beyond any other effect", one.beyond), ("restored beyond them", one.beyond_restored)):
            if gap is not None:
                gaps.setdefault((one.kind, one.k), []).append(Row(what, gap, "hollow"))
    source = f"Source: graph {short(graph.id)}"
    return tuple(
        (f"{k} {kind}s", chart([*rows, *back.get((kind, k), ()), *gaps.get((kind, k), ())], lines=LINES, source=source))
        for (kind, k), rows in sorted(groups.items())
    )


def _units(graph: Graph, kind: str) -> tuple[tuple[str, str], ...]:
    some = [unit for unit in graph.units if unit.kind == kind]
    top = sorted(some, key=lambda unit: (-abs(unit.score), unit.layer, unit.index))
    shown = top[:TOP_UNITS]
    return tuple(zip(map(unit_name, shown), column(unit.score for unit in shown), strict=True))


def _nodes(graph: Graph) -> tuple[tuple[str, str, str], ...]:
    nodes = sorted(graph.nodes, key=lambda node: (-abs(node.contribution), node.id))
    values, contributions = column(node.value for node in nodes), column(node.contribution for node in nodes)
    return tuple(zip(map(name, nodes), values, contributions, strict=True))
