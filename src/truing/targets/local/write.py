"""One reply while it is written: tokens in, text out, and when to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local.sample import GREEDY, Sampling, draw
from truing.text import begun

Ended = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Ask:
    """A reply that is asked for."""

    prompt: tuple[int, ...]
    max_tokens: int
    ends: frozenset[int] = frozenset()
    """Tokens that end the reply."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; none of them is part of it."""
    sampling: Sampling = GREEDY
    top: int | None = None
    """Log-probabilities are kept, beside those of so many most likely tokens."""
    special: bool = False
    """Whether tokens that no text holds, such as the marks of tool calls, are part of the reply's text."""
    hear: Callable[[str, tuple[Token, ...]], None] | None = field(default=None, compare=False)
    """Is told the text as it is written, and where log-probabilities are kept, the tokens since it was told last.

    They may be ahead of the text, of which some is held back; and after the last text there may be more of them.
    """

    def __post_init__(self) -> None:
        if not self.prompt or self.max_tokens < 1:
            said = f"a prompt of {len(self.prompt)} tokens and a reply of at most {self.max_tokens}"
            raise TargetError(f"{said}: give each one at least")
        if not all(self.stop):
            raise TargetError("an empty text among those that end a reply: every reply begins with it; leave it out")


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was written, its log-probability (nats, at temperature 1), and the most likely ones."""

    id: int
    log_p: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A reply: its tokens (one that ended it included), its text, and how it ended."""

    ids: tuple[int, ...]
    text: str
    ended: Ended
    tokens: tuple[Token, ...] = ()


class Writer:
    """Takes the logits of one row, a step at a time."""

    def __init__(self, ask: Ask, tokenizer: Any = None) -> None:
        """Without a tokenizer there are tokens but no text."""
        self.ask = ask
        self.ended: Ended | None = None
        self.error: Exception | None = None
        """Why it failed."""
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._tokens: list[Token] = []
        self._text = ""
        """All text that is certain by now."""
        self._told = self._told_tokens = 0
        self._before = self._context()
        self._from, self._upto = 0, len(self._before)
        """Tokens from here on are decoded again, so that what they look like together is kept; up to here is said."""

    @property
    def path(self) -> tuple[int, ...]:
        """All tokens so far, those of the prompt first."""
        return (*self.ask.prompt, *self.ids)

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.ask.max_tokens - len(self.ids)

    @property
    def written(self) -> Written:
        """What there is so far."""
        return Written(tuple(self.ids), self._text, self.ended or "cancelled", tuple(self._tokens))

    def take(self, logits_V: Tensor, likeliest: int) -> None:
        """Write the next token; `ended` is set where it was the last, or where it could not be written."""
        try:
            self._take(logits_V, likeliest)
        except Exception as error:  # noqa: BLE001 - of whoever hears it, say; the other rows go on
            self.fail(error)

    def _take(self, logits_V: Tensor, likeliest: int) -> None:
        how = self.ask.sampling
        token = draw(logits_V, how, len(self.ids)) if how.temperature > 0 else likeliest
        if self.ask.top is not None:
            self._tokens.append(_token(token, logits_V, self.ask.top))
        self.ids.append(token)
        if token in self.ask.ends:
            self.ended = "stop"
        elif len(self.ids) == self.ask.max_tokens:
            self.ended = "length"
        if self._tokenizer is not None:
            self._say()

    def cancel(self) -> None:
        """End it here."""
        self.ended = self.ended or "cancelled"

    def fail(self, error: Exception) -> None:
        """It ends here, and why."""
        self.ended, self.error = "failed", error

    def _context(self) -> list[int]:
        """What the reply is decoded after: some tokenizers drop the blank before the first word of a text."""
        last = list(self.ask.prompt[-1:])
        whole = self._tokenizer is not None and not self._decode(last).endswith("\N{REPLACEMENT CHARACTER}")
        return last if whole else []

    def _say(self) -> None:
        ids = self._before + (self.ids[:-1] if self.ids[-1] in self.ask.ends else self.ids)
        new = self._decode(ids[self._from :])[len(self._decode(ids[self._from : self._upto])) :]
        before = len(self._text)
        # Bytes of a character that is not whole yet look like this; they are said once it is, or at the end.
        if new and (self.ended or not new.endswith("\N{REPLACEMENT CHARACTER}")):
            self._text += new
            self._from, self._upto = self._upto, len(ids)
        cuts = [at for stop in self.ask.stop if (at := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if cuts:
            self._text, self.ended = self._text[: min(cuts)], "stop"
        if self.ask.hear is not None:
            upto = len(self._text) - (0 if self.ended else begun(self._text, self.ask.stop))
            if upto > self._told:
                self.ask.hear(self._text[self._told : upto], tuple(self._tokens[self._told_tokens :]))
                self._told, self._told_tokens = upto, len(self._tokens)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=not self.ask.special))


def _token(token: int, logits_V: Tensor, top: int) -> Token:
    log_p = torch.log_softmax(logits_V.float(), -1)
    best = log_p.topk(min(top, len(log_p))) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return Token(token, float(log_p[token]), tuple(pairs))
