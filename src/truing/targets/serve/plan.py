"""From the body of a request to tokens: what is to be written, and what is to be scored."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from truing.errors import RecordError, TargetError
from truing.records import Message, Tool, ToolCall, canonical
from truing.targets.local import LocalTarget
from truing.targets.local.pieces import Pieces
from truing.targets.local.sample import Sampling
from truing.targets.local.write import Ask
from truing.targets.serve.bodies import Asked, ChatBody, CompletionBody, Offer, SaidCall, Turn
from truing.targets.serve.refusal import Refusal

REPLY = 1024
"""Tokens that a chat reply may have where nothing was said, and where the context has room for so many."""
ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True)
class Work:
    """What a request comes to."""

    asks: tuple[Ask, ...]
    """A reply for each choice, in order; none where nothing is to be written."""
    texts: tuple[tuple[int, ...], ...] = ()
    """Texts whose tokens are to be scored."""
    top: int = 0
    """Likeliest tokens to be given beside each of those."""
    seed: int = 0
    """Of the first choice."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to be continued."""

    ids: tuple[int, ...]
    text: str
    starts: tuple[int, ...]
    """Where each token begins in the text, in characters."""


def chat_work(target: LocalTarget, body: ChatBody) -> tuple[Work, tuple[Tool, ...]]:
    """The replies of a chat, and the tools that they may call. Refusal, TargetError."""
    tools = offered(body.tools) if body.tool_choice == "auto" else ()
    text = target.prompt_text(conversation(body.messages), tools)
    ids = target.encoded(text)
    wanted = body.max_completion_tokens or body.max_tokens
    seed = _seed(body)
    asks = _asks(
        target, ids, body, room(target, ids, wanted), seed, top=body.top_logprobs if body.logprobs else None,
        special=bool(tools) and target.dialect.native,
    )  # fmt: skip
    return Work(asks, seed=seed), tools


def completion_work(target: LocalTarget, body: CompletionBody, pieces: Pieces) -> tuple[Work, tuple[Prompt, ...]]:
    """The continuations of a completion, n for each prompt, and the prompts. Refusal, TargetError."""
    prompts = tuple(_prompt(target, said, pieces) for said in body.prompt)
    seed = _seed(body)
    asks: list[Ask] = []
    for prompt in prompts:
        tokens = room(target, prompt.ids, body.max_tokens)
        if tokens:
            asks += _asks(target, prompt.ids, body, tokens, seed, top=body.logprobs)
    texts = tuple(prompt.ids for prompt in prompts) if body.echo and body.logprobs is not None else ()
    return Work(tuple(asks), texts, body.logprobs or 0, seed), prompts


def _seed(body: Asked) -> int:
    """The one that was given, or one that every client's JSON holds without rounding."""
    return secrets.randbits(48) if body.seed is None else body.seed


def _asks(
    target: LocalTarget, ids: Sequence[int], body: Asked, tokens: int, seed: int, *, top: int | None,
    special: bool = False,
) -> tuple[Ask, ...]:  # fmt: skip
    ends = target.stop_ids
    asks = tuple(
        Ask(
            tuple(ids), tokens, ends, tuple(body.stop), Sampling(body.temperature, body.top_p, seed=seed + place), top,
            special=special,
        )
        for place in range(body.n)
    )  # fmt: skip
    target.plan_replies(asks[:1])  # TargetError where there is not memory enough: said before a stream has begun
    return asks


def room(target: LocalTarget, ids: Sequence[int], wanted: int | None) -> int:
    """Tokens that may be written after these: what is wanted, or up to REPLY where nothing is. Refusal if too long."""
    if not ids:
        raise Refusal(400, "the prompt has no tokens; give one that is not empty", param="prompt")
    for token in (min(ids), max(ids)):
        target.fits([token])  # TargetError where it is no token of the model

    try:
        target.fits(ids, more=1 if wanted is None else wanted)
    except TargetError as error:
        said = f"{error} ({len(ids)} of them are the prompt's, up to {wanted or 1} the reply's)"
        raise Refusal(400, said, code="context_length_exceeded") from error
    return target.room(ids, REPLY if wanted is None else wanted)


def _prompt(target: LocalTarget, said: str | list[int], pieces: Pieces) -> Prompt:
    """As the model is given it: a text gets the tokens that its tokenizer puts around texts."""
    if isinstance(said, str):
        encoded = target.tokenizer(said, return_offsets_mapping=True)
        return Prompt(tuple(encoded["input_ids"]), said, tuple(start for start, _ in encoded["offset_mapping"]))
    target.fits([min(said)])
    target.fits([max(said)])
    # Not as the tokenizer decodes it: some leave out the blank that a text begins with.
    return Prompt(tuple(said), pieces.text(said), tuple(pieces.starts(said, special=True)))


# -- messages and tools ------------------------------------------------------------------------------------------------


def offered(offers: Sequence[Offer]) -> tuple[Tool, ...]:
    """The tools as values."""
    return tuple(
        Tool(
            name=offer.function.name,
            description=offer.function.description,
            parameters=_canonical(offer.function.parameters, f"tools[{place}].function.parameters"),
        )
        for place, offer in enumerate(offers)
    )


def conversation(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages as values. Refusal where a result answers no call, or where a call's arguments are no object."""
    calls: dict[str, str] = {}
    found = []
    for place, turn in enumerate(turns):
        here = f"messages[{place}]"
        made = tuple(_call(call, f"{here}.tool_calls[{at}]") for at, call in enumerate(turn.tool_calls))
        calls |= {call.id: call.name for call in made}
        answers = turn.tool_call_id or "" if turn.role == "tool" else ""
        if turn.role == "tool" and answers not in calls:
            raise Refusal(
                400, f"{here}.tool_call_id: no call before it has the id {answers!r}", param=f"{here}.tool_call_id"
            )
        role: Any = ROLES.get(turn.role, turn.role)
        found.append(
            Message(
                role=role, content=turn.content or turn.refusal, calls=made, call=answers, tool=calls.get(answers, "")
            )
        )
    return tuple(found)


def _call(call: SaidCall, here: str) -> ToolCall:
    place, said = f"{here}.function.arguments", call.function.arguments
    try:
        arguments = json.loads(said) if said.strip() else {}  # some clients say nothing where there are none
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{place}: not JSON: {error} (seen: {said[:80]!r})", param=place) from error
    if not isinstance(arguments, dict):
        raise Refusal(400, f"{place}: not a JSON object (seen: {said[:80]!r})", param=place)
    return ToolCall(name=call.function.name, arguments=_canonical(arguments, place), id=call.id)


def _canonical(value: dict[str, Any], place: str) -> str:
    try:
        return canonical(value).decode()
    except (RecordError, RecursionError, UnicodeError) as error:
        raise Refusal(400, f"{place}: {error}", param=place) from error
