"""The section on measurements: before, after, the change between them, and what was kept or came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from truing.records import Loop, Measurement, Named, Target
from truing.report.intervals import Chart, Row, by_unit, named
from truing.report.pool import Pool, short


@dataclass(frozen=True, slots=True)
class Block:
    """Charts with a heading and the question that they answer."""

    title: str
    question: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class MeasurementView:
    """A measurement record as it stands in the page."""

    name: str
    note: str
    targets: tuple[str, ...]
    charts: tuple[Chart, ...]


def blocks(loop: Loop) -> list[Block]:
    """What a loop measured, in the order of the wheel; an empty list is left out."""
    source = f"Source: loop {short(loop.id)}"
    both, moved = paired(loop.before, loop.after), named(loop.runout, "strong")
    kept, returned = named(loop.retention), named(() if loop.judged else loop.relearning)  # a gate shows its own
    shown = (
        ("Before and after", "How far does it deviate, before and after the fix?", by_unit(both, source=source)),
        ("Runout", "What did the fix change (after minus before)?", by_unit(moved, signed=True, source=source)),
        ("Retention", "What did the fix cost elsewhere?", by_unit(kept, split=True, source=source)),
        ("Relearning", "Does it come back with a little training?", by_unit(returned, source=source)),
    )
    return [Block(title, question, tuple(charts)) for title, question, charts in shown if charts]


def paired(before: Sequence[Named], after: Sequence[Named]) -> list[Row]:
    """Rows in which each name's value after stands below that before."""
    names = dict.fromkeys(one.name for one in (*before, *after))
    return [row for name in names for row in (*_moment(before, name, "before"), *_moment(after, name, "after"))]


def view(measurement: Measurement, pool: Pool) -> MeasurementView:
    """A measurement's view."""
    targets = (pool.get(Target, one) for one in measurement.targets)
    names = tuple(t.name if t else short(one) for t, one in zip(targets, measurement.targets, strict=True))
    charts = by_unit(named(measurement.quantities), split=True, source=f"Source: measurement {short(measurement.id)}")
    return MeasurementView(measurement.name, measurement.note, names, tuple(charts))


def _moment(quantities: Iterable[Named], name: str, moment: str) -> list[Row]:
    return [
        Row(f"{name}, {moment}", one.quantity, "hollow" if moment == "before" else "strong", one.note)
        for one in quantities
        if one.name == name
    ]
