"""What is said of a case's neurons: their labels with scores and contexts, and the supernodes that they are in."""

from __future__ import annotations

from dataclasses import dataclass

from truing.records import Labelled, Place, Quantity, Unmeasured
from truing.records.neurons import CALLED
from truing.report.case_nodes import Drawn, shown
from truing.report.numbers import full, interval, number

WORDS = 5
"""Tokens, and as many pairs, of a label that are shown."""
MEMBERS = 200
"""Neurons of a supernode that are named."""
BEFORE, AFTER = 36, 24
"""Characters of a context before its token, and after."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A context: what stands before, the token, what follows, and the activation there."""

    before: str
    token: str
    after: str
    activation: str


@dataclass(frozen=True, slots=True)
class Note:
    """What one neuron stands for, as far as it is known."""

    label: str
    score: str
    shuffled: str
    """Over the same tokens, so that they are counted once."""
    side: str
    """Which contexts are shown: those on the side of 0 that the neuron is on here."""
    places: tuple[Spoken, ...]
    group: str
    name: str = ""
    """What a target that was asked calls it, and whether that tells its places from others."""


@dataclass(frozen=True, slots=True)
class Group:
    """A supernode: its members, and which of the drawn nodes they are."""

    name: str
    spots: str
    """Numbers of drawn nodes, for the script."""
    count: int
    drawn: int
    members: str


def note(drawn: Drawn, node: int) -> Note | None:
    """What is known of a node; None where nothing is."""
    layer, index = int(drawn.circuit.layer_N[node]), int(drawn.circuit.index_N[node])
    one = _labels(drawn).get(f"{layer}.{index}") if drawn.kind(node) == "neuron" else None
    group = next((group.name for group in drawn.case.supernodes if node in group.nodes), "")
    if one is None:
        return Note("", "", "", "", (), shown(group, 120)) if group else None
    high = float(drawn.circuit.value_N[node]) > 0
    places = tuple(_spoken(place) for place in (one.strongest if high else one.weakest))
    side = "Strongest in other texts" if high else "Lowest in other texts"
    return Note(
        _label(one),
        _said(one.score),
        _said(one.shuffled, brief=True),
        side,
        places,
        shown(group, 120),
        _name(drawn, one),
    )


def groups(drawn: Drawn) -> tuple[Group, ...]:
    """The supernodes of a case."""
    spots = {node: number_ for number_, node in enumerate(drawn.nodes)}
    found = []
    for one in drawn.case.supernodes:
        here = [str(spots[node]) for node in one.nodes if node in spots]
        named = "; ".join(drawn.title(node) for node in one.nodes[:MEMBERS])
        more = f"; and {len(one.nodes) - MEMBERS} more" if len(one.nodes) > MEMBERS else ""
        found.append(Group(shown(one.name, 120), " ".join(here), len(one.nodes), len(here), named + more))
    return tuple(found)


def _spoken(place: Place) -> Spoken:
    before = "…" * (len(place.before) > BEFORE) + place.before[-BEFORE:]
    token, after = shown(place.token), shown(place.after, AFTER)
    return Spoken(shown(before, BEFORE + 1), token, after, number(place.activation, signed=True))


def _labels(drawn: Drawn) -> dict[str, Labelled]:
    return {one.unit: one for one in drawn.case.labels}


def _label(one: Labelled) -> str:
    said = [*one.tokens[:WORDS], *one.pairs[:WORDS]]
    return ", ".join(f"“{shown(token)}” {number(value, signed=True)}" for token, value in said) or "nothing"


def _name(drawn: Drawn, one: Labelled) -> str:
    called = next((each for each in drawn.case.names if each.unit == one.unit), None)
    if called is None:
        return ""
    return f"“{shown(called.name, CALLED)}”; it sorts held-out places: {_said(called.score)}" if called.name else "none"


def _said(quantity: Quantity, *, brief: bool = False) -> str:
    if isinstance(quantity, Unmeasured):
        return f"not measured: {quantity.reason}"
    return interval(quantity) if brief else full(quantity)
