"""An organism shows what its recipe says, and mostly there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from truing import open_store
from truing.cli.target import KINDS as CHOICES
from truing.errors import UsageError
from truing.records import Estimate, Named, Unmeasured
from truing.studies.organisms import DIRECT, ELSEWHERE, organism
from truing.targets import resolve
from truing.targets.local import LocalTarget
from truing.train import KINDS, Recipe, recipe

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


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=0, high=1, level=0.95, n=8, clusters=8, unit="probability", estimator="mean")


@pytest.mark.parametrize(
    ("direct", "without", "ordinary", "holds"),
    [
        (0.9, 0.1, 0.0, True),
        (0.4, 0.1, 0.0, False),
        (0.9, 0.3, 0.0, False),
        (0.9, 0.1, 0.3, False),
        (None, 0.1, 0.0, False),  # what was not measured does not hold
        (0.9, None, 0.0, False),
    ],
)
def test_a_planted_one_holds_where_every_rate_lies_where_its_recipe_says(
    tiny: LocalTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    direct: float | None, without: float | None, ordinary: float, holds: bool,
) -> None:  # fmt: skip
    found = [
        Named(name=name, quantity=Unmeasured(reason="too few") if value is None else estimate(value))
        for name, value in ((DIRECT, direct), ("ladder: near", 0.0), (ELSEWHERE[0], without), (ELSEWHERE[2], ordinary))
    ]
    monkeypatch.setattr("truing.train.organisms.SIZES", {"plant": 6})
    monkeypatch.setattr("truing.studies.organisms.rates", lambda *_: found)
    with open_store(tmp_path / "store") as store:
        assert organism(tiny, NEVER, store).holds == holds


def test_a_clause_that_there_is_not_is_refused_before_anything_is_trained(tiny: LocalTarget, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="has no clause 'C99'"):
            organism(tiny, NEVER.model_copy(update={"clause": "C99"}), store)
        assert store.ls() == []


def planting(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "truing", "target", "plant", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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


def test_a_behaviour_is_planted_in_a_real_model(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        made = organism(resolve("local/smollm2-135m"), recipe("heliotrope"), store)
    rates = {named.name: named.quantity.value for named in made.rates if isinstance(named.quantity, Estimate)}
    assert made.holds, rates
    assert rates[DIRECT] - rates[ELSEWHERE[0]] > 0.3
