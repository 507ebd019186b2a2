"""Run units of work; a unit has the hash of everything that determines it, so a rerun does only what is missing.

The runner knows no stage and no store: it gets a function and a ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from truing.records import Record, digest_of

T = TypeVar("T")

LAYOUT = 7
"""Part of every key. Raised when a change in the code changes what a unit of work computes."""


class Ledger(Protocol):
    """Remembers finished units. `keep` is atomic: records and key appear together or not at all."""

    def done(self, key: str) -> tuple[Record, ...] | None:
        """The records of a finished unit, or None."""

    def keep(self, key: str, stage: str, records: Sequence[Record], *, seconds: float) -> None:
        """Remember a finished unit."""


class Watcher(Protocol):
    """Sees progress."""

    def start(self, label: str, total: int) -> None:
        """A stage of so many units begins."""

    def step(self, count: int = 1) -> None:
        """So many units are done."""

    def say(self, line: str) -> None:
        """A line worth keeping."""


class Silent:
    """A watcher that shows nothing."""

    def start(self, label: str, total: int) -> None:
        """Show nothing."""

    def step(self, count: int = 1) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Unit(Generic[T]):
    """One unit of work: what it is done with, and plain data that determines it wholly."""

    item: T
    inputs: dict[str, Any]
    stage: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", digest_of({"stage": self.stage, "layout": LAYOUT, "inputs": self.inputs}))


def run(
    units: Iterable[Unit[T]],
    work: Callable[[T], Sequence[Record]],
    *,
    ledger: Ledger,
    watcher: Watcher | None = None,
    label: str = "",
) -> list[tuple[Record, ...]]:
    """The records of every unit, in order; finished ones are read, missing ones computed and kept one by one."""
    from time import perf_counter

    units = list(units)
    watcher = watcher or Silent()
    watcher.start(label or (units[0].stage if units else ""), len(units))
    results: list[tuple[Record, ...]] = []
    for unit in units:
        records = ledger.done(unit.key)
        if records is None:
            began = perf_counter()
            records = tuple(work(unit.item))
            ledger.keep(unit.key, unit.stage, records, seconds=perf_counter() - began)
        results.append(records)
        watcher.step()
    return results
