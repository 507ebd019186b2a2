"""The section on single cases: the attribution graph of one decision, its accounts, and its causal checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truing.errors import DataError
from truing.records import Blob, CaseGraph, Circuit, Claim, Target, check_size, circuit_of
from truing.report.case_curves import Kept, kept
from truing.report.case_lens import Forming, forming
from truing.report.case_named import Group, Note, groups, note
from truing.report.case_nodes import Drawn, drawn, percent, shown, strongest
from truing.report.case_picture import CasePicture, picture
from truing.report.case_text import Line, lines
from truing.report.intervals import Chart, by_unit, named
from truing.report.numbers import number, small
from truing.report.pool import Pool, short

Blobs = Callable[[Blob], bytes]
"""The bytes of a file that a record names. DataError where they are not to be had."""
MOST = 16
"""Cases that are drawn in one page."""
TOP_EDGES, EACH_WAY = 40, 3


@dataclass(frozen=True, slots=True)
class Entry:
    """A node in the table: what it is, and the strongest of what adds to it and of what it adds to."""

    name: str
    context: str
    facts: str
    inputs: str
    outputs: str
    spot: int
    """Its number in the picture."""
    note: Note | None
    """What it stands for."""


@dataclass(frozen=True, slots=True)
class GraphOf:
    """What is drawn of a case, and the same in words."""

    picture: CasePicture
    columns: int
    """Tokens that have a column."""
    nodes: int
    all_nodes: int
    edges: int
    all_edges: int
    least: str
    lines: tuple[Line, ...]
    entries: tuple[Entry, ...]
    strongest: tuple[tuple[str, str, str], ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class CaseView:
    """One case as it stands in the page."""

    anchor: str
    title: str
    case: CaseGraph
    target: str
    claim: Claim | None
    actions: str
    alternatives: str
    facts: tuple[tuple[str, str, str], ...]
    """Name, value, and what it means."""
    graph: GraphOf | None
    missing: str
    """Why nothing is drawn; empty where it is."""
    checks: tuple[Chart, ...]
    curves: tuple[Kept, ...]
    lens: Forming | None
    """The decision read after each layer, where it was."""


def views(pool: Pool, blobs: Blobs | None) -> tuple[list[CaseView], int]:
    """The cases that are drawn, and how many more there are. One that was labelled stands for what it was before."""
    every = pool.all(CaseGraph)
    bare = {case.id: case.unlabelled() for case in every}
    before = {one for case in every for one in case.parents if one in bare and bare[one] == bare[case.id]}
    found = [case for case in every if case.id not in before]
    return [view(case, pool, blobs) for case in found[:MOST]], max(0, len(found) - MOST)


def view(case: CaseGraph, pool: Pool, blobs: Blobs | None) -> CaseView:
    """A case's view. Where its graph cannot be read, the view says why, and everything else stands."""
    circuit = _circuit(case, blobs)
    claim, target = pool.get(Claim, case.claim), pool.get(Target, case.target)
    title = f"One case: {_quoted(case.actions)} against {_quoted(case.alternatives)}"
    return CaseView(
        anchor=f"case-{short(case.id)}", title=title, case=case,
        target=target.name if target else f"Target {short(case.target)}",
        claim=claim if claim and not claim.effect else None,
        actions=_quoted(case.actions, 400), alternatives=_quoted(case.alternatives, 400), facts=_facts(case),
        graph=None if isinstance(circuit, str) else _graph(case, circuit, title),
        missing=circuit if isinstance(circuit, str) else "",
        checks=tuple(by_unit(named(case.checks), source=f"Source: case {short(case.id)}")), curves=kept(case.curves),
        lens=forming(case, pool),
    )  # fmt: skip


def _circuit(case: CaseGraph, blobs: Blobs | None) -> Circuit | str:
    """The graph, or why there is none."""
    if blobs is None:
        return "its file was not at hand when this page was made"
    try:
        check_size(case)
        return circuit_of(case, blobs(case.graph))
    except DataError as error:
        return str(error)


def _facts(case: CaseGraph) -> tuple[tuple[str, str, str], ...]:
    nodes, edges = case.kept
    return (
        ("Decision", f"{number(case.value, signed=True)} nats/token", "the model’s leaning here"),
        ("Accounted for", f"{number(case.accounted, signed=True)} nats/token",
         "what contributions add up to: the decision, and the entropies of the frozen distributions"),
        ("By turn", "; ".join(f"{shown(turn, 40)} {number(total, signed=True)}" for turn, total in case.by_turn())
         or "not recorded", "what each adds to that by all paths, nats per token"),
        ("Closure error", small(case.closure_error), "largest gap between a node and its inputs, over their sizes"),
        ("Replacement", number(case.replacement),
         "share of the influence that ends in tokens and biases, not in errors; before pruning"),
        ("Completeness", number(case.completeness), "share of nodes’ inputs that are no errors; before pruning"),
        (f"{case.unit.capitalize()}s", f"{case.selected:,} of {case.candidates:,}",
         f"listed one by one; then pruned to {percent(nodes)} of the influence of nodes and {percent(edges)} of that of"
         " edges"),
        ("Rules", case.rule, f"linear; nodes are {case.basis}; {case.layers} layers, {len(case.tokens):,} tokens"),
    )  # fmt: skip


def _graph(case: CaseGraph, circuit: Circuit, title: str) -> GraphOf:
    some = drawn(case, circuit)
    drawing = picture(some, title)
    order = sorted(some.nodes, key=lambda node: (-float(circuit.influence_N[node]), node))
    return GraphOf(
        picture=drawing, columns=len(some.columns), nodes=len(some.nodes), all_nodes=len(circuit),
        edges=len(some.edges), all_edges=len(circuit.weight_E), least=percent(drawing.least), lines=lines(some),
        entries=tuple(_entry(some, node) for node in order),
        strongest=tuple(
            (some.title(int(circuit.source_E[e])), some.title(int(circuit.target_E[e])), _weight(circuit, e))
            for e in some.edges[:TOP_EDGES]
        ),
        groups=groups(some),
    )  # fmt: skip


def _entry(some: Drawn, node: int) -> Entry:
    circuit = some.circuit

    def said(ends: str, others: str) -> str:
        here = strongest(some, (getattr(circuit, ends) == node).nonzero()[0], EACH_WAY)
        return "; ".join(f"{_weight(circuit, e)} {some.title(int(getattr(circuit, others)[e]))}" for e in here)

    return Entry(
        some.title(node), some.context(node), some.facts(node), said("target_E", "source_E"),
        said("source_E", "target_E"), some.nodes.index(node), note(some, node),
    )  # fmt: skip


def _weight(circuit: Circuit, edge: int) -> str:
    return number(float(circuit.weight_E[edge]), signed=True)


def _quoted(texts: Sequence[str], most: int = 60) -> str:
    some = [f"“{shown(text, most)}”" for text in texts[:4]]
    return ", ".join(some) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")
