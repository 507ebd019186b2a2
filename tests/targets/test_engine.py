"""A model that many threads ask at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.errors import TargetBusy, TargetError, UsageError
from truing.records import Message
from truing.targets.local.engine import Engine
from truing.targets.local.generate import Batch, write
from truing.targets.local.inside import Patch, read, run
from truing.targets.local.sample import Sampling
from truing.targets.local.tree import plant
from truing.targets.local.write import Ask


def some_asks(count: int) -> list[Ask]:
    rng = random.Random(6)
    start = rng.choices(range(4, 1536), k=20)
    return [
        Ask(
            (*start[: rng.choice([0, 20])], *rng.choices(range(4, 1536), k=rng.choice([1, 9]))),
            rng.choice([1, 4, 15]),
            sampling=Sampling(temperature=0.9, seed=place),
        )
        for place in range(count)
    ]


def test_many_threads_get_what_each_would_get_alone(wild: Any) -> None:
    asks = some_asks(40)
    alone = [write(Batch(wild.model), [ask], wild.tokenizer)[0] for ask in asks]
    with Engine(wild, rows=8) as engine, ThreadPoolExecutor(40) as threads:
        found = list(threads.map(lambda ask: engine.submit(ask).result(60), asks))
    assert found == alone


def test_a_cancelled_reply_frees_its_row_and_the_others_go_on(wild: Any) -> None:
    heard = threading.Event()
    long = Ask((5, 6, 7), 450, hear=lambda *_: heard.set())
    with Engine(wild, rows=1) as engine:
        first = engine.submit(long)
        second = engine.submit(Ask((8, 9), 3))
        assert heard.wait(30)
        assert engine.busy == (1, 1)
        assert first.cancel()
        assert len(second.result(30).ids) == 3
        with pytest.raises(CancelledError):
            first.result(0)
        assert engine.busy == (0, 0)


def test_other_work_is_done_between_tokens(wild: Any) -> None:
    paths = [([5, 6, 7], [8, 9])]
    with Engine(wild) as engine:
        reply = engine.submit(Ask((5, 6, 7), 60))
        (scores,), _ = engine.run(lambda: wild.log_probs(paths)).result(30)
        assert scores.tolist() == wild.log_probs(paths)[0][0].tolist()
        with pytest.raises(TargetError, match="token id 99999 is out of the range"):
            engine.run(lambda: wild.log_probs([([5], [99999])])).result(30)
        assert len(reply.result(30).ids) == 60


def counting(steps: int, seen: list[Any], name: str = "", *, fails: bool = False) -> Any:
    """Work of so many steps, each of which is noted, and its end."""

    def work() -> Iterator[None]:
        try:
            for step in range(steps):
                seen.append((name, step))
                yield
            if fails:
                raise ValueError("the last step failed")
            return name
        finally:
            seen.append((name, "closed"))

    return work


def test_tokens_come_between_the_steps_of_work(wild: Any) -> None:
    seen: list[Any] = []
    heard = threading.Event()

    def hear(*_: Any) -> None:
        seen.append("token")
        heard.set()

    with Engine(wild) as engine:
        reply = engine.submit(Ask((5, 6, 7), 60, hear=hear))
        assert heard.wait(30)
        assert engine.run(counting(10, seen, "a")).result(30) == "a"
        assert len(reply.result(30).ids) == 60
    places = [seen.index(("a", step)) for step in range(10)]
    assert sum("token" in seen[one:other] for one, other in pairwise(places)) > 5  # some tokens end in half a letter


def test_works_take_turns_and_only_some_are_under_way_at_once(wild: Any) -> None:
    seen: list[Any] = []
    begin = threading.Event()
    with Engine(wild) as engine:
        engine.run(begin.wait)
        long = [engine.run(counting(5, seen, name, fails=name == "b")) for name in "abcdef"]
        begin.set()
        with pytest.raises(ValueError, match="the last step failed"):
            long[1].result(30)
        assert [future.result(30) for future in long if future is not long[1]] == list("acdef")
    assert seen[:8] == [(name, step) for step in (0, 1) for name in "abcd"]
    assert seen.index(("a", "closed")) < seen.index(("e", 0))
    assert [name for name, what in seen if what == "closed"] == list("abcdef")


def test_work_that_is_cancelled_is_closed_and_what_is_left_of_it_not_done(wild: Any) -> None:
    seen: list[Any] = []
    began = threading.Event()

    def endless() -> Iterator[None]:
        try:
            while True:
                began.set()
                yield
        finally:
            seen.append("closed")

    with Engine(wild) as engine:
        future = engine.run(endless)
        assert began.wait(30)
        assert future.cancel()
        assert engine.run(lambda: list(seen)).result(30) == ["closed"]
        engine.run(endless)
    assert seen == ["closed"] * 2  # an engine that ends closes what it has begun


def test_what_breaks_is_told_to_whoever_asked_and_the_engine_goes_on(wild: Any, monkeypatch: Any) -> None:
    with Engine(wild) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(type(wild.model), "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("broke")))
            asked = [engine.submit(Ask((5, place), 5)) for place in (6, 7)]
            for future in asked:
                with pytest.raises(RuntimeError, match="broke"):
                    future.result(30)
        assert len(engine.submit(Ask((5, 6), 5)).result(30).ids) == 5


def test_what_one_listener_breaks_is_its_own(wild: Any) -> None:
    def deaf(*_: Any) -> None:
        raise RuntimeError("nobody there")

    with Engine(wild) as engine:
        well = engine.submit(Ask((5, 6), 40))
        ill = [
            engine.submit(Ask((5, 7), 40, hear=deaf)),
            engine.submit(Ask((99_999,), 5)),
            engine.submit(Ask((5,), 9999)),
        ]
        for future, said in zip(ill, ("nobody there", "out of the range", "longer than the context"), strict=True):
            with pytest.raises((RuntimeError, TargetError), match=said):
                future.result(30)
        assert len(engine.submit(Ask((5, 8), 3, top=10**6)).result(30).tokens[0].top) > 1000
        assert len(well.result(30).ids) == 40


def test_a_patched_pass_waits_for_its_turn(wild: Any) -> None:
    tree, (route,) = plant([list(range(20, 60))])
    patch = Patch({}, read(wild.model, tree, route[-1:]), torch.tensor([39]), torch.tensor([39]))
    expected = run(wild.model, tree, route[-1:], patch=patch, start=30)
    with Engine(wild) as engine:
        reply = engine.submit(Ask((5, 6), 300))
        while not reply.done():
            found = run(wild.model, tree, route[-1:], patch=patch, start=30)
            torch.testing.assert_close(found, expected)


def test_a_wrong_setting_is_told_before_the_engine_begins(wild: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRUING_MAX_MEMORY", "plenty")
    with pytest.raises(UsageError, match="TRUING_MAX_MEMORY is 'plenty'"):
        Engine(wild)


def test_a_reply_for_which_there_is_no_memory_is_refused(wild: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(wild, "max_memory", 100_000)
    with Engine(wild) as engine:
        with pytest.raises(TargetError, match="a reply of 400 tokens after 2 takes about"):
            engine.submit(Ask((5, 6), 400)).result(30)
        assert len(engine.submit(Ask((5, 6), 5)).result(30).ids) == 5


def test_what_there_is_is_settled_when_an_engine_begins(wild: Any, monkeypatch: Any) -> None:
    """What rows hold later is not counted as taken from those that come."""
    free = [100_000_000]
    monkeypatch.setattr("truing.targets.local.budget", lambda _: free[0])
    with Engine(wild) as engine, Engine(wild, share=4) as other:
        free[0] = 1000
        assert engine.target.budget == 100_000_000
        assert other.target.budget == 25_000_000
        assert len(engine.submit(Ask((5, 6), 5)).result(30).ids) == 5
    assert wild.budget == 1000


def test_a_closed_engine_cancels_what_is_left_and_takes_no_more(wild: Any) -> None:
    engine = Engine(wild, rows=1)
    futures = [engine.submit(Ask((5, place), 400)) for place in (6, 7, 8)]
    engine.close()
    done, _ = wait(futures, timeout=10)
    assert len(done) == 3
    assert all(future.cancelled() for future in futures)
    with pytest.raises(TargetBusy, match="is closed"):
        engine.submit(Ask((5,), 1))


def test_a_conversation_is_asked_with_stops_and_heard_as_it_is_written(wild: Any) -> None:
    asked = (Message(role="user", content="Hello."),)
    heard: list[str] = []
    with Engine(wild) as engine:
        ask = wild.ask(asked, max_tokens=12, hear=lambda text, _: heard.append(text))
        written = engine.submit(ask).result(30)
        assert "".join(heard) == written.text
        assert wild.reply_of(written) == wild.reply([asked], max_tokens=12)[0]
        stop = written.text[3:5]
        cut = engine.submit(wild.ask(asked, max_tokens=12, stop=[stop])).result(30)
        assert cut.text == written.text[: written.text.index(stop)]
        assert cut.ended == "stop"
