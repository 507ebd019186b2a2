"""What was written, in the shapes that OpenAI's clients read: whole, or as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from truing.records import Tool, ToolCall, digest_of
from truing.targets.local import LocalTarget
from truing.targets.local.pieces import Pieces
from truing.targets.local.write import Token, Written
from truing.targets.serve.bodies import ChatBody, CompletionBody
from truing.targets.serve.plan import Prompt, Work, chat_work, completion_work
from truing.targets.tools import certain, parsed

Plain = dict[str, Any]
LEAST = -9999.0
"""Stands for the log-probability of what is impossible, which JSON cannot say."""
NOTHING = Written((), "", "length")


@dataclass(frozen=True, slots=True)
class Served:
    """A target under the name that it is served by."""

    name: str
    target: LocalTarget
    pieces: Pieces


class Form(Protocol):
    """One request's answer."""

    @property
    def work(self) -> Work:
        """What is to be done for it."""

    def certain(self, text: str) -> str:
        """What of a choice's text so far may be said in a stream, for it stands in the answer whatever comes."""

    def whole(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The answer at once."""

    def opening(self) -> Iterator[Plain]:
        """The first chunks of a stream."""

    def delta(self, index: int, text: str) -> Plain:
        """A chunk with more text of a choice."""

    def closing(
        self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]], told: Sequence[int]
    ) -> Iterator[Plain]:
        """The last chunks of a stream, with what was held back. `told`: letters of each choice that were said."""


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of an answer begin with."""

    kind: str
    id: str
    model: str
    fingerprint: str
    seed: int
    usage: bool
    """Whether a stream says what was used."""
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, served: Served, kind: str, prefix: str, work: Work, *, usage: bool) -> Head:
        """For a new answer."""
        fingerprint = f"fp_{served.target.card.id[:12]}"
        return cls(kind, f"{prefix}-{secrets.token_hex(12)}", served.name, fingerprint, work.seed, usage)

    def plain(self, choices: list[Plain], *, chunk: bool = False) -> Plain:
        """An answer with these choices."""
        return {
            "id": self.id,
            "object": f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "truing": {"seed": self.seed},
        }

    def chunk(self, choice: Plain) -> Plain:
        """A part of a stream."""
        return self.plain([choice], chunk=True) | ({"usage": None} if self.usage else {})

    def last(self, usage: Plain) -> Iterator[Plain]:
        """What was used, where the client wants to know."""
        if self.usage:
            yield self.plain([], chunk=True) | {"usage": usage}


def _usage(prompts: Iterable[int], replies: Sequence[Written]) -> Plain:
    before, after = sum(prompts), sum(len(reply.ids) for reply in replies)
    return {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}


def _log_p(value: float) -> float:
    return max(value, LEAST)


