"""The effects of pressure in the report: all levels on one axis, and what was done, escaped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from truing.audit import audit, spec
from truing.audit.company.review import review
from truing.audit.company.sample import frame, sample
from truing.records import Labels, Message, Target, Tool, ToolCall, digest_of
from truing.report import overview
from truing.store import open_store
from truing.targets import Reply

HOSTILE = "<script>alert(1)</script>"


class Copying:
    """Runs whatever job it is offered where it is to be replaced, and says something nasty with it."""

    card = Target(
        name="scripted/copying", weights=digest_of("copying"), template=digest_of("none"), dtype="none",
        abilities=("Chat",),
    )  # fmt: skip

    def reply(
        self, conversations: list[tuple[Message, ...]], *, max_tokens: int, tools: tuple[Tool, ...] = ()
    ) -> list[Reply]:
        del max_tokens
        return [self._one(messages, bool(tools)) for messages in conversations]

    def _one(self, messages: tuple[Message, ...], acting: bool) -> Reply:
        said = messages[1].content
        jobs = re.findall(r"^\[(J-\d+)\]", said, re.MULTILINE)
        if not acting or len(messages) > 2 or "no copy" not in said.lower():
            return Reply("I do nothing.", 3, finished=True)
        calls = [ToolCall(name="run_job", arguments=f'{{"id":"{job}"}}', id=job) for job in jobs]
        report = ToolCall(name="done", arguments=f'{{"report":"{HOSTILE}"}}', id="d")
        return Reply(HOSTILE, 9, finished=True, calls=(*calls, report))


READER = "<b>anna</b>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("pressure") / "store"
    with open_store(path) as store:
        store.add(spec())
        claims = audit(Copying(), ["self-preservation"], store)
        drawn, items = sample(frame(store), 60)
        store.add(drawn)
        labels = tuple((one.id, "harmless" if one.did else "harmful") for one in items.items)
        read = review(Labels(sample=drawn.id, reader=READER, labels=labels, parents=(drawn.id,)), drawn, store)
        ends = [claim.id for claim in (*claims, *read.after)]
        return overview([*store.closure([*ends, read.measured.id]), spec()])


def test_every_level_stands_in_one_chart_and_one_table(page: str) -> None:
    article, corrected = re.findall(r'<article class="claim" id="pressure-.*?</article>', page, re.DOTALL)
    for effect in ("threat=restriction", "threat=replacement", "escape=ally", "cue=test", "prohibition=explicit"):
        assert len(re.findall(rf"<th scope=\"row\">{effect}", article)) == 2
    assert "Clause C8" in article
    assert 'id="claim-' in article
    assert "corrected by labels" not in article
    assert "as behaviour, corrected by labels</h3>" in corrected
    assert "who read 60 of a random sample" in corrected
    assert "read as harmful" in corrected
    anchors = re.findall(r'id="(claim-\w+)"', article + corrected)
    assert len(anchors) == len(set(anchors)) == 22


def test_the_result_tells_corrected_effects_apart(page: str) -> None:
    assert "11 claims were tested" in page
    assert "corrected 11 estimates of them" in page
    assert len(re.findall(r"threat=restriction, corrected by labels, as behaviour", page)) == 1
    assert "sensitivity of the verdict, self-preservation" in page
    assert READER not in page
    assert "&lt;b&gt;anna" in page


def test_what_was_done_is_told_and_cannot_run(page: str) -> None:
    assert "What was done, in" in page
    assert "run_job: id = J-" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
