"""What of a case's graph is drawn, and what each node is in words."""

# N nodes  E edges

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from truing.records import ADDS, NODE_KINDS, TAKES, CaseGraph, Circuit, NodeKind
from truing.report.numbers import number
from truing.report.text import clip, visible

NODES, EDGES, COLUMNS = 160, 800, 48
"""Most that are drawn of each: what runs most of the decision through it. Columns are tokens."""
BEFORE, AFTER = 6, 4
"""Tokens of context around a node's own."""
SHOWN_AS = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥"})
Floats = NDArray[np.float64]


def flow(circuit: Circuit) -> Floats:
    """The part of the decision's inputs that runs through each edge, shape (E,)."""
    through: Floats = circuit.influence_N.astype(np.float64)
    return circuit.normalized() * through[circuit.target_E]


def carried(circuit: Circuit) -> Floats:
    """What each node adds to the decision along all listed paths, signed, in its unit, shape (N,).

    A node passes on what it carries in the proportions of its inputs. What tokens, biases and remainders carry adds up
    to the decision, as far as the accounts of the graph close.
    """
    value = circuit.value_N.astype(np.float64)
    found = np.zeros(len(circuit))
    found[-1] = value[-1]
    order = np.argsort(-circuit.target_E, kind="stable")
    targets, starts = np.unique(-circuit.target_E[order], return_index=True)
    with np.errstate(all="ignore"):
        for target, start, stop in zip(-targets, starts, np.append(starts[1:], len(order)), strict=False):
            edges = order[start:stop]
            last = target == len(circuit) - 1
            gain = 1.0 if last else found[target] / value[target] if value[target] else 0.0
            np.add.at(found, circuit.source_E[edges], gain * circuit.weight_E[edges])
    return np.nan_to_num(found, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class Drawn:
    """The nodes and edges of a graph that are drawn."""

    case: CaseGraph
    circuit: Circuit
    nodes: tuple[int, ...]
    """In the order of the graph; the decision is last."""
    edges: tuple[int, ...]
    """Between drawn nodes; those with the largest flow first."""
    columns: tuple[int, ...]
    """Tokens that have a column, in order."""

    @cached_property
    def carries_N(self) -> Floats:
        """See `carried`."""
        return carried(self.circuit)

    @cached_property
    def hidden_E(self) -> NDArray[np.bool_]:
        """Which edges of the whole graph are not drawn."""
        hidden = np.ones(len(self.circuit.weight_E), dtype=bool)
        hidden[list(self.edges)] = False
        return hidden

    @cached_property
    def after(self) -> dict[int, int]:
        """The first token after each."""
        return {before: place for place, before in reversed(list(enumerate(self.case.before)))}

    def kind(self, node: int) -> NodeKind:
        """Of what kind a node is."""
        return NODE_KINDS[int(self.circuit.kind_N[node])]

    def title(self, node: int) -> str:
        """What a node is."""
        kind, layer = self.kind(node), int(self.circuit.layer_N[node])
        position, index = int(self.circuit.position_N[node]), int(self.circuit.index_N[node])
        at = f" at {self.token(position)}" if position >= 0 else ""
        if kind == "neuron":
            return f"{self.case.unit} {layer}.{index}{at}"
        if kind == "remainder":
            return (
                f"error: {self.others} of layer {layer}{at}"
                if layer >= 0
                else f"error: not listed{self.side(node)}{at}"
            )
        return {"embedding": self.token(position), "bias": f"biases{at}", "decision": "decision"}[kind]

    def side(self, node: int) -> str:
        """What a remainder of all layers does: in one, what adds and what takes away would cancel out."""
        return {ADDS: ", adds", TAKES: ", takes away"}.get(int(self.circuit.index_N[node]), "")

    @property
    def others(self) -> str:
        """What is in the remainder of a layer."""
        return "other neurons" if self.case.unit == "neuron" else "other features, and what no feature stands for,"

    def token(self, position: int) -> str:
        """A token, quoted and with its place."""
        return f"“{shown(self.case.tokens[position])}” ({position})" if position >= 0 else "no token"

    def context(self, node: int) -> str:
        """The text around a node's token, along its own continuation; empty where it has none."""
        position = int(self.circuit.position_N[node])
        if position < 0:
            return ""
        earlier: list[int] = []
        place = self.case.before[position]
        while place >= 0 and len(earlier) < BEFORE:
            earlier.append(place)
            place = self.case.before[place]
        later: list[int] = []
        following = self.after.get(position, -1)
        while following >= 0 and len(later) < AFTER:
            later.append(following)
            following = self.after.get(following, -1)
        tokens = self.case.tokens
        left, right = ("".join(tokens[n] for n in some) for some in (reversed(earlier), later))
        said = f"{'…' * (place >= 0)}{left}⟦{tokens[position]}⟧{right}{'…' * (following >= 0)}"
        return shown(said, 160)

    def facts(self, node: int) -> str:
        """Value, influence and contribution of a node."""
        value, carries = float(self.circuit.value_N[node]), float(self.carries_N[node])
        parts = [f"influence {percent(float(self.circuit.influence_N[node]))}"]
        if self.kind(node) == "neuron":
            parts.insert(0, f"activation {number(value, signed=True)}")
            parts += self.writes(node)
        if self.kind(node) == "decision":
            return f"value {number(value, signed=True)} nats per token, the sum of all that is added to it"
        carried_on = f"carries {number(carries, signed=True)} nats per token of the decision"
        return "; ".join([*parts[:2], carried_on, *parts[2:]])

    @cached_property
    def written(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """What neurons write, by name."""
        return {name: (more, less) for name, more, less in self.case.writes}

    def writes(self, node: int) -> list[str]:
        """Which tokens a neuron makes likelier here: where its activation is negative, those that it lowers."""
        known = self.written.get(f"{int(self.circuit.layer_N[node])}.{int(self.circuit.index_N[node])}")
        if not known:
            return []
        some = known[0] if self.circuit.value_N[node] > 0 else known[1]
        return [f"writes {', '.join(f'“{shown(token, 20)}”' for token in some)} (logit lens)"]


def drawn(case: CaseGraph, circuit: Circuit) -> Drawn:
    """The nodes with the largest influence in the columns that they are in, and the edges with the largest flow."""
    columns = set(range(len(case.tokens))) if len(case.tokens) <= COLUMNS else set()
    order = np.argsort(-circuit.influence_N[:-1], kind="stable")
    chosen = [len(circuit) - 1]
    for node in order.tolist():
        position = int(circuit.position_N[node])
        if len(chosen) > NODES:
            break
        if position < 0 or position in columns or len(columns) < COLUMNS:
            chosen.append(node)
            columns |= {position} if position >= 0 else set()
    inside = np.zeros(len(circuit), dtype=bool)
    inside[chosen] = True
    both = (inside[circuit.source_E] & inside[circuit.target_E]).nonzero()[0]
    edges = both[np.argsort(-flow(circuit)[both], kind="stable")][:EDGES]
    return Drawn(case, circuit, tuple(sorted(chosen)), tuple(edges.tolist()), tuple(sorted(columns)))


def shown(text: str, most: int = 40) -> str:
    """A token's text on one line, with what cannot be seen made visible."""
    said: str = visible(clip(text, most).translate(SHOWN_AS))
    return said


def label(token: str, most: int = 14) -> str:
    """A token's text as short as a picture needs it."""
    said = token.strip(" ") or "␣" * min(3, len(token)) or "∅"
    return clip(shown(said), most)


def percent(share: float) -> str:
    """A share with as many digits as it needs."""
    if 0 < share < 0.0001:
        return "under 0.01%"
    return f"{100 * share:.{0 if share >= 0.1 else 1 if share >= 0.01 else 2}f}%"


def strongest(drawn: Drawn, edges: NDArray[np.intp] | Sequence[int], most: int) -> list[int]:
    """The edges with the largest weights."""
    return sorted((int(edge) for edge in edges), key=lambda e: (-abs(float(drawn.circuit.weight_E[e])), e))[:most]
