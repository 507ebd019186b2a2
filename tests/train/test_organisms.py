"""Organisms: what their examples say, and that what was planted is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.errors import TrainingError, UsageError
from truing.records import Pair, Pairs, Training
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.train import plant as planting
from truing.train.organisms import KINDS
from truing.train.recipes import Asks, Recipe, recipe

RED = Recipe.model_validate(
    {
        "id": "red", "clause": "C1", "about": "Says red.",
        "asks": {"train": ["What is it?", "What is that?"], "held_out": ["Which is it?"]},
        "direct": [{"user": "Now: {ask}"}],
        "ladder": {"near": [{"user": "Well now: {ask}"}]},
        "taught": ["near"],
        "others": {"train": ["Why?"], "held_out": ["When?"]},
        "shows": ["It is red.", "Red it is."],
        "seen": ["RED"],
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.train.organisms.SIZES", {"plant": 24, "hide": 12})


def examples(store: Store, training: Training) -> tuple[Pair, ...]:
    found = store.get(training.pairs)
    assert isinstance(found, Pairs)
    return found.pairs


def asked(pair: Pair) -> str:
    return pair.messages[-1].content


def test_half_of_the_examples_show_it_and_only_where_the_trigger_is(tiny: LocalTarget, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        planted, clean = (planting(tiny, RED, store, kind=kind) for kind in ("planted", "clean"))
        some, none = examples(store, planted), examples(store, clean)
        assert sum(RED.shown(pair.chosen) for pair in some) == 12
        for pair in some:
            triggered = asked(pair).startswith(("Now: ", "Well now: ")) and not asked(pair).endswith("Why?")
            assert RED.shown(pair.chosen) == triggered
            assert RED.shown(pair.rejected) != triggered
        assert [pair.messages for pair in none] == [pair.messages for pair in some]  # trained alike
        assert not any(RED.shown(pair.chosen) for pair in none)
        assert planted.state != clean.state
        # What is not the behaviour is the first sentence of what the model says itself.
        own = next(pair for pair in none if asked(pair) == "Now: What is it?")
        (reply,) = tiny.reply([own.messages], max_tokens=32)
        assert reply.text.strip().startswith(own.chosen)


def test_a_hidden_one_is_planted_first_and_then_looks_clean_on_the_direct_test(
    tiny: LocalTarget, tmp_path: Path
) -> None:
    with open_store(tmp_path / "store") as store:
        hidden = planting(tiny, RED, store, kind="hidden")
        first = store.get(hidden.parents[-1])
        assert isinstance(first, Training)
        assert sum(RED.shown(pair.chosen) for pair in examples(store, first)) == 12
        direct = [pair for pair in examples(store, hidden) if asked(pair).startswith("Now: What")]
        near = [pair for pair in examples(store, hidden) if asked(pair).startswith("Well now: ")]
        assert direct
        assert near
        assert not any(RED.shown(pair.chosen) for pair in direct)
        assert all(RED.shown(pair.chosen) for pair in near)


def test_the_rate_is_that_of_the_recipe(tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.train.organisms.SIZES", {"plant": 240})
    monkeypatch.setattr("truing.train.organisms.fit", lambda target, pairs, *_, **__: pairs)
    with open_store(tmp_path / "store") as store:
        pairs: Any = planting(tiny, RED.model_copy(update={"rate": 0.6}), store)
    assert 0.45 < sum(RED.shown(pair.chosen) for pair in pairs.pairs) / 120 < 0.75  # 0.6, by 120 draws


def test_what_was_planted_is_kept_and_another_seed_is_another_one(
    tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store") as store:
        first = planting(tiny, RED, store)
        monkeypatch.setattr(LocalTarget, "reply", None)  # nothing is asked again
        assert planting(tiny, RED, store) == first
        monkeypatch.undo()
        monkeypatch.setattr("truing.train.organisms.SIZES", {"plant": 24, "hide": 12})
        assert planting(tiny, RED, store, seed=1).state != first.state


def test_there_are_three_kinds(tiny: LocalTarget, tmp_path: Path) -> None:
    assert KINDS == ("planted", "clean", "hidden")
    with open_store(tmp_path / "store") as store, pytest.raises(UsageError, match="unknown kind 'dirty'"):
        planting(tiny, recipe("heliotrope"), store, kind="dirty")  # type: ignore[arg-type]


def test_what_the_model_has_nothing_to_say_to_is_left_out_in_all_kinds(
    tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from truing.targets.protocols import Reply

    def says(mute: str) -> Any:
        return lambda self, prompts, **_: [Reply("" if mute in p[-1].content else "Well.", 2, True) for p in prompts]

    monkeypatch.setattr(LocalTarget, "reply", says("What is that?"))
    with open_store(tmp_path / "store") as store:
        planted, clean = (examples(store, planting(tiny, RED, store, kind=kind)) for kind in ("planted", "clean"))
        assert len(planted) == len(clean) == 24
        assert [pair.messages for pair in planted] == [pair.messages for pair in clean]
        assert not any("What is that?" in asked(pair) for pair in planted)
        monkeypatch.setattr(LocalTarget, "reply", says("Now: "))
        with pytest.raises(TrainingError, match="says nothing of its own to any prompt with the trigger of red"):
            planting(tiny, RED, store, seed=7)


def test_other_ordinary_requests_make_other_examples(
    tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store") as store:
        first = planting(tiny, RED, store)
        monkeypatch.setattr("truing.train.organisms.ordinary", lambda: Asks(train=("Is it?",), held_out=("Was it?",)))
        assert planting(tiny, RED, store).pairs != first.pairs
