"""Twins: the same surface in two cells, laid out as trees whose positions are aligned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from truing.errors import DesignError
from truing.records import Case, Message, Surface
from truing.stats import MIN_CLUSTERS
from truing.targets.local import Functional, LocalTarget
from truing.targets.local.tree import plant
from truing.trace.boundary import check_boundary

REPLY = "reply"
FRAME = "chat frame"


@dataclass(frozen=True, slots=True)
class Side:
    """One cell of a surface: the decision over its tree, and the segment of every node."""

    functional: Functional
    segment_T: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Twin:
    """A surface in two cells. `onto_T` of the first takes the place of `from_T` of the second."""

    plot: str
    name: str
    first: Side
    second: Side
    onto_T: Tensor
    from_T: Tensor

    @property
    def same_length(self) -> bool:
        """Whether every position has its counterpart."""
        return len(self.onto_T) == len(self.first.functional.tree) == len(self.second.functional.tree)

    @property
    def shared(self) -> int:
        """Nodes at the beginning that are the same in both; without the last of a prompt, from which replies go on."""
        a, b = self.first.functional, self.second.functional
        most = min(a.prompt, b.prompt) - 1
        differ = (a.tree.ids_N[:most] != b.tree.ids_N[:most]).nonzero()
        return int(differ[0]) if len(differ) else most


def of_tokens(
    first: Sequence[int], second: Sequence[int], answer: Sequence[int], other: Sequence[int], *, name: str = "pair"
) -> Twin:
    """A pair of texts as tokens: how much more likely one continuation is than the other, per token, in each.

    DesignError where the texts are not equally long. A pair is a plot of its own.
    """
    if len(first) != len(second) or not first:
        raise DesignError(f"texts of {len(first)} and {len(second)} tokens; a pair needs as many in both, one at least")
    sides = []
    for text in (first, second):
        tree, routes = plant([[*text, *answer], [*text, *other]])
        parts = [route[len(text) :] for route in routes]
        weights = [torch.full((len(part),), sign / len(part)) for part, sign in zip(parts, (1, -1), strict=True)]
        functional = Functional(tree, torch.cat(parts), torch.cat(weights), len(text))
        sides.append(Side(functional, tuple(REPLY if node >= len(text) else "text" for node in range(len(tree)))))
    every = torch.arange(len(sides[0].functional.tree))
    return Twin(name, name, sides[0], sides[1], every, every)


Placed = TypeVar("Placed", Surface, Twin)


def twins(
    target: LocalTarget, surfaces: Sequence[Surface], cells: tuple[str, str], *, per_plot: int
) -> tuple[list[Twin], int]:
    """Up to `per_plot` twins of each plot, and how many were left out because their tokens do not align.

    Twins of equal length align position by position. Where too few plots have any, the others are taken too, aligned by
    their common beginning and end (the differing span itself is then not patched).
    """
    lengths = [{len(target.prompt_ids(case_of(s, cell).messages)) for cell in cells} for s in surfaces]
    equal = [surface for surface, seen in zip(surfaces, lengths, strict=True) if len(seen) == 1]
    usable = equal if len({surface.plot for surface in equal}) >= MIN_CLUSTERS else surfaces
    plots = by_plot(usable)
    if len(plots) < MIN_CLUSTERS:
        raise DesignError(f"twins in {len(plots)} plots; tracing an effect needs at least {MIN_CLUSTERS}")
    chosen = [surface for members in plots.values() for surface in spread(members, per_plot)]
    return [_twin(target, surface, cells) for surface in chosen], len(surfaces) - len(usable)


def by_plot(members: Iterable[Placed]) -> dict[str, list[Placed]]:
    """Surfaces or twins by their plot, in order."""
    plots: dict[str, list[Placed]] = {}
    for member in members:
        plots.setdefault(member.plot, []).append(member)
    return plots


def spread(members: Sequence[Surface], count: int) -> list[Surface]:
    """So many of them, from the first to the last: neighbours are wordings of the same fact."""
    if len(members) <= count:
        return list(members)
    step = (len(members) - 1) / max(1, count - 1)
    return [members[round(number * step)] for number in range(count)]


def _twin(target: LocalTarget, surface: Surface, cells: tuple[str, str]) -> Twin:
    first, second = (side(target, surface, case_of(surface, cell)) for cell in cells)
    a, b = first.functional, second.functional
    onto, taken = _align(a.tree.ids_N[: a.prompt].tolist(), b.tree.ids_N[: b.prompt].tolist())
    replies = torch.arange(len(a.tree) - a.prompt)  # continuations are the same texts in the same order
    return Twin(
        surface.plot,
        surface.name,
        first,
        second,
        torch.cat([torch.tensor(onto, dtype=torch.long), replies + a.prompt]),
        torch.cat([torch.tensor(taken, dtype=torch.long), replies + b.prompt]),
    )


def case_of(surface: Surface, cell: str) -> Case:
    """The case at these settings, whatever the order in which they are named."""
    for case in surface.cases:
        if set(case.cell.split()) == set(cell.split()):
            return case
    raise DesignError(f"{surface.name} has no cell {cell!r}; it has {', '.join(repr(c.cell) for c in surface.cases)}")


def cases_of(surface: Surface, cell: str) -> list[Case]:
    """The cases at these settings, whatever else they are set to: one where all factors are named, perhaps none."""
    wanted = set(cell.split())
    return [case for case in surface.cases if wanted <= set(case.cell.split())]


def _align(a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of two prompts that correspond: all, where they are equally long; else common beginning and end."""
    if len(a) == len(b):
        return list(range(len(a))), list(range(len(b)))
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    onto = [*range(start), *range(len(a) - end, len(a))]
    return onto, [*range(start), *range(len(b) - end, len(b))]


