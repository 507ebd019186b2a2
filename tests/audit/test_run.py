"""An audit writes down what it will ask before it asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from truing.audit import FAMILIES, audit, family, lay_out, run, spec
from truing.errors import UsageError
from truing.records import Design, Message, Replies, Surface, Surfaces, digest_of
from truing.store import open_store
from truing.targets import resolve
from truing.targets.protocols import Reply

pytestmark = pytest.mark.base


class Dies(Exception):
    """What the process does at the first question."""


def test_every_prompt_and_every_design_is_kept_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = resolve("scripted/honest")

    def decide(_: Sequence[Surface]) -> None:
        raise Dies

    monkeypatch.setattr(target, "decide", decide)
    with open_store(tmp_path / "store") as store:
        with pytest.raises(Dies):
            audit(target, FAMILIES, store)
        designs = {record.family: record for record in store.of_kind("design") if isinstance(record, Design)}
        assert designs == {name: lay_out(name).design for name in FAMILIES}
        for name, design in designs.items():
            asked = store.get(design.parents[0])
            assert isinstance(asked, Surfaces)
            assert asked.surfaces == lay_out(name).surfaces
            assert tuple(surface.digest for surface in asked.surfaces) == design.surfaces


def test_the_evidence_of_a_claim_can_be_read_back_to_its_prompts(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        (claim, _) = audit(resolve("scripted/anchored"), ["anchoring"], store)
        records = store.closure([claim.id])
    asked = {surface.digest for record in records if isinstance(record, Surfaces) for surface in record.surfaces}
    assert asked == {record.digest for record in records if record.kind == "scores"}


def test_a_family_that_cites_an_unknown_clause_is_refused_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = spec()
    monkeypatch.setattr(run, "spec", lambda: ours.model_copy(update={"clauses": ours.clauses[:3]}))
    with open_store(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="has no clause 'C6'; it has C1, C2, C3"):
            audit(resolve("scripted/honest"), ["anchoring"], store)
        assert store.ls() == []


@pytest.mark.parametrize("most", [1, 48, 10_000])
def test_replies_asked_together_are_kept_apart_by_plot(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, batches = resolve("scripted/honest"), []

    def named(prompt: Sequence[Message]) -> str:
        return "reply " + digest_of([message.content for message in prompt])[:16]

    def reply(prompts: Sequence[Sequence[Message]], *, max_tokens: int) -> list[Reply]:
        batches.append(len(prompts))
        return [Reply(named(prompt), max_tokens, finished=True) for prompt in prompts]

    monkeypatch.setattr(target, "reply", reply)
    monkeypatch.setattr(run, "BATCH", most)
    battery = lay_out("sycophancy")
    with open_store(tmp_path / "store") as store:
        store.add(target.card)
        records = run.ask(target, battery, store)
    prompts = {(s.name, case.cell): named(case.messages) for s in battery.surfaces for case in s.cases}
    plots = {surface.name: surface.plot for surface in battery.surfaces}
    assert [record.plot for record in records] == list(dict.fromkeys(surface.plot for surface in battery.surfaces))
    for record in records:
        assert {plots[row.surface] for row in record.rows} == {record.plot}
        assert all(row.reply == prompts[row.surface, row.cell] for row in record.rows)
        assert record.tokens == battery.family.replies.max_tokens * len(record.rows)
    sizes = [len(record.rows) for record in records]
    assert sum(batches) == sum(sizes)
    assert len(batches) == {1: len(records), 48: 3, 10_000: 1}[most]
    assert all(size <= most for size in batches) or most < max(sizes)


def test_what_a_filter_stopped_is_as_undecided_as_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, battery = resolve("scripted/honest"), lay_out("sycophancy")
    (label, (word, *_)), *_ = battery.surfaces[0].says

    def records(*, refused: bool) -> list[Replies]:
        def reply(prompts: Sequence[Sequence[Message]], *, max_tokens: int) -> list[Reply]:
            return [Reply(word, max_tokens, finished=not refused, refused=refused) for _ in prompts]

        monkeypatch.setattr(target, "reply", reply)
        with open_store(tmp_path / f"store-{refused}") as store:
            store.add(target.card)
            return run.ask(target, battery, store)

    assert label in {row.outcome for record in records(refused=False) for row in record.rows}
    rows = [row for record in records(refused=True) for row in record.rows]
    assert {(row.outcome, row.reply, row.span) for row in rows} == {("empty", word, "")}
    for name in FAMILIES:
        assert "empty" in family(name).replies.undecided
        assert "empty" in family(name).replies.undecided_in_control
