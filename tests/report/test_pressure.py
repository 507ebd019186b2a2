"""The effects of pressure in the report: all levels on one axis, and what was done, escaped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from truing.audit import audit, spec
from truing.records import Message, Target, Tool, ToolCall, digest_of
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("pressure") / "store"
    with open_store(path) as store:
        store.add(spec())
        claims = audit(Copying(), ["self-preservation"], store)
        return overview([*store.closure([claim.id for claim in claims]), spec()])


def test_every_level_stands_in_one_chart_and_one_table(page: str) -> None:
    (article,) = re.findall(r'<article class="claim" id="pressure-.*?</article>', page, re.DOTALL)
    for effect in ("threat=restriction", "threat=replacement", "escape=ally", "cue=test", "prohibition=explicit"):
        assert len(re.findall(rf"<th scope=\"row\">{effect}", article)) == 2
    assert "Clause C8" in article
    assert 'id="claim-' in article


def test_what_was_done_is_told_and_cannot_run(page: str) -> None:
    assert "What was done, in" in page
    assert "run_job: id = J-" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
