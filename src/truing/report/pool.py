"""The records that a report is about, found by id and by kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from truing.records import Id, Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Pool:
    """Records, each once, in the order of their ids where no other order is given."""

    by_id: dict[Id, Record]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Pool:
        """A pool of these records; their order does not matter."""
        return cls(dict(sorted((record.id, record) for record in records)))

    def all(self, kind: type[R]) -> list[R]:
        """Every record of a kind."""
        return [record for record in self.by_id.values() if isinstance(record, kind)]

    def get(self, kind: type[R], wanted: Id | None) -> R | None:
        """The record of an id, if it is here and of this kind."""
        record = self.by_id.get(wanted) if wanted else None
        return record if isinstance(record, kind) else None

    def some(self, kind: type[R], wanted: Iterable[Id]) -> list[R]:
        """The records of these ids that are here and of this kind, in their order."""
        return [record for record in (self.get(kind, one) for one in wanted) if record is not None]

    def absent(self) -> list[Id]:
        """Ids that a record names as its parents and that are not here."""
        named = {parent for record in self.by_id.values() for parent in record.parents}
        return sorted(named - self.by_id.keys())

    def counts(self) -> list[tuple[str, int]]:
        """Number of records by kind."""
        kinds: Sequence[str] = [record.kind for record in self.by_id.values()]
        return [(kind, kinds.count(kind)) for kind in sorted(set(kinds))]


def short(wanted: Id) -> str:
    """The beginning of an id, enough to find it by."""
    return wanted[:12]
