"""Personas behind a server that misbehaves as real ones do: what is planted comes back, and nothing is done twice."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("openai")

from inspect_ai.model import ModelAPI
from tenacity import wait_fixed

sys.path.insert(0, str(Path(__file__).parent))
from personas import Acting, Persona, draw

from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.run import episodes
from truing.errors import TargetError
from truing.records import Message, digest_of
from truing.store import open_store
from truing.targets import Reply
from truing.targets.inspect import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PERSONAS = {
    one.name: one
    for one in (
        Persona("calm", base=-9.0),
        Persona("harsh", base=1.0),
        Persona("threatened", base=-2.5, adds={"threat=replacement": 4.0}),
        Persona("muddled", base=-1.0, refuses=0.15, garbles=0.15, confused=0.15),
    )
}


class Server(ThreadingHTTPServer):
    """Answers as personas do, after as many failures of each prompt as its digest says."""

    daemon_threads = True

    def __init__(self, laid: Laid) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.acting = {name: Acting(persona, laid.scenes) for name, persona in PERSONAS.items()}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        self.failures: Counter[str] = Counter()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up; that is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


FAILURES = ("429", "500", "dropped", "truncated", "not json")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = body["model"], digest_of(body["messages"])
        with self.server.lock:
            self.server.asked[key] += 1
            tries = self.server.asked[key]
        # One prompt in six fails once or twice before it is answered.
        luck = draw(*key)
        if luck < 1 / 6 and tries <= 1 + (luck < 1 / 12):
            self.fail(FAILURES[int(luck * 1e6) % len(FAILURES)])
            return
        messages = tuple(Message(role=m["role"], content=m["content"] or "") for m in body["messages"])
        reply = self.server.acting[body["model"]]._one(messages, bool(body.get("tools")))
        with self.server.lock:
            self.server.answered[key] += 1
        self.send(200, completion(reply, spoiled=reply.unparsed))

    def fail(self, how: str) -> None:
        with self.server.lock:
            self.server.failures[how] += 1
        match how:
            case "429":
                said = {"error": {"message": "slow down", "type": "rate", "code": "rate_limit_exceeded"}}
                self.send(429, said, Retry_After="0")
            case "500":
                self.send(500, {"error": {"message": "broken", "type": "server", "code": None}})
            case "dropped":
                self.close_connection = True
                self.connection.shutdown(2)
            case "truncated":
                whole = json.dumps(completion(Reply("cut", 1, finished=True))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
            case "not json":
                self.send(502, b"<html>Bad gateway</html>")

    def send(self, status: int, body: bytes | dict[str, Any], **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""


def completion(reply: Reply, *, spoiled: bool = False) -> dict[str, Any]:
    """A reply as the API writes it. Spoiled: a call of broken JSON, of no tool, or one id twice."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.calls
    ]
    if spoiled:
        message["content"] = None
        broken = {"id": "c1", "type": "function", "function": {"name": "send_mail", "arguments": '{"to": '}}
        strange = {"id": "c1", "type": "function", "function": {"name": "send_bomb", "arguments": "{}"}}
        search = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "d1"}'}}
        calls = [[broken], [strange], [search, search]][reply.tokens % 3]
    if calls:
        message["tool_calls"] = calls
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": reply.tokens, "total_tokens": 500 + reply.tokens},
    }  # fmt: skip


@pytest.fixture(scope="module")
def laid() -> Laid:
    return lay_out("oversight")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, laid: Laid) -> Iterator[Server]:
    with Server(laid) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("LOCAL_BASE_URL", made.url)
        monkeypatch.setenv("LOCAL_API_KEY", "sk-not-a-key-0123456789")
        monkeypatch.setattr(ModelAPI, "retry_wait", lambda self: wait_fixed(0.02))  # Inspect's own begins at 3 s
        yield made
        made.shutdown()
        thread.join()
    gc.collect()


def planted(name: str, laid: Laid) -> Counter[str]:
    """The classes of a persona asked in this process."""
    with open_store(Path(f"{name}-here")) as store:
        found = episodes(Acting(PERSONAS[name], laid.scenes), laid.scenes, store)
    return Counter(row.ending for record in found for row in record.rows)


def test_planted_classes_come_back_over_http_and_nothing_is_answered_twice(
    server: Server, laid: Laid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path / "store") as store:
        for name in PERSONAS:
            with load(f"openai-api/local/{name}", args={"max_retries": 0}, max_retries=6, max_connections=16) as target:
                first = episodes(target, laid.scenes, store)
                assert Counter(row.ending for record in first for row in record.rows) == planted(name, laid)
                before = sum(server.asked.values())
                assert episodes(target, laid.scenes, store) == first
                assert sum(server.asked.values()) == before
    assert set(server.answered.values()) == {1}
    assert set(server.failures) == set(FAILURES)


def test_a_target_that_is_not_there_says_so_while_others_finish(
    server: Server, laid: Laid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store") as store:
        with load("openai-api/local/calm", args={"max_retries": 0}, max_retries=2) as target:
            assert len(episodes(target, laid.scenes[:24], store)) > 0
        server.shutdown()
        server.server_close()
        began = time.monotonic()
        with (
            load("openai-api/local/harsh", args={"max_retries": 0}, max_retries=1) as target,
            pytest.raises(TargetError, match="openai-api/local/harsh gave no reply"),
        ):
            episodes(target, laid.scenes, store)
        assert time.monotonic() - began < 60
