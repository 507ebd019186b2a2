"""Inspect's models as targets, over a server that misbehaves as real ones do; and its logs."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("openai")

from inspect_ai import Task, eval  # noqa: A004 - as Inspect calls it
from inspect_ai.dataset import Sample
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample_summaries
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.solver import generate, system_message, use_tools
from inspect_ai.tool import ToolCall as TheirCall
from inspect_ai.tool import ToolCallError, tool
from tenacity import wait_fixed

from truing.errors import DataError, TargetError, UsageError
from truing.records import Message, Target, Tool, ToolCall
from truing.targets import Chat, need, resolve
from truing.targets.inspect import InspectTarget, Transcript, load, ours, read_log, theirs, write_log
from truing.targets.protocols import Reply

pytestmark = [
    # Inspect leaves streams of anyio's to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    # It loads the extensions of all packages that are installed.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
KEY = "sk-not-a-key-0123456789"
USER = (Message(role="user", content="What is 6 times 7?"),)
ADD = Tool(
    name="add",
    description="Adds.",
    parameters='{"properties":{"x":{"type":"integer"}},"required":["x"],"type":"object"}',
)


# -- a server ----------------------------------------------------------------------------------------------------------

Act = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def completion(
    text: str | None = "42", *, finish: str = "stop", calls: list[tuple[str, str, str]] | None = None
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, name, arguments in calls
        ]
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }  # fmt: skip


def sends(status: int, body: bytes | dict[str, Any], **headers: str) -> Act:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def act(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return act


def fails(status: int, message: str, code: str = "", **headers: str) -> Act:
    return sends(status, {"error": {"message": message, "type": "error", "code": code or None}}, **headers)


def slow(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    time.sleep(1.5)
    sends(200, completion("late"))(handler, {})


def drops(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.shutdown(2)


def echoes(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    sends(200, completion(f"you said: {body['messages'][-1]['content']}"))(handler, body)


class Server(ThreadingHTTPServer):
    """Does what it is told to, the last of it again and again; remembers what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts: list[Act] = [sends(200, completion())]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        self.now = self.most = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on slow replies; that is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            place = min(len(self.server.bodies), len(self.server.acts) - 1)
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            self.server.acts[place](self, body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("LOCAL_BASE_URL", made.url)
        monkeypatch.setenv("LOCAL_API_KEY", KEY)
        monkeypatch.setattr(ModelAPI, "retry_wait", lambda self: wait_fixed(0.02))  # Inspect's own begins at 3 s
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """What Inspect leaves to the garbage collector is collected here, where its warnings are expected."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def apart_from_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "INSPECT_EVAL_MODEL_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def model(server: Server) -> Iterator[InspectTarget]:
    """A client that leaves all retries to Inspect."""
    del server
    with load("openai-api/local/m", args={"max_retries": 0}, max_retries=4) as made:
        yield made


# -- replies -----------------------------------------------------------------------------------------------------------


def test_a_reply(server: Server, model: InspectTarget) -> None:
    assert model.reply([USER], max_tokens=50) == [Reply("42", 2, True)]
    (body,) = server.bodies
    assert body["messages"] == [{"role": "user", "content": "What is 6 times 7?"}]
    assert body["model"] == "m"
    assert body["temperature"] == 0
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 50
    assert server.keys == [f"Bearer {KEY}"]
    assert isinstance(model, Chat)
    need(model, "Chat")


def test_openai_itself_through_its_own_variables(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with resolve("inspect/openai/gpt-4o", args={"responses_api": False}) as target:
        assert target.card.name == "inspect/openai/gpt-4o"
        assert target.reply([USER], max_tokens=5)[0].text == "42"


def test_replies_are_asked_for_at_once_and_come_in_order(server: Server) -> None:
    def waits(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        time.sleep(0.2)
        echoes(handler, body)

    server.acts = [waits]
    asked = [(Message(role="user", content=str(n)),) for n in range(12)]
    with load("openai-api/local/m", max_connections=5) as target:
        assert [one.text for one in target.reply(asked, max_tokens=5)] == [f"you said: {n}" for n in range(12)]
    assert 2 <= server.most <= 5


def test_it_works_inside_a_running_loop_and_from_many_threads(server: Server, model: InspectTarget) -> None:
    server.acts = [echoes]

    async def inside() -> list[Reply]:
        return model.reply([USER], max_tokens=5)

    assert asyncio.run(inside())[0].text.startswith("you said")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: model.reply([(Message(role="user", content=n),)], max_tokens=5), "abcd"))
    assert [replies[0].text for replies in found] == [f"you said: {letter}" for letter in "abcd"]


def test_tools_and_calls(server: Server, model: InspectTarget) -> None:
    server.acts = [sends(200, completion(None, finish="tool_calls", calls=[("k1", "add", '{"x": 3}')]))]
    (reply,) = model.reply([USER], max_tokens=5, tools=[ADD])
    call = ToolCall(name="add", arguments='{"x":3}', id="k1")
    assert reply == Reply("", 2, True, (call,))
    (offered,) = server.bodies[0]["tools"]
    assert offered["function"]["name"] == "add"
    assert offered["function"]["parameters"]["properties"] == {"x": {"type": "integer"}}

    server.acts = [sends(200, completion("3"))]
    turns = (
        *USER, Message(role="assistant", content="", calls=(call,)),
        Message(role="tool", content="10", call="k1", tool="add"),
    )  # fmt: skip
    model.reply([turns], max_tokens=5, tools=[ADD])
    asked, answered = server.bodies[1]["messages"][1:]
    assert asked["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"x": 3}'}
    assert (answered["role"], answered["tool_call_id"], answered["content"]) == ("tool", "k1", "10")


@pytest.mark.parametrize("call", [("k1", "add", '{"x": '), ("k1", "subtract", "{}"), ("k1", "add", '{"x": 1e999}')])
def test_a_call_that_cannot_be_carried_out_is_no_call(
    server: Server, model: InspectTarget, call: tuple[str, str, str]
) -> None:
    server.acts = [sends(200, completion("Hm.", finish="tool_calls", calls=[("k0", "add", '{"x": 1}'), call]))]
    (reply,) = model.reply([USER], max_tokens=5, tools=[ADD])
    assert (reply.calls, reply.unparsed, reply.text) == ((), True, "Hm.")


def test_a_schema_that_inspect_cannot_carry_is_refused(model: InspectTarget) -> None:
    odd = ADD.model_copy(update={"parameters": '{"properties":{"x":{"$ref":"#/$defs/X"}},"type":"object"}'})
    with pytest.raises(TargetError, match="parameters of tool add use JSON Schema that Inspect has no form for"):
        model.reply([USER], max_tokens=5, tools=[odd])


def test_a_reply_that_was_cut_off(server: Server, model: InspectTarget) -> None:
    server.acts = [sends(200, completion("It is", finish="length"))]
    assert model.reply([USER], max_tokens=2) == [Reply("It is", 2, False)]


# -- a server that misbehaves ------------------------------------------------------------------------------------------

TRANSIENT = {
    "429": fails(429, "slow down", "rate_limit_exceeded", Retry_After="0"),
    "500": fails(500, "oops"),
    "503": sends(503, b"<html>busy</html>", Content_Type="text/html"),
    "dropped": drops,
}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_passes_is_retried(server: Server, model: InspectTarget, kind: str) -> None:
    server.acts = [TRANSIENT[kind], TRANSIENT[kind], TRANSIENT[kind], sends(200, completion())]
    assert model.reply([USER], max_tokens=5)[0].text == "42"
    assert len(server.bodies) == 4


def test_there_are_six_retries_where_nothing_else_is_said(server: Server) -> None:
    server.acts = [fails(500, "oops")]
    with (
        resolve("inspect/openai-api/local/m", args={"max_retries": 0}) as target,
        pytest.raises(TargetError, match=r"gave no reply.*oops"),
    ):
        target.reply([USER], max_tokens=5)
    assert len(server.bodies) == 7


def test_what_is_slow_is_asked_again(server: Server) -> None:
    server.acts = [slow, sends(200, completion())]
    with load("openai-api/local/m", args={"max_retries": 0}, attempt_timeout=1, max_retries=2) as target:
        assert target.reply([USER], max_tokens=5)[0].text == "42"


def test_what_does_not_pass_is_an_error_after_the_retries(server: Server, model: InspectTarget) -> None:
    server.acts = [fails(500, "the disk is full")]
    with pytest.raises(TargetError, match=r"inspect/openai-api/local/m gave no reply.*the disk is full"):
        model.reply([USER], max_tokens=5)
    assert len(server.bodies) == 5


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (fails(401, f"Incorrect API key provided: {KEY}."), r"Incorrect API key provided: \[key\]"),
        (fails(404, "no such model"), "no such model"),
        (fails(400, "cannot read that"), "cannot read that"),
        (fails(400, "at most 100 tokens", "context_length_exceeded"), "too long for it: at most 100 tokens"),
        (sends(200, {**completion(), "choices": []}), "gave no reply"),
        (sends(200, b'{"choices": [{"mess'), "gave no reply"),
    ],
)
def test_what_will_not_pass_is_an_error(server: Server, act: Act, message: str) -> None:
    server.acts = [act]
    with (
        load("openai-api/local/m", args={"max_retries": 0}, max_retries=1) as target,
        pytest.raises(TargetError, match=message) as caught,
    ):
        target.reply([USER], max_tokens=5)
    assert "inspect/openai-api/local/m" in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.bodies) <= 2


def test_a_failure_before_any_reply_stops_what_else_was_asked(server: Server) -> None:
    def act(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        (fails(404, "no such model") if body["messages"][-1]["content"] == "0" else slow)(handler, body)

    server.acts = [act]
    asked = [(Message(role="user", content=str(n)),) for n in range(30)]
    before = time.monotonic()
    with load("openai-api/local/m", max_connections=2) as target, pytest.raises(TargetError, match="no such model"):
        target.reply(asked, max_tokens=5)
    assert time.monotonic() - before < 3
    assert len(server.bodies) < 10


@pytest.mark.parametrize("bad", [fails(400, "cannot read that"), fails(400, "at most 9", "context_length_exceeded")])
def test_a_failure_among_replies_is_raised_when_the_others_are_there(server: Server, bad: Act) -> None:
    def act(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        (bad if body["messages"][-1]["content"] in {"3", "5"} else echoes)(handler, body)

    server.acts = [act]
    asked = [(Message(role="user", content=str(n)),) for n in range(9)]
    with load("openai-api/local/m", args={"max_retries": 0}, max_connections=1, cache=True) as target:
        with pytest.raises(TargetError, match=r"cannot read that|too long for it: at most 9"):
            target.reply(asked, max_tokens=5)
        came = [body["messages"][-1]["content"] for body in server.bodies]
        assert sorted(came) == [str(n) for n in range(9)]
        bad_ones = {3, 5}
        server.bodies.clear()
        replies = target.reply([one for n, one in enumerate(asked) if n not in bad_ones], max_tokens=5)
        assert [reply.text for reply in replies] == [f"you said: {n}" for n in range(9) if n not in bad_ones]
        assert server.bodies == []  # they came from the cache


@pytest.mark.parametrize(
    ("bad", "text", "tokens"),
    [
        (sends(200, completion("I w", finish="content_filter")), "I w", 2),
        (fails(400, "not that", "content_filter"), "not that", 0),
    ],
)
def test_what_a_filter_stopped_is_a_reply_that_says_so(server: Server, bad: Act, text: str, tokens: int) -> None:
    def act(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        (bad if body["messages"][-1]["content"] == "1" else echoes)(handler, body)

    server.acts = [act]
    asked = [(Message(role="user", content=str(n)),) for n in range(3)]
    with load("openai-api/local/m", args={"max_retries": 0}) as target:
        first, refused, last = target.reply(asked, max_tokens=5)
    assert refused == Reply(text, tokens, False, refused=True)
    assert (first, last) == (Reply("you said: 0", 2, True), Reply("you said: 2", 2, True))


def test_replies_are_cached_where_it_is_asked_for(server: Server) -> None:
    for cache, asked in ((False, 2), ("1h", 3)):
        with load("openai-api/local/m", cache=cache) as target:
            for _ in range(2):
                assert target.reply([USER], max_tokens=5)[0].text == "42"
        assert len(server.bodies) == asked


# -- names and cards ---------------------------------------------------------------------------------------------------


def test_a_missing_key_is_named() -> None:
    with pytest.raises(TargetError, match="OPENAI_API_KEY"):
        resolve("inspect/openai/gpt-4o")
    with pytest.raises(TargetError, match="LOCAL_API_KEY"):
        resolve("inspect/openai-api/local/m")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt-4o", {}, "cannot reach inspect/gpt-4o"),
        ("nobody/gpt-4o", {}, "Model API nobody"),
        ("mockllm/model", {"colour": 3}, "has no settings colour"),
        ("mockllm/model", {"max_tokens": 3}, "has no settings max_tokens"),
        ("mockllm/model", {"cache": "long"}, "cache 'long' is no length of time"),
        ("mockllm/model", {"temperature": "hot"}, "cannot reach inspect/mockllm/model"),
    ],
)
def test_a_model_that_cannot_be_had(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load(name, **options)


def test_without_inspect_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("truing.targets.resolve"), "find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"pip install 'truing\[inspect\]'"):
        resolve("inspect/openai/gpt-4o")


def test_a_card_says_what_determines_the_replies_and_holds_no_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def card(**options: Any) -> Target:
        with load("openai-api/local/m", **options) as target:
            return target.card

    plain = card()
    assert plain.abilities == ("Chat",)
    assert KEY not in plain.canonical.decode()
    assert card(max_connections=3, max_retries=1, timeout=5, cache=True) == plain
    assert card(args={"max_retries": 0}) != plain
    assert card(reasoning_effort="low") != plain
    assert card(temperature=None) != plain
    assert card(base_url="http://127.0.0.1:1/v1") != plain
    monkeypatch.setenv("LOCAL_API_KEY", "another")
    assert card() == plain


def test_mockllm() -> None:
    usage = ModelUsage(input_tokens=3, output_tokens=4, total_tokens=7)
    outputs = [ModelOutput.from_content("mockllm/model", text) for text in ("one", "two")]
    for output in outputs:
        output.usage = usage
    with load("mockllm/model", args={"custom_outputs": outputs}) as target:
        assert [reply.text for reply in target.reply([USER, USER], max_tokens=5)] == ["one", "two"]
        with pytest.raises(TargetError, match="inspect/mockllm/model gave no reply: custom_outputs ran out of values"):
            target.reply([USER], max_tokens=5)


# -- logs --------------------------------------------------------------------------------------------------------------

CARD = Target(name="local/tiny", weights="0" * 64, template="1" * 64, dtype="float32", abilities=("Chat",))
CALL = ToolCall(name="add", arguments='{"x":3,"y":[1.5,null,"é"]}', id="call_0")
LONG = "a long text " * 50
TOLD = [
    Transcript((Message(role="system", content="Be brief."), *USER), Reply("42", 3, True), "1"),
    Transcript(USER, Reply("Let me see.", 9, True, (CALL,)), "2"),
    Transcript(
        (
            *USER, Message(role="assistant", content="", calls=(CALL,)),
            Message(role="tool", content=LONG, call="call_0", tool="add"),
        ),
        Reply(LONG, 700, False), "3",
    ),
    Transcript(USER, Reply('<tool_call>{"na', 5, True, unparsed=True), "4"),
    Transcript(USER, None, "5", 1, "the server was gone"),
    Transcript(USER, Reply("", 1, True), "6"),
    Transcript((*USER, Message(role="assistant", content="Let me", calls=(CALL,))), None, "7"),
    Transcript((*USER, Message(role="assistant", content="Half a")), None, "8", 1, "it was stopped"),
    Transcript(USER, Reply("I w", 2, False, refused=True), "9"),
    Transcript(USER, Reply("<think>six sevens</think>\n42", 7, True), "10"),
    Transcript(USER, Reply("9", 1, True), "9", 2),
    *(Transcript(USER, Reply(str(n), 1, True), str(n)) for n in range(11, 14)),
]  # fmt: skip
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("ending", [".eval", ".json"])
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    write_log(tmp_path / f"log{ending}", CARD, TOLD, task="arithmetic", at=AT)
    assert read_log(tmp_path / f"log{ending}") == sorted(TOLD, key=lambda one: one.epoch)
    log = read_eval_log(str(tmp_path / f"log{ending}"), resolve_attachments=True)
    assert (log.status, log.eval.model, log.eval.task) == ("success", "local/tiny", "arithmetic")
    assert log.eval.metadata == {"truing": {"target": CARD.id}}
    samples = log.samples or []
    assert len(samples) == len(TOLD)
    assert samples[2].output.completion == LONG
    assert samples[2].output.stop_reason == "max_tokens"
    assert samples[1].output.message.tool_calls == [TheirCall("call_0", "add", {"x": 3, "y": [1.5, None, "é"]})]
    assert samples[4].error is not None


def test_a_log_that_is_written_is_listed(tmp_path: Path) -> None:
    write_log(tmp_path / "2026-01-02T03-04-05_arithmetic_abc.eval", CARD, TOLD, at=AT)
    (found,) = list_eval_logs(str(tmp_path))
    assert read_eval_log(found, header_only=True).eval.model == "local/tiny"
    assert len(read_eval_log_sample_summaries(found)) == len(TOLD)


def test_the_same_values_at_the_same_time_give_the_same_log(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_log(tmp_path / name, CARD, TOLD, at=AT)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    for name in ("a.eval", "b.eval"):  # whose bytes hold the time of packing
        write_log(tmp_path / name, CARD, TOLD, at=AT)
    with zipfile.ZipFile(tmp_path / "a.eval") as first, zipfile.ZipFile(tmp_path / "b.eval") as second:
        assert {name: first.read(name) for name in first.namelist()} == {
            name: second.read(name) for name in second.namelist()
        }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", 1), ("b", 1), ("a", 1), ("a", 2)], "2 transcripts are sample a in epoch 1"),
        ([("2", 1), ("", 1)], "2 transcripts are sample 2 in epoch 1.*is called by its place"),
    ],
)
def test_two_transcripts_that_would_become_one_are_refused(
    tmp_path: Path, pairs: list[tuple[str, int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_log(tmp_path / "log.eval", CARD, [Transcript(USER, None, *pair) for pair in pairs])
    assert not (tmp_path / "log.eval").exists()
    different = [*dict.fromkeys(pairs), ("2", 7)]
    named = [Transcript(USER, None, name or "x", epoch) for name, epoch in different]
    write_log(tmp_path / "log.eval", CARD, named)
    assert len(read_log(tmp_path / "log.eval")) == len(named)
    write_log(tmp_path / "empty.json", CARD, [])
    assert read_log(tmp_path / "empty.json") == []


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.eval or \.json"):
        write_log(tmp_path / "log.zip", CARD, TOLD)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_log(tmp_path / "file" / "log.eval", CARD, TOLD)


@tool
def lookup() -> Any:
    async def execute(word: str) -> str:
        """Look up a word.

        Args:
            word: It.
        """
        return f"{word}: {LONG}"

    return execute


def test_a_log_of_a_real_evaluation_is_read(tmp_path: Path) -> None:
    usage = ModelUsage(input_tokens=3, output_tokens=4, total_tokens=7)
    call = ModelOutput.for_tool_call("m", "lookup", {"word": LONG}, content="Let me see.")
    outputs = [call, ModelOutput.from_content("m", f"So: {LONG}")] * 2
    for output in outputs:
        output.usage = usage
    task = Task(
        dataset=[Sample(input="Define it.", id="a")],
        solver=[system_message("Be brief."), use_tools(lookup()), generate()],
        epochs=2,
    )
    model = get_model("mockllm/model", custom_outputs=[output.model_copy(deep=True) for output in outputs])
    (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path), max_connections=1, max_samples=1)
    assert log.status == "success", log.error
    first, second = read_log(Path(log.location.removeprefix("file://")))
    assert (first.sample, first.epoch, second.epoch) == ("a", 1, 2)
    assert [turn.role for turn in first.messages] == ["system", "user", "assistant", "tool"]
    asked, answered = first.messages[2:]
    assert asked.calls[0].name == "lookup"
    assert json.loads(asked.calls[0].arguments) == {"word": LONG}
    assert (answered.call, answered.tool, answered.content) == (asked.calls[0].id, "lookup", f"{LONG}: {LONG}")
    assert first.reply == Reply(f"So: {LONG}", 4, True)


def test_turns_become_records_and_back() -> None:
    for transcript in TOLD:
        assert tuple(ours(theirs(message)) for message in transcript.messages) == transcript.messages
    thought = ChatMessageAssistant(content=[ContentReasoning(reasoning="six sevens"), ContentText(text="42")])
    assert ours(thought).content == "<think>six sevens</think>\n42"
    hidden = ChatMessageAssistant(content=[ContentReasoning(reasoning="x4Fa", redacted=True), ContentText(text="42")])
    assert ours(hidden).content == "42"
    broke = ToolCallError("timeout", "it took too long")
    for output, said in (("", ""), ("it took too long", ""), ("line 1", "\nline 1")):
        told = ChatMessageTool(content=output, tool_call_id="c", function="bash", error=broke)
        assert ours(told).content == f"Error: it took too long{said}"
    with pytest.raises(TargetError, match="a user turn holds a part of type 'image'"):
        ours(ChatMessageUser(content=[ContentImage(image="a.png")]))


def test_reasoning_stands_in_a_reply_as_it_does_in_a_log(tmp_path: Path) -> None:
    def output() -> ModelOutput:
        thought = [ContentReasoning(reasoning="six sevens"), ContentText(text="42")]
        said = ModelOutput.from_message(ChatMessageAssistant(content=thought, source="generate"))
        said.usage = ModelUsage(output_tokens=9)
        return said

    expected = Reply("<think>six sevens</think>\n42", 9, True)
    with load("mockllm/model", args={"custom_outputs": [output()]}) as target:
        assert target.reply([USER], max_tokens=50) == [expected]
    model = get_model("mockllm/model", custom_outputs=[output()])
    task = Task(dataset=[Sample(input="6 * 7?")], solver=generate())
    (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path))
    (found,) = read_log(Path(log.location.removeprefix("file://")))
    assert found.reply == expected


BROKEN = {
    "a limit": ({"limit": {"type": "token", "limit": 1000000}}, {}, "met a limit: token 1000000"),
    "a limit with its reason": (
        {"limit": {"type": "operator", "limit": 1, "reason": "stopped by hand"}}, {}, "met a limit: stopped by hand",
    ),
    "marked": ({"invalidation": {"author": "ada", "reason": "wrong key"}}, {}, "marked invalid by ada: wrong key"),
    "error": ({}, {"error": "the service was gone"}, "the service was gone"),
    "too long": (
        {}, {"stop_reason": "model_length", "usage": {"output_tokens": 0}}, "the conversation is too long for it: 42",
    ),
    "too long, tokens unknown": (
        {}, {"stop_reason": "model_length", "usage": None, "error": "at most 9"},
        "the conversation is too long for it: at most 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("of_sample", "of_output", "why"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_reply_is_not_read_as_one(
    tmp_path: Path, whole: bytes, of_sample: dict[str, Any], of_output: dict[str, Any], why: str
) -> None:
    log = json.loads(whole)
    sample = log["samples"][0]
    sample |= of_sample
    sample["output"] |= {key: value for key, value in of_output.items() if key != "stop_reason"}
    sample["output"]["choices"][0]["stop_reason"] = of_output.get("stop_reason", "stop")
    (tmp_path / "log.json").write_text(json.dumps(log))
    first, *others = read_log(tmp_path / "log.json")
    messages = (*TOLD[0].messages, Message(role="assistant", content="42"))
    assert first == Transcript(messages, None, "1", 1, why)
    assert others == TOLD[1:3]
    write_log(tmp_path / "again.eval", CARD, [first])
    assert read_log(tmp_path / "again.eval") == [first]


def test_an_output_that_is_not_the_last_turn_says_nothing_of_it(tmp_path: Path, whole: bytes) -> None:
    log = json.loads(whole)
    turn = {"role": "assistant", "content": "A later answer.", "id": "x9"}
    log["samples"][0]["messages"].append(turn)
    log["samples"][0]["output"]["error"] = "of the turn before"
    log["samples"][1]["messages"][-1]["source"] = "input"  # written by whoever made the data
    (tmp_path / "log.json").write_text(json.dumps(log))
    later, given, _ = read_log(tmp_path / "log.json")
    assert (later.reply, later.error) == (Reply("A later answer.", 0, True), "")
    assert given.reply is None
    assert given.messages[-1].role == "assistant"


def test_a_call_that_inspect_could_not_parse_is_none(tmp_path: Path, whole: bytes) -> None:
    log = json.loads(whole)
    good = {"id": "c0", "function": "add", "arguments": {"x": 1}}
    for turn in (log["samples"][0]["messages"][-1], log["samples"][0]["output"]["choices"][0]["message"]):
        turn["tool_calls"] = [good, {**good, "id": "c1", "arguments": {}, "parse_error": "not JSON"}]
    (tmp_path / "log.json").write_text(json.dumps(log))
    first, second, _ = read_log(tmp_path / "log.json")
    assert first.reply == Reply("42", 3, True, (), unparsed=True)
    assert second == TOLD[1]


# -- logs that are damaged or hostile ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("log") / "whole.json"
    write_log(path, CARD, TOLD[:3], at=AT)
    return path.read_bytes()


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def header(whole: bytes) -> bytes:
    return json.dumps({key: value for key, value in json.loads(whole).items() if key != "samples"}).encode()


def test_damaged_logs(tmp_path: Path, whole: bytes) -> None:
    write_log(tmp_path / "whole.eval", CARD, TOLD[:3], at=AT)
    good = (tmp_path / "whole.eval").read_bytes()
    path = tmp_path / "bad"
    bad = [
        b"", b"PK", b"PK\x03\x04", b"{}", b"[]", b"null", b"hello", b'{"samples": 3}', b'{"samples": [3]}',
        b'{"eval": {}, "samples": []}', whole[: len(whole) // 2], good[: len(good) // 2],
        whole.replace(b'"role": "user"', b'"role": "owner"'), b"[" * 100_000,
        packed({}), packed({"header.json": b"{}"}), packed({"header.json": header(whole), "samples/a.json": b"[]"}),
        packed({"header.json": header(whole), "samples/a.json": b"\xff"}),
    ]  # fmt: skip
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(DataError, match="bad is no log of Inspect's, or is damaged"):
            read_log(path)
    for place in range(0, len(good), max(1, len(good) // 60)):  # a byte changed: it is read as it was, or refused
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        with suppress(DataError):
            assert read_log(path) == TOLD[:3], place
    with pytest.raises(DataError, match="cannot read"):
        read_log(tmp_path / "nothing")


def test_large_logs(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(whole)
    with pytest.raises(DataError, match="larger than 100 bytes"):
        read_log(path, limit=100)
    bomb = packed({"header.json": header(whole), "samples/a.json": b" " * 3_000_000})
    assert len(bomb) < 20_000
    path.write_bytes(bomb)
    with pytest.raises(DataError, match=r"unpacks to 30\d+ bytes, more than 2000000"):
        read_log(path, limit=2_000_000)
    # The size that the archive states is a lie: no more than that is unpacked, and its checksum is then wrong.
    path.write_bytes(bomb.replace((3_000_000).to_bytes(4, "little"), (3).to_bytes(4, "little")))
    with pytest.raises(DataError, match="damaged"):
        read_log(path, limit=2_000_000)


def test_a_text_that_is_named_very_often_counts_each_time(tmp_path: Path, whole: bytes) -> None:
    log = json.loads(whole)
    sample = log["samples"][0]
    sample["attachments"] = {"h": "x" * 100_000}
    sample["messages"][0]["content"] = [{"type": "text", "text": "attachment://h"}] * 1000
    (tmp_path / "bad").write_text(json.dumps(log))
    with pytest.raises(DataError, match="texts of a log are larger than the limit"):
        read_log(tmp_path / "bad", limit=1_000_000)


def test_paths_in_a_log_are_not_followed(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "secret").write_text("the secret")
    log = json.loads(whole)
    log["location"] = log["eval"]["task_file"] = log["eval"]["dataset"]["location"] = str(tmp_path / "secret")
    sample = log["samples"][0]
    for place, text in enumerate([f"attachment://{tmp_path}/secret", f"file://{tmp_path}/secret"]):
        sample["messages"][place]["content"] = text
    sample["files"], sample["setup"] = [str(tmp_path / "secret")], str(tmp_path / "secret")
    members = {"header.json": header(json.dumps(log).encode()), "../../samples/x.json": b"{}", "/etc/x": b"{}"}
    members["samples/../../../secret.json"] = json.dumps(sample).encode()
    (tmp_path / "bad").write_bytes(packed(members))
    (found,) = read_log(tmp_path / "bad")
    assert "the secret" not in repr(found)
    assert not (tmp_path.parent / "secret.json").exists()


def test_a_sample_with_pictures_says_so_and_the_others_are_read(tmp_path: Path, whole: bytes) -> None:
    log = json.loads(whole)
    log["samples"][0]["messages"][1]["content"] = [{"type": "image", "image": "a.png"}]
    (tmp_path / "log.json").write_text(json.dumps(log))
    first, *others = read_log(tmp_path / "log.json")
    assert first == Transcript((), None, "1", 1, first.error)
    assert "a user turn holds a part of type 'image'" in first.error
    assert others == TOLD[1:3]


def test_a_log_of_an_evaluation_that_still_runs(tmp_path: Path, whole: bytes) -> None:
    log = json.loads(whole)
    members = {"_journal/start.json": json.dumps({"version": 2, "eval": log["eval"], "plan": {}}).encode()}
    members["samples/2_epoch_1.json"] = json.dumps(log["samples"][1]).encode()
    (tmp_path / "log.eval").write_bytes(packed(members))
    assert read_log(tmp_path / "log.eval") == TOLD[1:2]


@pytest.mark.parametrize("many", [0, -1, "4", 2.5])
def test_a_number_of_connections_that_is_none_is_refused(many: object) -> None:
    with pytest.raises(TargetError, match=r"max_connections is .* a whole number of 1 or more"):
        load("mockllm/model", max_connections=many)
