"""Every quantity in the records that was not measured, with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from truing.records import Claim, Measurement, Mediation, Named, Record, Unmeasured, Value
from truing.report.claims import called
from truing.report.pool import Pool, short


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that was not measured: in which record, what, and why."""

    record: str
    id: str
    what: str
    reason: str


def gaps(pool: Pool) -> list[Gap]:
    """All gaps, by kind of record."""
    found = [
        Gap(_about(record), short(record.id), what, reason)
        for record in pool.by_id.values()
        for what, reason in _walk(record, "")
    ]
    return sorted(found, key=lambda gap: (gap.record, gap.id, gap.what, gap.reason))


def _walk(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every Unmeasured inside a value, with the way to it."""
    if isinstance(value, Unmeasured):
        yield where, value.reason
    elif isinstance(value, Named):
        yield from _walk(value.quantity, f"{where}: {value.name}".removeprefix(": "))
    elif isinstance(value, Mediation):
        what = f"{where}: {value.k} {value.kind}s, {value.choice}"
        yield from _walk(value.share, what)
        yield from _walk(value.restored, f"{what}, restored")
    elif isinstance(value, Value):
        for field in type(value).model_fields:
            yield from _walk(getattr(value, field), f"{where}, {field}".removeprefix(", "))
    elif isinstance(value, tuple):
        for part in value:
            yield from _walk(part, where)


def _about(record: Record) -> str:
    match record:
        case Claim():
            return f"claim {called(record)}, {record.outcome}"
        case Measurement():
            return f"measurement {record.name}"
    return record.kind
