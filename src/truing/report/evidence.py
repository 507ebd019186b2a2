"""The section on evidence: which records the page was made from, and what is missing among them."""

from __future__ import annotations

from dataclasses import dataclass

from truing.records import CaseGraph, Claim, Design, Graph, Loop, Measurement, Pairs, Record, Spec, Target, Training
from truing.report.claims import called
from truing.report.pool import Pool, short

NAMED = (Loop, Target, Spec, Design, Claim, Graph, CaseGraph, Pairs, Training, Measurement)
"""Kinds that are listed one by one; of the others there are too many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in the list."""

    kind: str
    id: str
    about: str


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """All records, counted, the important ones by name."""

    counts: tuple[tuple[str, int], ...]
    total: int
    entries: tuple[Entry, ...]
    absent: tuple[str, ...]
    tokens: int


def view(pool: Pool) -> EvidenceView:
    """The view of a pool."""
    entries = tuple(
        Entry(record.kind, record.id, _about(record))
        for kind in NAMED
        for record in pool.by_id.values()
        if isinstance(record, kind)
    )
    # The tokens of a case are texts, not a count.
    spent = (getattr(record, "tokens", 0) for record in pool.by_id.values() if not isinstance(record, CaseGraph))
    return EvidenceView(tuple(pool.counts()), len(pool.by_id), entries, tuple(map(short, pool.absent())), sum(spent))


def _about(record: Record) -> str:
    match record:
        case Target() | Spec() | Measurement():
            return record.name
        case Design():
            return f"{record.family}, {record.half} half, {record.wordings} wordings"
        case Claim():
            return f"{called(record)}, {record.outcome}: {record.verdict}"
        case Training():
            return f"{record.method}, {len(record.steps)} steps, {'finished' if record.finished else 'unfinished'}"
    return _size(record)


def _size(record: Record) -> str:
    match record:
        case Graph():
            return f"{len(record.nodes)} nodes, {len(record.edges)} edges"
        case CaseGraph():
            return f"{len(record.tokens)} tokens, {record.selected} neurons: {record.verdict}"
        case Pairs():
            return f"{len(record.pairs)} pairs"
    return ""
