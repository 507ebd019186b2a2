"""The runner: what is finished is not done again, and nothing that was finished is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import open_store
from truing.records import Record, Spec
from truing.runner import Unit, run

pytestmark = pytest.mark.base

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(st.text(max_size=3), plain, max_size=3)


class Memory:
    """A ledger in memory that counts what it is asked to keep."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Record, ...]] = {}
        self.said: list[tuple[str, str, float]] = []

    def done(self, key: str) -> tuple[Record, ...] | None:
        return self.kept.get(key)

    def keep(self, key: str, stage: str, records: Sequence[Record], *, seconds: float) -> None:
        assert key not in self.kept
        self.kept[key] = tuple(records)
        self.said.append((key, stage, seconds))


class Counting:
    """A watcher that notes what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.steps = 0

    def start(self, label: str, total: int) -> None:
        self.started.append((label, total))

    def step(self, count: int = 1) -> None:
        self.steps += count

    def say(self, line: str) -> None:
        raise AssertionError(line)


def spec(name: str) -> Spec:
    return Spec(name=name, title="T", clauses=())


def units(count: int, stage: str = "square") -> list[Unit[int]]:
    return [Unit(item=n, inputs={"n": n}, stage=stage) for n in range(count)]


class Work:
    """Gives a record for an item, and notes for which it was asked. `never`: items at which it breaks."""

    def __init__(self, never: Sequence[int] = ()) -> None:
        self.asked: list[int] = []
        self.never = never

    def __call__(self, item: int) -> list[Spec]:
        self.asked.append(item)
        if item in self.never:
            raise ZeroDivisionError(item)
        return [spec(f"{item}"), spec(f"{item} again")]


@given(inputs, inputs, st.text(min_size=1, max_size=3), st.text(min_size=1, max_size=3))
def test_a_key_depends_on_inputs_and_stage_alone(
    one: dict[str, Any], two: dict[str, Any], stage: str, other: str
) -> None:
    key = Unit(item=object(), inputs=one, stage=stage).key
    assert Unit(item="something else", inputs=dict(reversed(one.items())), stage=stage).key == key
    same = _typed(one) == _typed(two) and stage == other
    assert (Unit(item=None, inputs=two, stage=other).key == key) == same


def _typed(value: Any) -> Any:
    """Values that Python holds to be equal but JSON does not (1 and True) told apart."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return (type(value).__name__, value)


def test_a_raised_layout_makes_all_keys_new(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [unit.key for unit in units(3)]
    monkeypatch.setattr("truing.runner.LAYOUT", 1_000_000)
    assert not set(before) & {unit.key for unit in units(3)}


def test_every_unit_is_done_once_in_order() -> None:
    ledger, work, watcher = Memory(), Work(), Counting()
    found = run(units(5), work, ledger=ledger, watcher=watcher, label="squares")
    assert [[record.name for record in records] for records in found] == [[f"{n}", f"{n} again"] for n in range(5)]
    assert work.asked == list(range(5))
    assert [(key, stage) for key, stage, _ in ledger.said] == [(unit.key, "square") for unit in units(5)]
    assert all(seconds >= 0 for _, _, seconds in ledger.said)
    assert (watcher.started, watcher.steps) == ([("squares", 5)], 5)
    again = Work(never=range(5))
    assert run(units(5), again, ledger=ledger, watcher=watcher) == found
    assert again.asked == []
    assert (watcher.started[1], watcher.steps) == (("square", 5), 10)


def test_only_what_is_missing_is_done_and_the_order_is_kept() -> None:
    ledger = Memory()
    run([units(6)[n] for n in (4, 1)], Work(), ledger=ledger)
    work = Work()
    found = run(reversed(units(6)), work, ledger=ledger)
    assert work.asked == [5, 3, 2, 0]
    assert [records[0].name for records in found] == ["5", "4", "3", "2", "1", "0"]
    other = Work()
    run(units(6, stage="cube"), other, ledger=ledger)
    assert other.asked == list(range(6))


def test_an_exception_keeps_what_was_finished() -> None:
    ledger, watcher = Memory(), Counting()
    with pytest.raises(ZeroDivisionError):
        run(units(5), Work(never=[3]), ledger=ledger, watcher=watcher)
    assert list(ledger.kept) == [unit.key for unit in units(3)]
    assert watcher.steps == 3
    work = Work()
    run(units(5), work, ledger=ledger)
    assert work.asked == [3, 4]


def test_a_unit_is_kept_before_the_next_begins() -> None:
    ledger = Memory()

    def work(item: int) -> list[Spec]:
        assert len(ledger.kept) == item
        return [spec(f"{item}")]

    run(units(4), work, ledger=ledger)


def test_the_same_unit_twice_is_done_once_and_no_units_are_nothing() -> None:
    ledger, work = Memory(), Work()
    one, two = run([*units(1), *units(1)], work, ledger=ledger)
    assert one == two
    assert work.asked == [0]
    assert run([], work, ledger=ledger) == []


def test_a_unit_may_have_no_records() -> None:
    ledger = Memory()
    assert run(units(2), lambda _: [], ledger=ledger) == [(), ()]
    assert run(units(2), Work(never=[0, 1]), ledger=ledger) == [(), ()]


def test_a_store_is_a_ledger(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, pytest.raises(ZeroDivisionError):
        run(units(4), Work(never=[2]), ledger=store)
    with open_store(tmp_path / "store") as store:
        work = Work()
        found = run(units(4), work, ledger=store)
        assert work.asked == [2, 3]
        assert [records[0].name for records in found] == ["0", "1", "2", "3"]
        assert run(units(4), Work(never=range(4)), ledger=store) == found
        assert [entry.stage for entry in store.ls()] == ["square"] * 8
