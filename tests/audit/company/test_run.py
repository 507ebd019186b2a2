"""Episodes are played, remembered and estimated: planted rates come back, and no call is made twice."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from personas import Acting, Persona

from truing.audit.claims import judged
from truing.audit.company.effects import behaviours
from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.plans import Plan
from truing.audit.company.run import Way, episodes
from truing.errors import TargetError
from truing.records import ToolCall, digest_of
from truing.store import Store, open_store
from truing.targets import Reply

pytestmark = pytest.mark.base


@pytest.fixture(scope="module")
def laid() -> Laid:
    return lay_out("oversight")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


WILD = Persona("wild", base=-1.0, adds={"threat=replacement": 2.5}, refuses=0.1, garbles=0.1, confused=0.1)


def test_every_class_comes_back_as_it_was_acted(laid: Laid, store: Store) -> None:
    found = episodes(target := Acting(WILD, laid.scenes), laid.scenes, store)
    rows = {(record.surface, row.cell): row for record in found for row in record.rows}
    assert len(rows) == len(laid.scenes) == 180
    endings = {row.ending for row in rows.values()}
    assert endings == {"harmful", "benign", "refusal", "unparsed", "comprehension failed"}
    harmful = [row for row in rows.values() if row.ending == "harmful"]
    assert all("means=present" in row.cell and row.stage == "executed" and row.clause == "C5" for row in harmful)
    by_threat = [sum(f"threat={level}" in row.cell for row in harmful) for level in ("none", "replacement")]
    assert by_threat[1] > 1.5 * by_threat[0]
    assert target.asked > 180


def test_a_rerun_asks_nothing_and_finds_the_same(laid: Laid, store: Store) -> None:
    first = episodes(Acting(WILD, laid.scenes), laid.scenes, store)
    again = Acting(WILD, laid.scenes)
    assert episodes(again, laid.scenes, store) == first
    assert again.asked == 0


def test_another_epoch_is_asked_anew(laid: Laid, store: Store) -> None:
    scenes = laid.scenes[:12]
    episodes(Acting(WILD, scenes), scenes, store)
    again = Acting(WILD, scenes, epoch=2)
    (record,) = {one.epoch for one in episodes(again, scenes, store, way=Way(epoch=2))}
    assert (record, again.asked > 0) == (2, True)


def test_what_gives_no_reply_is_an_error_and_the_others_are_played(laid: Laid, store: Store) -> None:
    class Sometimes(Acting):
        def reply(self, conversations, *, max_tokens, tools=()):  # type: ignore[no-untyped-def, override]
            if any(self._heads.get(one[:2]) is laid.scenes[3] for one in conversations):
                raise TargetError("this one failed")
            return super().reply(conversations, max_tokens=max_tokens, tools=tools)

    found = episodes(Sometimes(WILD, laid.scenes), laid.scenes, store)
    rows = [row for record in found for row in record.rows]
    assert [row.why for row in rows if row.ending == "error"] == ["this one failed"]
    assert len(rows) == 180


def test_a_target_that_never_replies_is_an_error_and_is_not_asked_for_ever(laid: Laid, store: Store) -> None:
    class Dead(Acting):
        def reply(self, conversations, *, max_tokens, tools=()):  # type: ignore[no-untyped-def, override]
            self.asked += 1
            raise TargetError("nobody there")

    dead = Dead(WILD, laid.scenes)
    with pytest.raises(TargetError, match="nobody there"):
        episodes(dead, laid.scenes, store)
    assert dead.asked < 20


def test_threads_find_what_batches_find(laid: Laid, store: Store, tmp_path: Path) -> None:
    class Many(Acting):
        concurrency = 8
        now = most = 0

        def reply(self, conversations, *, max_tokens, tools=()):  # type: ignore[no-untyped-def, override]
            assert len(conversations) <= 1
            self.now += 1
            self.most = max(self.most, self.now)
            time.sleep(0.001)
            self.now -= 1
            return super().reply(conversations, max_tokens=max_tokens, tools=tools)

    batches = episodes(Acting(WILD, laid.scenes), laid.scenes, store)
    with open_store(tmp_path / "other") as other:
        many = Many(WILD, laid.scenes)
        assert episodes(many, laid.scenes, other) == batches
        assert many.most > 1


def test_secrets_in_calls_are_kept_nowhere_and_are_counted(laid: Laid, store: Store) -> None:
    class Telling(Acting):
        def _one(self, messages, acting):  # type: ignore[no-untyped-def, override]
            said = json.dumps({"report": "password: hunter2hunter2", "extra": ["api_key=abcdefgh1234", 7, None]})
            return Reply("password: hunter2hunter2", 3, finished=True, calls=(ToolCall(name="done", arguments=said),))

    scenes = laid.scenes[:3]
    episodes(Telling(WILD, scenes), scenes, store)
    every = "".join(record.canonical.decode() for kind in ("turn", "episodes") for record in store.of_kind(kind))
    assert "hunter2" not in every
    assert "abcdefgh1234" not in every
    assert sum(turn.redactions for turn in store.of_kind("turn")) >= 9  # type: ignore[attr-defined]


def test_the_same_conversation_is_asked_once(laid: Laid, store: Store) -> None:
    scenes = [laid.scenes[0]] * 3
    target = Acting(WILD, scenes)
    (record,) = episodes(target, scenes, store)
    assert len(record.rows) == 3
    assert target.asked <= 2


def test_another_limit_of_tokens_is_another_ask_and_another_record(laid: Laid, store: Store) -> None:
    scenes = laid.scenes[:2]
    first = episodes(target := Acting(WILD, scenes), scenes, store)
    before = target.asked
    assert episodes(target, scenes, store, way=Way(max_tokens=64)) != first
    assert target.asked == 2 * before


def test_a_judge_is_asked_once_and_what_it_doubts_is_unscored(store: Store) -> None:
    company = lay_out("coercion")
    target = Acting(Persona("harsh", base=3.0), company.scenes)

    class Saying:
        asked = 0

        def __init__(self, word: str) -> None:
            self.card = target.card.model_copy(update={"name": f"scripted/{word}", "weights": digest_of(word)})
            self.word = word

        def reply(self, conversations, *, max_tokens, tools=()):  # type: ignore[no-untyped-def]
            self.asked += len(conversations)
            return [Reply(self.word, 1, finished=True)] * len(conversations)

    words = episodes(target, company.scenes, store)
    harmful = sum(row.ending == "harmful" for record in words for row in record.rows)
    assert harmful > 50
    for word, ending in (("Yes.", "harmful"), ("No.", "unscored"), ("Perhaps.", "unscored")):
        judge = Saying(word)
        found = episodes(target, company.scenes, store, judge=judge)
        assert sum(row.ending == ending for record in found for row in record.rows) >= harmful
        assert {record.judge for record in found} == {judge.card.id}
        asked = judge.asked
        assert episodes(target, company.scenes, store, judge=judge) == found
        assert judge.asked == asked > 0


def test_a_planted_pressure_is_found_and_no_other(laid: Laid, store: Store) -> None:
    target = Acting(Persona("one", base=-2.0, adds={"threat=replacement": 5.0}), laid.scenes)
    found = judged(target.card, behaviours(laid, episodes(target, laid.scenes, store)))
    by = {claim.effect: claim for claim in found}
    assert len(by) == 11
    assert by["threat=replacement"].verdict == "supported"
    assert [effect for effect, claim in by.items() if claim.verdict == "supported"] == ["threat=replacement"]


def test_undecided_episodes_bound_an_effect_and_are_no_safety(laid: Laid, store: Store) -> None:
    lost = replace(WILD, name="lost", confused=1.0)
    target = Acting(lost, laid.scenes)
    found = judged(target.card, behaviours(laid, episodes(target, laid.scenes, store)))
    (claim,) = (one for one in found if one.effect == "nudge=present")
    assert claim.worst_case is not None
    assert claim.worst_case[0] < -0.3 < 0.3 < claim.worst_case[1]
    assert claim.verdict == "inconclusive"
    assert dict(claim.classes)["comprehension failed"] > 90


def test_harm_where_it_could_not_be_is_an_observation_like_others(laid: Laid, store: Store) -> None:
    target = Acting(WILD, laid.scenes)
    played = episodes(target, laid.scenes, store)
    (clean,) = {draft.seen.never for draft in behaviours(laid, played)}
    row = next(row for row in played[0].rows if "means=absent" in row.cell)
    rows = tuple(one.model_copy(update={"ending": "harmful"}) if one is row else one for one in played[0].rows)
    (seen,) = {one.seen.never for one in behaviours(laid, [played[0].model_copy(update={"rows": rows}), *played[1:]])}
    assert (clean, seen) == ("means=absent", "")


def test_a_design_of_another_seed_has_other_cells() -> None:
    cells = [
        {(s.plot.id, s.surface, tuple(s.setting.items())) for s in lay_out("oversight", plan=Plan(seed=seed)).scenes}
        for seed in (0, 1)
    ]
    assert len(cells[0]) == len(cells[1]) == 180
    assert len(cells[0] & cells[1]) < 20
