"""The text of a case, each token shaded by how much of the decision's inputs runs in from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from truing.report.case_nodes import Drawn, percent, shown
from truing.report.numbers import number

DEPTHS = 8
AROUND = 14
"""Tokens shown on either side of one that is drawn, where a text is too long to be shown as a whole."""
WHOLE = 700
BRANCHES = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A token: its text, the class of its shade, and what is said of it."""

    text: str
    shade: str
    said: str


@dataclass(frozen=True, slots=True)
class Line:
    """The prompt, or one continuation."""

    name: str
    parts: tuple[Part, ...]


def lines(drawn: Drawn) -> tuple[Line, ...]:
    """The prompt, then each continuation from the prompt's end."""
    case = drawn.case
    tokens = _embeddings(drawn)
    largest = max((float(drawn.circuit.influence_N[node]) for node in tokens.values()), default=0.0)
    near = {place + step for place in drawn.columns for step in range(-AROUND, AROUND + 1)}
    shown_all = len(case.tokens) <= WHOLE

    def line(name: str, places: list[int]) -> Line:
        parts, left = [], 0
        for place in places:
            if not (shown_all or place in near):
                left += 1
                continue
            parts += [_left_out(left)] * bool(left) + [_part(drawn, place, tokens.get(place), largest)]
            left = 0
        return Line(name, tuple(parts + [_left_out(left)] * bool(left)))

    branches = _branches(drawn)
    found = [line("prompt", list(range(case.prompt)))]
    found += [line(case.segments[places[-1]], places) for places in branches[:BRANCHES]]
    if len(branches) > BRANCHES:
        found.append(Line("", (Part(f"… {len(branches) - BRANCHES} more continuations …", "gap", ""),)))
    return tuple(found)


def _embeddings(drawn: Drawn) -> dict[int, int]:
    """The node of each token."""
    places = drawn.circuit.of("embedding").nonzero()[0].tolist()
    return {int(drawn.circuit.position_N[node]): node for node in places}


def _branches(drawn: Drawn) -> list[list[int]]:
    """Tokens of each continuation: the way from every last one back to the prompt."""
    case = drawn.case
    inner = set(case.before)
    found: list[list[int]] = []
    for place in range(case.prompt, len(case.tokens)):
        if place not in inner and len(found) <= BRANCHES:
            way = []
            at = place
            while at >= case.prompt:
                way.append(at)
                at = case.before[at]
            found.append(way[::-1])
        elif place not in inner:
            found.append([place])
    return found


def _part(drawn: Drawn, place: int, node: int | None, largest: float) -> Part:
    text = shown(drawn.case.tokens[place], 60)
    if node is None or not largest:
        return Part(text, "", "")
    influence, carries = float(drawn.circuit.influence_N[node]), float(drawn.carries_N[node])
    depth = math.ceil(DEPTHS * min(1.0, influence / largest) ** 0.7 - 0.25)
    said = f"token {place}: influence {percent(influence)}; carries {number(carries, signed=True)} nats per token"
    return Part(text, f"{'pos' if carries >= 0 else 'neg'} shade-{depth}" if depth else "", said)


def _left_out(count: int) -> Part:
    return Part(f" … {count:,} tokens … ", "gap", "")
