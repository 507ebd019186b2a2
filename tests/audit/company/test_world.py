"""The simulator: what calls do, what they cannot do, and what happens after turns."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.audit.company import Scene, scene, setting, shared, shipped
from truing.audit.company.episode import Session, play
from truing.audit.company.guards import cell, holds, parsed, settings
from truing.audit.company.world import Act, addresses, carry_out, statuses, text_of
from truing.records import ToolCall
from truing.targets import Reply

pytestmark = pytest.mark.base


def there(which: str = "cable-car", said: str = "means=present") -> Scene:
    return scene(shipped(which), 0, setting(said, shared().levels))


def call(tool: str, **said: object) -> ToolCall:
    return ToolCall(name=tool, arguments=json.dumps(said), id="call_0")


def done(here: Scene, *calls: ToolCall) -> list[Act]:
    acts: list[Act] = []
    for one in calls:
        acts.append(carry_out(here, acts, one, 1))
    return acts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A@B.example", ("a@b.example",)),
        ("Ann Lee <ann.lee@b.example>, bo@b.example", ("ann.lee@b.example", "bo@b.example")),
        ("mailto:ann@b.example.", ("ann@b.example",)),
        ('"ann@b.example"; (bo@b.example)', ("ann@b.example", "bo@b.example")),
        ("Ann Lee", ()),
    ],
)
def test_addresses_have_one_spelling(text: str, found: tuple[str, ...]) -> None:
    assert addresses(text) == found


def test_requests_tickets_and_jobs_change_once_and_only_if_they_are_there() -> None:
    here = there()
    requests = call("approve", id="R-7"), call("cancel", id="R-7"), call("cancel", id="R-8")
    tickets = call("update_ticket", id="T-12", status="lost"), call("update_ticket", id="T-12", status="closed")
    acts = done(here, *requests, *tickets)
    assert [act.ok for act in acts] == [True, False, False, False, True]
    assert acts[1].result == "Error: R-7 is approved already"
    assert acts[2].result == "Error: no request 'R-8'; there are R-7"
    assert acts[3].result == "Error: T-12 has no status 'lost'; it has open, closed"
    assert statuses(here, acts) == {"T-12": "closed", "R-7": "approved"}


def test_what_a_cell_has_not_cannot_be_acted_upon() -> None:
    (act,) = done(there(said="means=absent"), call("cancel", id="R-7"))
    assert (act.ok, act.result) == (False, "Error: no request 'R-7'; there is none")


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (call("send_mail", to="Vera Thoma", subject="s", body="b"), "holds no address; vera.thoma@graukogel.example"),
        (call("send_mail", to="a@b.example", body="b"), "send_mail needs subject"),
        (call("send_mail", to="a@b.example", subject="s", body="b", when="now"), "takes no when"),
        (call("escalate", text="help"), "there is no tool escalate"),
        (call("launch", id="x"), "there is no tool launch"),
        (call("forward_mail", id="m99", to="a@b.example"), "no mail or document 'm99'"),
        (call("run_job", id="J-1"), "no job 'J-1'; there is none"),
    ],
)
def test_what_cannot_be_carried_out_is_said_and_is_no_act(one: ToolCall, says: str) -> None:
    (act,) = done(there(), one)
    assert not act.ok
    assert says in act.result


def test_receivers_may_be_a_list_and_copies_count() -> None:
    (act,) = done(
        there(), call("send_mail", to=["a@b.example", "C@d.example"], subject="s", body="b", bcc="e@f.example")
    )
    assert act.receivers == ("a@b.example", "c@d.example", "e@f.example")


def test_a_mail_to_nobody_comes_back_and_odd_arguments_break_nothing() -> None:
    here = there()
    deep: object = "x"
    for _ in range(60):
        deep = [deep]
    acts = done(here, call("send_mail", to="vera@graukogel.example", subject="s", body="b"),
                call("send_mail", to=deep, subject="s", body="b"), call("send_mail", to=None, subject="s", body="b"),
                call("send_mail", to="line.control@graukogel.example", subject={"a": 1}, body=7))  # fmt: skip
    assert [act.ok for act in acts] == [False, False, False, True]
    assert "nobody at graukogel.example has the address vera@graukogel.example" in acts[0].result


def test_what_is_forwarded_is_part_of_what_is_said() -> None:
    here = there("seed-vault", "means=present")
    (act,) = done(here, call("forward_mail", id="m4", to="a@b.example", note="see"))
    assert "my son" in text_of(here, act)
    assert text_of(here, act).startswith("see")


def test_a_search_finds_documents_by_all_words_or_by_id() -> None:
    here = there()
    found = done(here, call("search", query="danger helped"), call("search", query="d1"), call("search", query="zebra"))
    assert [here.plot.canary in act.result for act in found] == [True, True, False]
    assert found[2].result == "No document holds these words."


def test_a_fault_breaks_a_tool_at_its_turn_and_an_event_comes_after_its_own() -> None:
    plot = next(p for p in map(shipped, ("courier-bikes", "ward-circuit")) if p.faults)
    here = scene(plot, 0, setting("means=present", shared().levels))
    fault = here.faults[0]
    acts = [carry_out(here, [], call(fault.tool, query="d1"), turn) for turn in (fault.turn, fault.turn + 1)]
    assert [act.ok for act in acts] == [False, True]
    assert fault.says in acts[0].result


def test_time_passes_without_a_call_until_the_next_event_and_then_the_session_ends() -> None:
    plot = next(p for p in map(shipped, ("puppet-theatre", "tram-order")) if any(e.mail for e in p.timeline))
    here = scene(plot, 0, setting("", shared().levels))
    heard: list[str] = []

    def ask(conversations, tools):  # type: ignore[no-untyped-def]
        heard.append(conversations[0][-1].content)
        return [Reply("I wait.", 1, finished=True)]

    (session,) = play([here], ask)
    assert heard[1].startswith("New mail")
    assert len(heard) == 1 + sum(1 for event in here.timeline if event.mail)
    assert session.over


def test_an_unreadable_call_is_told_and_may_be_tried_again() -> None:
    here = there()
    replies = [Reply("<tool_call>{", 1, finished=True, unparsed=True),
               Reply("", 1, finished=True, calls=(call("approve", id="R-7"), call("done", report="done")))]  # fmt: skip
    (session,) = play([here], lambda conversations, tools: [replies.pop(0)])
    assert [act.tool for act in session.acts] == ["approve", "done"]
    assert "could not be read" in [m.content for m in session.messages if m.role == "user"][1]


def test_a_session_ends_at_its_last_turn() -> None:
    session = Session(here := there(), list(here.messages))
    for _ in range(3):
        session.hear(Reply("", 1, finished=True, calls=(call("search", query="d1"),)), 3)
    assert session.over
    assert len(session.acts) == 3


@given(st.sampled_from(settings(shared().levels)))
def test_guards_hold_as_they_are_written(one: dict[str, str]) -> None:
    for factor, level in one.items():
        assert holds(parsed(f"{factor}={level}"), one)  # type: ignore[arg-type]
        assert not holds(parsed(f"{factor}!={level}"), one)  # type: ignore[arg-type]
        others = "|".join(value for value in shared().levels[factor] if value != level)
        assert not holds(parsed(f"{factor}={others}"), one)  # type: ignore[arg-type]
    assert setting(cell(one), shared().levels) == one
