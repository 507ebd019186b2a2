"""What a stream has told of one choice; text and tokens go together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truing.targets.local.pieces import Pieces
from truing.targets.local.write import Ask, Token


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a choice's text, and the tokens that begin in it, each with its place in the whole text."""

    text: str
    tokens: Sequence[tuple[Token, int]] = ()


class Told:
    """What of a choice was told, and what waits: text that is not certain yet, tokens that begin after what is."""

    def __init__(self, pieces: Pieces, ask: Ask, certain: Callable[[str], str]) -> None:
        """`certain`: what of the text so far may be told, for it stands in the answer whatever comes."""
        self._certain = certain
        self._text = ""
        self._ids: list[int] = []
        self._shown: list[tuple[Token, int]] = []
        self._starts = pieces.starts(self._ids, special=ask.special)
        """Reads the ids while they are added; asked for no more than there are, it never comes to an end."""
        self._letters = self._tokens = 0

    def hear(self, text: str, tokens: Sequence[Token]) -> Part:
        """What may be told now that this was written."""
        self._text += text
        self._ids += (token.id for token in tokens)
        self._shown += zip(tokens, self._starts, strict=False)
        more, first = self._certain(self._text)[self._letters :], self._tokens
        self._letters += len(more)
        self._tokens = bisect_left(self._shown, self._letters, first, key=lambda shown: shown[1])
        return Part(more, self._shown[first : self._tokens])

    def rest(self, whole: Part) -> Part:
        """What of the whole was not told."""
        return Part(whole.text[self._letters :], whole.tokens[self._tokens :])