# -- chat --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chat:
    """Replies in a chat."""

    served: Served
    head: Head
    work: Work
    tools: tuple[Tool, ...]
    logprobs: bool

    @classmethod
    def of(cls, served: Served, body: ChatBody) -> Chat:
        """The answer that a body asks for. Refusal, TargetError."""
        work, tools = chat_work(served.target, body)
        head = Head.of(served, "chat.completion", "chatcmpl", work, usage=body.stream_options.include_usage)
        return cls(served, head, work, tools, body.logprobs)

    def certain(self, text: str) -> str:
        """Text may turn out to be a call, and log-probabilities belong to tokens, which text does not tell."""
        if self.logprobs:
            return ""
        return certain(text, self.served.target.dialect) if self.tools else text

    def whole(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The answer at once."""
        del scored
        choices = [self._choice(index, written) for index, written in enumerate(replies)]
        return self.head.plain(choices) | {"usage": self._used(replies)}

    def opening(self) -> Iterator[Plain]:
        """Who speaks, for each choice."""
        for index in range(len(self.work.asks)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, text: str) -> Plain:
        """More text of a choice."""
        return self._chunk(index, {"content": text})

    def closing(
        self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]], told: Sequence[int]
    ) -> Iterator[Plain]:
        """What was held back, how each choice ended, and what was used."""
        del scored
        for index, written in enumerate(replies):
            choice = self._choice(index, written)
            message, ended = choice.pop("message"), choice.pop("finish_reason")
            logprobs = choice.pop("logprobs")
            left = (message["content"] or "")[told[index] :]
            calls = [{"index": place, **call} for place, call in enumerate(message.get("tool_calls", ()))]
            if left or calls or logprobs:
                delta = ({"content": left} if left else {}) | ({"tool_calls": calls} if calls else {})
                yield self._chunk(index, delta, logprobs=logprobs)
            yield self.head.chunk(choice | {"delta": {}, "logprobs": None, "finish_reason": ended})
        yield from self.head.last(self._used(replies))

    def _chunk(self, index: int, delta: Plain, *, logprobs: Plain | None = None) -> Plain:
        return self.head.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})

    def _used(self, replies: Sequence[Written]) -> Plain:
        return _usage([len(self.work.asks[0].prompt)], replies)

    def _choice(self, index: int, written: Written) -> Plain:
        dialect = self.served.target.dialect if self.tools else None
        found = parsed(written.text, dialect, self.tools) if dialect else None
        text = found.text.strip() if found else written.text
        message: Plain = {"role": "assistant", "content": text, "refusal": None}
        ended, more = written.ended, {}
        if found and found.calls:
            message |= {"content": text or None, "tool_calls": list(self._calls(written, found.calls))}
            ended = "tool_calls"  # type: ignore[assignment]
        elif found and found.unparsed and dialect:
            more = {"truing": {"unparsed": True, "dialect": dialect.said}}
        logprobs = self._logprobs(index, written) if self.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": ended, **more}

    def _calls(self, written: Written, calls: Sequence[ToolCall]) -> Iterator[Plain]:
        """The calls. Ids that only say their place would come again in the next turn, where clients match by id.

        They are made of all that came before, so that the same request with the same seed gives the same.
        """
        for place, call in enumerate(calls):
            name = call.id
            if name == f"call_{place}":
                came = {"prompt": list(self.work.asks[0].prompt), "reply": list(written.ids), "place": place}
                name = f"call_{digest_of(came)[:24]}"
            yield {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

    def _logprobs(self, index: int, written: Written) -> Plain:
        ask = self.work.asks[index]
        said = [
            self._token(token.id, token.log_p) | {"top_logprobs": [self._token(*other) for other in token.top]}
            for token, _ in self.served.pieces.shown(ask, written)
            if token.id not in ask.ends
        ]
        return {"content": said, "refusal": None}

    def _token(self, token: int, log_p: float) -> Plain:
        pieces = self.served.pieces
        return {"token": pieces.name(token), "logprob": _log_p(log_p), "bytes": list(pieces.bytes(token))}


# -- completions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """Texts that go on from prompts."""

    served: Served
    head: Head
    work: Work
    prompts: tuple[Prompt, ...]
    each: int
    """Choices for every prompt."""
    echo: bool
    logprobs: bool

    @classmethod
    def of(cls, served: Served, body: CompletionBody) -> Completion:
        """The answer that a body asks for. Refusal, TargetError."""
        work, prompts = completion_work(served.target, body, served.pieces)
        head = Head.of(served, "text_completion", "cmpl", work, usage=body.stream_options.include_usage)
        return cls(served, head, work, prompts, body.n, body.echo, body.logprobs is not None)

    def certain(self, text: str) -> str:
        """Log-probabilities belong to tokens, which text does not tell."""
        return "" if self.logprobs else text

    def whole(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The answer at once."""
        return self.head.plain(list(self._choices(replies, scored))) | {"usage": self._used(replies)}

    def opening(self) -> Iterator[Plain]:
        """The prompts, where they are to be said again."""
        if self.echo and not self.logprobs:
            for index in range(len(self.prompts) * self.each):
                yield self.delta(index, self._prompt(index).text)

    def delta(self, index: int, text: str) -> Plain:
        """More text of a choice."""
        return self.head.chunk({"index": index, "text": text, "logprobs": None, "finish_reason": None})

    def closing(
        self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]], told: Sequence[int]
    ) -> Iterator[Plain]:
        """What was held back, how each choice ended, and what was used."""
        del told  # all or nothing
        for choice in self._choices(replies, scored):
            yield self.head.chunk(choice if self.logprobs else choice | {"text": ""})
        yield from self.head.last(self._used(replies))

    def _prompt(self, index: int) -> Prompt:
        return self.prompts[index // self.each]

    def _used(self, replies: Sequence[Written]) -> Plain:
        return _usage([len(prompt.ids) for prompt in self.prompts], replies)

    def _choices(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Iterator[Plain]:
        for index in range(len(self.prompts) * self.each):
            written = replies[index] if replies else NOTHING
            prompt = self._prompt(index).text if self.echo else ""
            yield {
                "index": index,
                "text": prompt + written.text,
                "logprobs": self._logprobs(index, written, scored) if self.logprobs else None,
                "finish_reason": written.ended,
            }

    def _logprobs(self, index: int, written: Written, scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The four lists; the first token of a text that is said again has no log-probability.

        A token that ended the text is among them: clients that score a prompt ask for one token more, and cut it off.
        """
        rows: list[tuple[int, float | None, Plain | None, int]] = []
        offset = 0
        if self.echo:
            prompt = self._prompt(index)
            offset = len(prompt.text)
            rows.append((prompt.ids[0], None, None, 0))
            for token, start in zip(scored[index // self.each], prompt.starts[1:], strict=True):
                rows.append((token.id, _log_p(token.log_p), self._top(token), start))
        if self.work.asks:
            shown = self.served.pieces.shown(self.work.asks[index], written)
            rows += [(token.id, _log_p(token.log_p), self._top(token), offset + at) for token, at in shown]
        return {
            "tokens": [self.served.pieces.name(token) for token, *_ in rows],
            "token_logprobs": [log_p for _, log_p, *_ in rows],
            "top_logprobs": [top for *_, top, _ in rows],
            "text_offset": [at for *_, at in rows],
        }

    def _top(self, token: Token) -> Plain:
        """The likeliest tokens and this one; of two that look the same, the likelier is told."""
        said: Plain = {}
        for other, log_p in (*token.top, (token.id, token.log_p)):
            said.setdefault(self.served.pieces.name(other), _log_p(log_p))
        return said
