"""A loopback server that answers as personas do, and misbehaves as real ones do."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from personas import Acting, Persona, draw

from truing.audit.company.layout import Laid
from truing.records import Message, digest_of
from truing.targets import Reply

FAILURES = ("429", "500", "dropped", "truncated", "not json")
LATE = 3.0
"""Seconds that the failure `late` takes: more than its clients wait."""


class Server(ThreadingHTTPServer):
    """Answers as personas do, after as many failures of each prompt as its digest says."""

    daemon_threads = True

    def __init__(self, laid: Laid, personas: Sequence[Persona], failures: Sequence[str] = FAILURES) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.acting = {one.name: Acting(one, laid.scenes) for one in personas}
        self.fails = failures
        self.asked: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        self.failures: Counter[str] = Counter()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up; that is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


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
            self.fail(self.server.fails[int(luck * 1e6) % len(self.server.fails)])
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
            case "late":
                time.sleep(LATE)
                self.close_connection = True

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
