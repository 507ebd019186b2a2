"""Examples of the evidence: replies with the span that classed them, and the raw values of a few surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truing.records import Replies, Said, Scores
from truing.report.numbers import number
from truing.report.text import clip, visible

PER_CLASS = 2
"""Replies shown of each outcome class."""
MOST_CLASSES = 6
SURFACES = 3
LONGEST = 1200
SPANS = " | "
"""What stands between the spans of a reply."""


@dataclass(frozen=True, slots=True)
class Example:
    """A reply with the span that decided marked in it."""

    plot: str
    said: Said
    marked: Markup


@dataclass(frozen=True, slots=True)
class Cells:
    """Raw decision values of a few surfaces (columns) in each cell (rows)."""

    surfaces: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    total: int


def examples(asked: Sequence[Replies]) -> tuple[Example, ...]:
    """The first replies of every outcome class, from different plots where there are any."""
    found: dict[str, list[Example]] = {}
    for record in asked:
        taken = set()
        for said in record.rows:
            kept = found.setdefault(said.outcome, [])
            if len(kept) < PER_CLASS and said.outcome not in taken:
                kept.append(Example(record.plot, said, mark(said)))
                taken.add(said.outcome)
    return tuple(example for outcome in sorted(found)[:MOST_CLASSES] for example in found[outcome])


def mark(said: Said) -> Markup:
    """The reply, each part of its span marked where it first stands."""
    reply = clip(said.reply, LONGEST)
    places = sorted({(reply.find(part), len(part)) for part in said.span.split(SPANS) if part and part in reply})
    end = 0
    parts: list[str] = []
    for start, length in places:
        if start >= end:
            found = visible(reply[start : start + length])
            parts += [visible(reply[end:start]), Markup("<mark>{}</mark>").format(found)]
            end = start + length
    return Markup("").join([*parts, visible(reply[end:])])


def tokens_per_reply(asked: Sequence[Replies]) -> int:
    """Mean length of the replies, rounded; 0 where there are none."""
    replies = sum(len(record.rows) for record in asked)
    return round(sum(record.tokens for record in asked) / replies) if replies else 0


def cells(scored: Sequence[Scores]) -> Cells:
    """Raw values of the first surface of the first few plots."""
    first: dict[str, Scores] = {}
    for record in sorted(scored, key=lambda record: (record.plot, record.surface)):
        first.setdefault(record.plot, record)
    shown = list(first.values())[:SURFACES]
    names = list(dict.fromkeys(row.cell for record in shown for row in record.rows))
    values = [{row.cell: number(row.value, signed=True, decimals=3) for row in record.rows} for record in shown]
    rows = tuple((cell, tuple(value.get(cell, "not scored") for value in values)) for cell in names)
    return Cells(tuple(record.surface for record in shown), rows, len(scored))