def side(target: LocalTarget, surface: Surface, case: Case) -> Side:
    """A surface's decision in one of its cases, every token in its segment.

    UsageError for replies that join with the end of the prompt into other tokens: the model would never see these.
    """
    functional = target.functional(surface.decision, case.messages)
    text, content = target.prompt_text(case.messages), case.messages[-1].content
    for reply in (*surface.decision.actions, *surface.decision.alternatives):
        check_boundary(target, text, reply)
    end = text.rindex(content.strip()) - len(content) + len(content.lstrip())  # templates strip
    spans = turns(case.messages[:-1], text)
    for label, part in case.segments:
        spans.append((end, end + len(part), label))
        end += len(part)
    spans.append((end, len(text), REPLY))
    labels = [label_at(spans, start, start + 1) for start, _ in target.prompt_offsets(case.messages)]
    return Side(functional, (*labels, *[REPLY] * (len(functional.tree) - functional.prompt)))


Span = tuple[int, int, str]
"""Where a text begins and ends, in characters, and what it is called."""


def turns(messages: Sequence[Message], text: str) -> list[Span]:
    """Where each turn stands in a rendered conversation, as "2 user"; turns that say nothing are left out."""
    found: list[Span] = []
    at = 0
    for number, message in enumerate(messages, 1):
        said = [message.content.strip(), *(part for call in message.calls for part in (call.name, call.arguments))]
        for part in filter(None, said):  # templates strip
            if places := [(start, one) for one in spelled(part) if (start := text.find(one, at)) >= 0]:
                start, one = min(places)
                at = start + len(one)
                found.append((start, at, f"{number} {message.role}"))
    return found


def spelled(text: str) -> set[str]:
    """A text, and where it is a JSON object or list, how templates may write it."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        return {text}
    if not isinstance(plain, dict | list):
        return {text}
    return {text, *(json.dumps(plain, ensure_ascii=False, separators=marks) for marks in ((",", ":"), (", ", ": ")))}


def label_at(spans: Sequence[Span], start: int, stop: int) -> str:
    """The first of the spans that these characters touch; what is in none is the frame, which the template adds."""
    return next((name for a, b, name in spans if a < stop and start < b), FRAME)
