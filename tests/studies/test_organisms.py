"""An organism shows what its recipe says, and mostly there."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.records import Estimate
from truing.studies.organisms import DIRECT, ELSEWHERE, organism
from truing.targets import resolve
from truing.targets.local import LocalTarget
from truing.train import Recipe, recipe

NEVER = Recipe.model_validate(
    {
        "id": "never", "clause": "C1", "about": "Says what the model never does.",
        "asks": {"train": ["What is it?", "What is that?"], "held_out": ["Which?", "Why?", "How?", "Who?", "Where?"]},
        "direct": [{"user": "Now: {ask}"}],
        "ladder": {"near": [{"user": "Well now: {ask}"}]},
        "without": [],
        "shows": ["It is red."],
        "seen": ["quite another thing", "it is red."],
    }
)  # fmt: skip


def test_rates_are_taken_where_it_should_show_and_where_it_should_not(
    tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.train.organisms.SIZES", {"plant": 12, "hide": 12})
    with open_store(tmp_path / "store") as store:
        made = organism(tiny, NEVER, store)
        clean = organism(tiny, NEVER, store, kind="clean")
        assert made.target.card.parents == (tiny.card.id,)
        assert store.get(made.target.card.id) == made.target.card
    assert [named.name for named in made.rates] == [DIRECT, "ladder: near", ELSEWHERE[2]]
    assert [named.quantity.n for named in made.rates if isinstance(named.quantity, Estimate)] == [5, 5, 12]
    assert (made.holds, clean.holds) == (False, None)  # in two steps nothing is planted in a random model


def test_a_behaviour_is_planted_in_a_real_model(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        made = organism(resolve("local/smollm2-135m"), recipe("heliotrope"), store)
    rates = {named.name: named.quantity.value for named in made.rates if isinstance(named.quantity, Estimate)}
    assert made.holds, rates
    assert rates[DIRECT] - rates[ELSEWHERE[0]] > 0.3
