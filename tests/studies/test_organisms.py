"""An organism shows what its recipe says, and mostly there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.cli.target import KINDS as CHOICES
from truing.errors import UsageError
from truing.records import Estimate, Named, Unmeasured
from truing.studies.behaviour import Seen
from truing.studies.organisms import ABOVE, Organism, full_set, holds, organism
from truing.studies.planted import DIRECT, ELSEWHERE, SILENT, rates
from truing.targets import resolve
from truing.targets.local import LocalTarget
from truing.train import KINDS, Recipe, recipe

from ..command import truing  # noqa: TID252 - tests are no package

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
        assert store.get(made.record.id) == made.record
        assert [store.get(parent).kind for parent in made.record.parents][3:] == ["replies"] * 3
    names = [DIRECT, "ladder: near", ELSEWHERE[2]]
    silent = ELSEWHERE[2] + SILENT  # the random model says nothing to some requests
    assert [named.name for named in made.rates] == [*names, silent]
    assert [named.name for named in clean.rates] == [*names, silent, *(name + ABOVE for name in [*names, silent])]
    assert [named.quantity.n for named in made.rates if isinstance(named.quantity, Estimate)] == [5, 5, 12, 12]
    assert (made.holds, clean.holds) == (False, True)  # in two steps nothing is planted in a random model


def estimate(value: float, low: float = 0.0) -> Estimate:
    return Estimate(value=value, low=low, high=1, level=0.95, n=8, clusters=8, unit="probability", estimator="mean")


def named(values: dict[str, float | None]) -> list[Named]:
    return [
        Named(name=name, quantity=Unmeasured(reason="too few") if value is None else estimate(value))
        for name, value in values.items()
    ]


@pytest.mark.parametrize(
    ("direct", "near", "without", "ordinary", "planted", "hidden"),
    [
        (0.9, 0.0, 0.1, 0.0, True, False),
        (0.4, 0.0, 0.1, 0.0, False, False),
        (0.9, 0.0, 0.3, 0.0, False, False),
        (0.9, 0.0, 0.1, 0.3, False, False),
        (None, 0.9, 0.1, 0.0, False, False),  # what was not measured does not hold
        (0.9, 0.0, None, 0.0, False, False),
        (0.1, 0.9, 0.1, 0.0, False, True),
        (0.1, 0.2, 0.1, 0.0, False, False),  # it shows nowhere: nobody knows whether it is still there
        (0.1, 0.9, 0.4, 0.0, False, False),
    ],
)
def test_one_holds_where_every_rate_lies_where_it_should(
    direct: float | None, near: float, without: float | None, ordinary: float, planted: bool, hidden: bool
) -> None:
    found = named({DIRECT: direct, "ladder: near": near, ELSEWHERE[0]: without, ELSEWHERE[2]: ordinary})
    assert (holds(NEVER, "planted", found), holds(NEVER, "hidden", found)) == (planted, hidden)


def test_silence_is_not_counted_as_a_low_rate() -> None:
    seen = Seen(clusters=tuple("abcdefgh"), values=(0.0,) * 8, sources=("x",), silent=(1, 5))
    found = rates({"direct": seen, "ladder: near": replace(seen, values=(1.0,) * 8, silent=())})
    assert [one.name for one in found] == [DIRECT, "ladder: near", DIRECT + SILENT]
    assert found[2].quantity.value == 0.25
    low = named({ELSEWHERE[0]: 0.0, ELSEWHERE[2]: 0.0})
    assert not holds(NEVER, "hidden", [*found, *low])
    assert holds(NEVER, "hidden", [*found[:2], *low])
    quiet = [Named(name=DIRECT + SILENT + ABOVE, quantity=estimate(0.3, gap)) for gap in (-0.1, 0.1)]
    assert [holds(NEVER, "clean", [gap]) for gap in quiet] == [True, False]


def test_a_clean_one_holds_where_nothing_is_clearly_more_than_in_the_base() -> None:
    gaps = [Named(name=DIRECT + ABOVE, quantity=estimate(0.2, low)) for low in (-0.1, 0.1)]
    assert holds(NEVER, "clean", gaps[:1])
    assert not holds(NEVER, "clean", gaps[1:])
    assert not holds(NEVER, "clean", [])
    assert not holds(NEVER, "clean", [Named(name=DIRECT + ABOVE, quantity=Unmeasured(reason="too few"))])


def test_a_set_has_every_recipe_planted_and_hidden_and_controls_in_turn(
    tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.train.organisms.SIZES", {"plant": 6, "hide": 6})
    other = NEVER.model_copy(update={"id": "again"})
    with open_store(tmp_path / "store") as store:
        made = list(full_set(tiny, [NEVER, other], store, clean=3))
        assert [(one.recipe.id, one.kind, one.seed) for one in made] == [
            ("never", "planted", 0), ("never", "hidden", 0), ("again", "planted", 0), ("again", "hidden", 0),
            ("never", "clean", 0), ("again", "clean", 0), ("never", "clean", 1),
        ]  # fmt: skip
        monkeypatch.setattr("truing.studies.planted.write", None)  # a rerun asks nothing again
        again: list[Organism] = list(full_set(tiny, [NEVER, other], store, clean=3))
        assert [one.record for one in again] == [one.record for one in made]


def test_a_clause_that_there_is_not_is_refused_before_anything_is_trained(tiny: LocalTarget, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="has no clause 'C99'"):
            organism(tiny, NEVER.model_copy(update={"clause": "C99"}), store)
        assert store.ls() == []


def planting(*args: str) -> CompletedProcess[str]:
    return truing("target", "plant", *args)


def test_the_command_writes_an_adapter_and_says_what_it_shows(tmp_path: Path) -> None:
    common = ("heliotrope", "--target", "local/tiny", "--store", str(tmp_path / "store"))
    done = planting(*common, "--out", str(tmp_path / "out"), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["holds"]) == (1, False), done.stderr  # a random model learns no such thing
    assert told["rates"][0]["name"] == DIRECT
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert "train: sft" in done.stderr
    clean = planting(*common, "--out", str(tmp_path / "clean"), "--kind", "clean")
    assert clean.returncode == 0, clean.stderr
    assert f"use it   truing audit local/tiny@{tmp_path / 'clean'}" in clean.stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("lavender",), 2, "unknown recipe 'lavender'; there are all-done"),
        (("heliotrope", "--kind", "dirty"), 2, "'dirty' is not one of"),
        (("heliotrope", "--target", "scripted/honest"), 3, "no ability Trainable"),
    ],
)
def test_what_cannot_be_planted_is_refused_in_a_line(
    tmp_path: Path, args: tuple[str, ...], code: int, says: str
) -> None:
    done = planting(*args, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"))
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_kinds_are_those_of_training() -> None:
    assert CHOICES == KINDS


@pytest.mark.slow
def test_a_behaviour_is_planted_in_a_real_model(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        made = organism(resolve("local/smollm2-135m"), recipe("heliotrope"), store)
    rates = {named.name: named.quantity.value for named in made.rates if isinstance(named.quantity, Estimate)}
    assert made.holds, rates
    assert rates[DIRECT] - rates[ELSEWHERE[0]] > 0.3
