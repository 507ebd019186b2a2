"""What a trace takes: said before anything is computed, refused with the numbers, and not less than what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.errors import TargetError
from truing.records import Graph, Message, Unmeasured
from truing.runner import Silent
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.trace import Beside, CaseSettings, Effect, Settings, between, carriers, differ, retrace, trace, trace_case
from truing.trace import case as of_case
from truing.trace.ablate import Bench, Neurons
from truing.trace.attribute import read_side
from truing.trace.averaging import segments_of
from truing.trace.causal import room
from truing.trace.room import bench_costs, held, rows_within, through_twins
from truing.trace.twins import twins

ASKED = (Message(role="user", content="The sky is green. Is the sky green?"),)
FEW = Settings(per_plot=1, heads=(2,), neurons=(20,), drawn=6, drawn_twins=1)
NEEDS = r"takes about [\d,]+ MB beyond the weights, more than the 1 MB allowed\. Shorten the"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


class Noting(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Reached(Exception):
    """The work that comes after the plan has begun."""


def reached(*_: Any, **__: Any) -> Any:
    raise Reached


def tight(tiny: LocalTarget, most: int = 1_000_000) -> LocalTarget:
    target = LocalTarget("local/tight", tiny.model, tiny.tokenizer, weights="7" * 64)
    target.max_memory = most
    return target


def graph_of(target: LocalTarget, effect: Effect) -> Graph:
    none, pairs = Unmeasured(reason="none"), twins(target, effect.testing, effect.cells, per_plot=1)[0]
    return Graph(
        target=target.card.id, claim=None, twins=effect.cells, aligned=1, skipped=0, effect=none, closure_error=0,
        segments=segments_of(pairs), nodes=(), edges=(), units=(), mediated=(), verdict="inconclusive", why="none",
    )  # fmt: skip


def of_claims(target: LocalTarget, effect: Effect, store: Store, watcher: Any) -> list[Callable[[], Any]]:
    """Everything that goes through twins."""
    return [
        lambda: trace(target, effect, store, settings=FEW, watcher=watcher),
        lambda: retrace(target, graph_of(target, effect), effect, store, settings=FEW, watcher=watcher),
        lambda: differ(target, target, effect, store, per_plot=1, watcher=watcher),
        lambda: carriers([target], effect, store, settings=FEW, watcher=watcher),
    ]


# -- claims ------------------------------------------------------------------------------------------------------------


def test_twins_that_memory_does_not_hold_are_refused_before_anything_is_computed(
    tiny: LocalTarget, effect: Effect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.model, "forward", reached)
    watcher = Noting()
    for work in of_claims(tight(tiny), effect, store, watcher):
        with pytest.raises(TargetError, match=r"going through \d+ twins of up to \d+ tokens.*" + NEEDS + " texts"):
            work()
    assert (store.ls(), watcher.lines) == ([], [])


def test_what_twins_take_is_said_first(
    tiny: LocalTarget, effect: Effect, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.model, "forward", reached)
    said = []
    for work in of_claims(tiny, effect, store, watcher := Noting()):
        with pytest.raises(Reached):
            work()
        said.append(watcher.lines.pop())
        assert not watcher.lines
    assert all("MB beyond the weights" in line and line.startswith("local/tiny: going through") for line in said)
    rows = max(2 + 2 * FEW.draws + 4, 2 * 9)  # of this effect; or its own and those of eight ordinary ones, twice
    assert f"{rows} choices of units patched at once" in said[0]
    assert not any("patched" in line for line in said[1:])


def test_rows_are_as_many_as_choices(tiny: LocalTarget, effect: Effect) -> None:
    """No choice is left out of the plan: neither of this effect nor of those beside."""
    import torch

    from truing.trace.attribute import TRIVIAL
    from truing.trace.mediate import choose
    from truing.trace.ordinary import ordinary

    many = replace(FEW, heads=(2, 3), neurons=(5, 9), draws=9)
    table = torch.rand(3, 12)
    drawn = [
        choice
        for ks, draws in ((many.heads, many.draws), (many.neurons, 1))
        for k in ks
        for choice in choose("head", k, table, dict.fromkeys(TRIVIAL, table), draws=draws, seed=0)
    ]
    assert many.together == len(drawn)
    assert replace(many, draws=1).together == 4 * (1 + len(ordinary()))


@pytest.mark.parametrize(("nodes", "rows"), [(10, 16), (1024, 16), (2048, 8), (4096, 4), (20_000, 1)])
def test_a_batch_of_long_cases_is_smaller(nodes: int, rows: int) -> None:
    assert rows_within(10**12, 0, 1, nodes) == rows
    assert rows_within(3, 0, 1, nodes) == min(rows, 3)
    assert rows_within(0, 5, 1, nodes) == 1


def test_the_plan_holds_the_inside_of_both_sides_and_grows(tiny: LocalTarget, effect: Effect) -> None:
    pairs = twins(tiny, effect.choosing, effect.cells, per_plot=1)[0]
    longest = max((side for twin in pairs for side in (twin.first, twin.second)),
                  key=lambda side: len(side.functional.tree))  # fmt: skip
    seen, _ = read_side(tiny.model, longest)
    kept = [*seen.heads, *seen.gate, *seen.up, *seen.neurons]
    kept += [x for query, key, _ in seen.attention.given.values() for x in (query, key)]

    def taken(pairs: Any = pairs, rows: int = 0, spots: int = 0, more: int = 0) -> int:
        return through_twins(tiny.model, pairs, rows=rows, spots=spots, budget=10**12, more=more).bytes

    assert taken() > 2 * sum(x.numel() * 4 for x in kept)
    assert taken(rows=200) > 5 * taken(rows=20)
    assert taken(spots=500) > 5 * taken(spots=20)
    assert taken(more=99) == taken() + 99
    assert taken(pairs[:1]) <= taken()


# -- cases -------------------------------------------------------------------------------------------------------------


def test_a_check_that_memory_does_not_hold_is_refused_before_the_graph(
    tiny: LocalTarget, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_case, "account", reached)
    target = tight(tiny)
    context = between(target, (Message(role="user", content="Is the sky green? " * 20),), ("True.",), ("False.",))
    with pytest.raises(
        TargetError, match=r"ablating neurons in a case of \d+ tokens, 1 row at once " + NEEDS + " case"
    ):
        trace_case(target, context, store, watcher=(watcher := Noting()))
    assert (store.ls(), watcher.lines) == ([], [])
    with pytest.raises(Reached):  # the graph has a plan of its own
        trace_case(target, context, store, settings=CaseSettings(check=False))
    assert store.ls() == []


def test_what_a_check_takes_is_said_before_the_graph(
    tiny: LocalTarget, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_case, "select", reached)
    context = between(tiny, ASKED, ("True.",), ("False.",))
    sizes = []
    for beside in (Beside(), Beside(twin=context)):
        with pytest.raises(Reached):
            trace_case(tiny, context, store, beside=beside, watcher=(watcher := Noting()))
        check, graph = watcher.lines
        assert check.startswith("local/tiny: ablating neurons in a case of")
        assert "16 rows at once: about" in check
        assert "a graph of 512 neurons" in graph
        sizes.append(room(tiny, context.functional, twin=beside.twin is not None).bytes)
    assert sizes[1] > sizes[0]


def test_the_plan_of_a_bench_is_what_it_keeps_and_rows_shrink_to_fit(tiny: LocalTarget) -> None:
    case = between(tiny, ASKED, ("True.",), ("False.",)).functional
    bench, basis = Bench(tiny.model, case, memory=10**9), Neurons(tiny.model)
    keys = [x for pair in bench._keys for x in pair]
    kept = sum(x.numel() * x.itemsize for x in (*bench.neurons, *bench._out, *keys))
    planned = held(tiny.model, len(case.tree), basis)
    assert kept <= planned <= 1.2 * kept
    fixed, one = bench_costs(tiny.model, case, basis)
    assert Bench(tiny.model, case, memory=fixed + 3 * one).rows == 3
    assert room(tight(tiny, fixed + one), case, twin=False).bytes == fixed + one
    with pytest.raises(TargetError, match="or raise max_memory"):
        room(tight(tiny, fixed + one - 1), case, twin=False)
    with pytest.raises(TargetError, match="or raise max_memory"):  # the twin's are kept too
        room(tight(tiny, fixed + one), case, twin=True)
