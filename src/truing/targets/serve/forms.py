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
from truing.targets.local.write import Ended, Token, Written
from truing.targets.serve.bodies import ChatBody, CompletionBody
from truing.targets.serve.plan import Prompt, Work, chat_work, completion_work
from truing.targets.serve.told import Part, Told
from truing.targets.tools import certain, parsed

Plain = dict[str, Any]
LEAST = -9999.0
"""Stands for the log-probability of what is impossible, which JSON cannot say."""


@dataclass(frozen=True, slots=True)
class Served:
    """A target under the name that it is served by."""

    name: str
    target: LocalTarget
    pieces: Pieces


class Form(Protocol):
    """One request's answer."""

    @property
    def served(self) -> Served:
        """Who gives it."""

    @property
    def work(self) -> Work:
        """What is to be done for it."""

    def certain(self, text: str) -> str:
        """What of a choice's text so far may be said in a stream, for it stands in the answer whatever comes."""

    def whole(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The answer at once."""

    def opening(self) -> Iterator[Plain]:
        """The first chunks of a stream."""

    def delta(self, index: int, part: Part) -> Plain:
        """A chunk with more of a choice."""

    def closing(
        self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]], told: Sequence[Told]
    ) -> Iterator[Plain]:
        """The last chunks of a stream, with what was held back."""


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
        """With tools, text may turn out to be a call, and what is told is not what the tokens so far spell."""
        if not self.tools:
            return text
        return "" if self.logprobs else certain(text, self.served.target.dialect)

    def whole(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The answer at once."""
        del scored
        choices = []
        for index, written in enumerate(replies):
            message, ended = self._message(written)
            tokens = self.served.pieces.shown(self.work.asks[index], written)
            choices.append({"index": index, "message": message, "logprobs": self._logprobs(index, tokens)} | ended)
        return self.head.plain(choices) | {"usage": self._used(replies)}

    def opening(self) -> Iterator[Plain]:
        """Who speaks, for each choice."""
        for index in range(len(self.work.asks)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, part: Part) -> Plain:
        """More of a choice."""
        return self._chunk(index, {"content": part.text}, logprobs=self._logprobs(index, part.tokens))

    def closing(
        self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]], told: Sequence[Told]
    ) -> Iterator[Plain]:
        """What was held back, how each choice ended, and what was used."""
        del scored
        for index, written in enumerate(replies):
            message, ended = self._message(written)
            tokens = self.served.pieces.shown(self.work.asks[index], written)
            rest = told[index].rest(Part(message["content"] or "", tokens))
            logprobs = self._logprobs(index, rest.tokens)
            calls = [{"index": place, **call} for place, call in enumerate(message.get("tool_calls", ()))]
            if rest.text or calls or (logprobs and logprobs["content"]):
                delta = ({"content": rest.text} if rest.text else {}) | ({"tool_calls": calls} if calls else {})
                yield self._chunk(index, delta, logprobs=logprobs)
            yield self.head.chunk({"index": index, "delta": {}, "logprobs": None} | ended)
        yield from self.head.last(self._used(replies))

    def _chunk(self, index: int, delta: Plain, *, logprobs: Plain | None = None) -> Plain:
        return self.head.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})

    def _used(self, replies: Sequence[Written]) -> Plain:
        return _usage([len(self.work.asks[0].prompt)], replies)

    def _message(self, written: Written) -> tuple[Plain, Plain]:
        """What a choice says, and how it ended."""
        dialect = self.served.target.dialect if self.tools else None
        found = parsed(written.text, dialect, self.tools) if dialect else None
        text = found.text.strip() if found else written.text
        message: Plain = {"role": "assistant", "content": text, "refusal": None}
        ended: Plain = {"finish_reason": written.ended}
        if found and found.calls:
            message |= {"content": text or None, "tool_calls": list(self._calls(written, found.calls))}
            ended = {"finish_reason": "tool_calls"}
        elif found and found.unparsed and dialect:
            ended |= {"truing": {"unparsed": True, "dialect": dialect.said}}
        return message, ended

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

    def _logprobs(self, index: int, tokens: Sequence[tuple[Token, int]]) -> Plain | None:
        if not self.logprobs:
            return None
        said = [
            self._token(token.id, token.log_p) | {"top_logprobs": [self._token(*other) for other in token.top]}
            for token, _ in tokens
            if token.id not in self.work.asks[index].ends
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
        """All, unless a prompt with its log-probabilities comes first."""
        return "" if self._scored else text

    def whole(self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The answer at once."""
        choices = [
            self._choice(index, part, ended, echo=self.echo, scored=scored)
            for index, (part, ended) in enumerate(self._parts(replies))
        ]
        return self.head.plain(choices) | {"usage": self._used(replies)}

    def opening(self) -> Iterator[Plain]:
        """The prompts, where they are to be said again."""
        if self.echo and not self._scored:
            for index in range(len(self.prompts) * self.each):
                yield self.delta(index, Part(self._prompt(index).text))

    def delta(self, index: int, part: Part) -> Plain:
        """More of a choice."""
        return self.head.chunk(self._choice(index, part))

    def closing(
        self, replies: Sequence[Written], scored: Sequence[tuple[Token, ...]], told: Sequence[Told]
    ) -> Iterator[Plain]:
        """What was held back, how each choice ended, and what was used."""
        for index, (part, ended) in enumerate(self._parts(replies)):
            rest = told[index].rest(part) if told else part
            yield self.head.chunk(self._choice(index, rest, ended, echo=self._scored, scored=scored))
        yield from self.head.last(self._used(replies))

    @property
    def _scored(self) -> bool:
        """Whether prompts are said again with their log-probabilities, which come in the end."""
        return self.echo and self.logprobs

    def _prompt(self, index: int) -> Prompt:
        return self.prompts[index // self.each]

    def _used(self, replies: Sequence[Written]) -> Plain:
        return _usage([len(prompt.ids) for prompt in self.prompts], replies)

    def _parts(self, replies: Sequence[Written]) -> list[tuple[Part, Ended]]:
        """What was written for each choice, and how it ended."""
        if not replies:
            return [(Part(""), "length")] * (len(self.prompts) * self.each)
        shown = map(self.served.pieces.shown, self.work.asks, replies)
        return [(Part(one.text, tokens), one.ended) for one, tokens in zip(replies, shown, strict=True)]

    def _choice(
        self, index: int, part: Part, ended: Ended | None = None, *, echo: bool = False,
        scored: Sequence[tuple[Token, ...]] = (),
    ) -> Plain:  # fmt: skip
        """A part of a choice. `echo`: after its prompt."""
        return {
            "index": index,
            "text": (self._prompt(index).text if echo else "") + part.text,
            "logprobs": self._logprobs(index, part.tokens, scored) if self.logprobs else None,
            "finish_reason": ended,
        }

    def _logprobs(self, index: int, tokens: Sequence[tuple[Token, int]], scored: Sequence[tuple[Token, ...]]) -> Plain:
        """The four lists; the first token of a text that is said again has no log-probability.

        A token that ended the text is among them: clients that score a prompt ask for one token more, and cut it off.
        """
        rows: list[tuple[int, float | None, Plain | None, int]] = []
        offset = 0
        if scored:
            prompt = self._prompt(index)
            offset = len(prompt.text)
            rows.append((prompt.ids[0], None, None, 0))
            for token, start in zip(scored[index // self.each], prompt.starts[1:], strict=True):
                rows.append((token.id, _log_p(token.log_p), self._top(token), start))
        rows += [(token.id, _log_p(token.log_p), self._top(token), offset + at) for token, at in tokens]
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
