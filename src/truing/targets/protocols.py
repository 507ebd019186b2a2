"""What can be asked of a target. A function names the protocol that it needs; a target has those that it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from truing.errors import TargetError
from truing.records import Message, Row, Surface, Target, Tool, ToolCall


@dataclass(frozen=True, slots=True)
class Reply:
    """What a target wrote. `finished` is false where the token limit, or a filter, cut it off."""

    text: str
    tokens: int
    finished: bool
    calls: tuple[ToolCall, ...] = ()
    """Functions that it asked for."""
    unparsed: bool = False
    """It tried to ask for a function, and what it wrote is no call of a function that it has."""
    refused: bool = False
    """A filter of the provider's stopped it. The text is what the provider gave, which may be words of its own."""
    read: int | None = field(default=None, compare=False)
    """Tokens of the prompt, those that came from a cache among them; None where nobody counted."""


@runtime_checkable
class Named(Protocol):
    """Every target can say what it is."""

    @property
    def card(self) -> Target:
        """Name and digests."""


@runtime_checkable
class Scored(Named, Protocol):
    """Log-probabilities of given continuations."""

    def decide(self, surfaces: Sequence[Surface]) -> tuple[list[tuple[Row, ...]], int]:
        """The decision in every case of every surface, and the tokens computed. One call is one unit of work."""


@runtime_checkable
class Chat(Named, Protocol):
    """Replies to messages."""

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        """Greedy replies, one for each conversation, in order."""


ABILITIES = {"Scored": Scored, "Chat": Chat}


def need(target: object, ability: str) -> None:
    """TargetError, naming the ability and who has it, unless the target (or the target of this card) has it."""
    card = target if isinstance(target, Target) else getattr(target, "card", None)
    if not isinstance(card, Target) or ability not in card.abilities:
        name = card.name if isinstance(card, Target) else repr(target)
        raise TargetError(
            f"target {name} has no ability {ability}"
            f" (it has {', '.join(card.abilities) if isinstance(card, Target) else 'none'});"
            " Scored: local/..., scripted/...; Chat: local/..., scripted/..., inspect/...;"
            " WhiteBox: local/... that takes trees of texts and has heads and MLP neurons (no mixture of experts);"
            " Trainable: local/... with layers named q_proj, v_proj, up_proj and down_proj"
        )


__all__ = ["ABILITIES", "Chat", "Named", "Reply", "Scored", "need"]
