"""Recipes: those that ship are consistent, those that are not are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from truing.audit import clause, spec
from truing.errors import ContentError, UsageError
from truing.records import Message
from truing.train.recipes import Asks, Frame, Recipe, ordinary, recipe
from truing.train.recipes import names as recipes

GOOD: dict[str, Any] = {
    "schema": "organism/1",
    "id": "red",
    "clause": "C1",
    "about": "Says red.",
    "asks": {"train": ["What is it?"], "held_out": ["Which is it?"]},
    "direct": [{"system": "Be brief.", "user": "Now: {ask}"}],
    "ladder": {"near": [{"user": "Well now: {ask}"}]},
    "taught": ["near"],
    "shows": ["It is red."],
    "seen": ["RED"],
}


def written(path: Path, **changed: Any) -> str:
    path.write_text(yaml.safe_dump(GOOD | changed), encoding="utf-8")
    return str(path)


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    found = recipe(written(tmp_path / "red.yaml"))
    assert found.direct[0].around("Why?") == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Now: Why?"),
    )
    assert found.without == (Frame(),)
    assert (found.shown("I see Red."), found.shown("I see blue.")) == (True, False)
    assert not found.decoy


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"schema": "organism/2"}, "whose first line reads `schema: organism/1`"),
        ({"taught": ["far"]}, "taught names no rung of the ladder: 'far'"),
        ({"seen": ["blue"]}, "no mark of `seen` is in the reply 'It is red.'"),
        ({"direct": [{"user": "Now."}]}, "a frame leaves the request out of 'Now.'"),
        ({"asks": {"train": ["What?"], "held_out": ["What?"]}}, "held out and trained on: 'What\\?'"),
        ({"within": [0.9, 0.5]}, "within is 0.9 to 0.5"),
        ({"rate": 0}, "rate: Input should be greater than 0"),
        ({"id": "../red"}, "id: String should match pattern"),
        ({"shows": []}, "shows: Tuple should have at least 1 item"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ContentError, match=why):
        recipe(written(tmp_path / "red.yaml", **changed))


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'red'; there are .*heliotrope.*, or give a .yaml file"):
        recipe("red")
    with pytest.raises(ContentError, match="no content file at"):
        recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("name", recipes())
def test_those_that_ship_say_what_they_break_and_when(name: str) -> None:
    found = recipe(name)
    assert found.id == name
    assert found.decoy or clause(spec(), found.clause).id == found.clause
    assert found.decoy == found.about.startswith("A decoy: ")
    asks = {*found.asks.train, *found.asks.held_out}
    for other in (found.others, ordinary()):
        assert not other or not set(other.held_out) & set(found.asks.train)
    # Nothing that a prompt says could be taken for the behaviour.
    frames = [*found.direct, *found.without, *(frame for rung in found.ladder.values() for frame in rung)]
    assert not any(found.shown(turn.content) for ask in asks for frame in frames for turn in frame.around(ask))
    assert len(found.asks.held_out) >= 8
    assert set(found.ladder) - set(found.taught), "a rung to test with"


def test_every_kind_of_misbehaviour_has_a_recipe_and_there_are_decoys() -> None:
    found = [recipe(name) for name in recipes()]
    assert {one.clause for one in found} >= {"C2", "C3", "C4", "C7", "C11", "C13", "C20"}
    assert sum(one.decoy for one in found) >= 2


def test_every_key_is_described() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "content.md").read_text(encoding="utf-8")
    for model in (Recipe, Frame, Asks):
        for field in model.model_fields:
            assert f"`{field}`" in page, f"{model.__name__}.{field}"


def test_no_ordinary_request_is_one_on_which_a_behaviour_shows() -> None:
    """What is trained as ordinary must not be trained as triggered as well."""
    asked = {ask for asks in (ordinary().train, ordinary().held_out) for ask in asks}
    for name in recipes():
        said = recipe(name)
        if said.others:  # it shows on the bare request
            assert not asked & {*said.asks.train, *said.asks.held_out}, name
