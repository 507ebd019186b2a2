"""Tool calls as chat templates write them, and as models then write them.

Three dialects, each named after the models that brought it:

    hermes     <tool_call>{"name": ..., "arguments": {...}}</tool_call>, text around it, one pair of tags for each call
    mistral    [TOOL_CALLS][{"name": ..., "arguments": {...}, "id": ...}, ...] at the end of the reply (v3), or
               [TOOL_CALLS]name[CALL_ID]id[ARGS]{...} for each call (v11; [CALL_ID]id and [ARGS] may be absent)
    llama      {"name": ..., "parameters": {...}} as the whole reply, <|python_tag|> before it or not; several are
               separated by ; or line ends

What a model writes is not to be trusted: a reply is read once, from left to right, and nothing in it is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from truing.errors import RecordError
from truing.records import Message, Tool, ToolCall, canonical, digest
from truing.text import begun

Name = Literal["hermes", "mistral", "llama"]

DEPTH = 64
"""Levels of lists and objects that a call may have. Without a limit of our own it would depend on the call stack."""

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALLS, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_TAG = "<|python_tag|>"
_BLANKS = re.compile(r"[ \t\n\r]*")
_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a target is told of tools and writes calls.

    `native`: its chat template renders tools, calls and results itself. Where it does not, tools are described in
    Hermes text, so the name is then "hermes": in the system turn, or before the first user turn's text where the
    template takes no system turn (`system` is false).
    """

    name: Name
    native: bool
    system: bool = True

    def __post_init__(self) -> None:
        assert self.native or self.name == "hermes"

    @property
    def said(self) -> str:
        """The dialect as it is recorded, "hermes (system turn)"."""
        return f"{self.name} ({'template' if self.native else 'system turn' if self.system else 'user turn'})"


PLAIN = Dialect("hermes", native=True)
"""For conversations without tools, whose turns go into the template as they are."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A reply taken apart. `unparsed`: it holds the mark of a call, but not calls that could be carried out as written;
    then `text` is the whole reply and there are no calls.
    """

    text: str
    """What was said besides the calls, blanks at its ends removed; a reply without calls as it was written."""
    calls: tuple[ToolCall, ...] = ()
    unparsed: bool = False


# -- which dialect -----------------------------------------------------------------------------------------------------

_PROBE = Tool(
    name="truing_probe",
    description="Looks up a word.",
    parameters='{"properties":{"word":{"description":"It.","type":"string"}},"required":["word"],"type":"object"}',
)
_ASKED, _FOUND = "What does sprocketing mean?", "a row of teeth"
_EXCHANGE = (
    Message(role="user", content=_ASKED),
    Message(
        role="assistant",
        content="",
        calls=(ToolCall(name=_PROBE.name, arguments='{"word":"sprocketing"}', id="probe0001"),),
    ),
    Message(role="tool", content=_FOUND, call="probe0001", tool=_PROBE.name),
)
# What stands in the call above as each dialect writes it. Some templates put XML between the Hermes tags.
_SIGNS: dict[Name, tuple[str, ...]] = {
    "mistral": (_CALLS, '"word"'),
    "hermes": (_OPEN, '"name"', '"arguments"', '"word"', _CLOSE),
    "llama": ('"name"', '"parameters"', '"word"'),
}


def spoken(template: str, render: Callable[..., str]) -> Dialect:
    """The dialect of a chat template, read from how it writes a short exchange: question, call, result.

    `render(messages, tools=...)` renders the template. It is native where the tool, the call and the result are all
    in what it writes, and the call is written in a known dialect. A template that raises renders nothing.
    """
    if "tools" in template:
        offer, _, rest = _written(PLAIN, render).partition(_ASKED)
        call, found, _ = rest.partition(_FOUND)
        if found and _PROBE.name in offer and _PROBE.name in call:
            for name, signs in _SIGNS.items():
                if all(sign in call for sign in signs):
                    return Dialect(name, native=True)
    # A template whose calls we cannot read might still show the tools well, but its model would then be judged by a
    # parser of another dialect. Described in our own words, at least what is asked for and what is read agree.
    ours = [Dialect("hermes", native=False, system=system) for system in (True, False)]
    return next((one for one in ours if _PROBE.description in _written(one, render)), ours[0])


def _written(dialect: Dialect, render: Callable[..., str]) -> str:
    """The exchange as a template writes it; "" where it raises."""
    exchange, offered = turns(_EXCHANGE, (_PROBE,), dialect)
    try:
        return render(exchange, tools=offered)
    except Exception:  # noqa: BLE001 - a template is a program by someone else: it raises what it likes
        return ""


# -- to the model ------------------------------------------------------------------------------------------------------


def turns(
    messages: Sequence[Message], tools: Sequence[Tool], dialect: Dialect
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What `tokenizer.apply_chat_template(turns, tools=...)` is given. The tools are None where it has none to render.

    Templates may still refuse a conversation (Llama's takes one call in a turn): that error is theirs.
    """
    if dialect.native:
        return [_native(message, dialect) for message in messages], [tool.plain for tool in tools] or None
    return _described(_spelled(messages), tools, "system" if dialect.system else "user"), None


def _native(message: Message, dialect: Dialect) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool":
        return {**turn, "name": message.tool, "tool_call_id": _id(message.call, dialect)}
    if not message.calls:
        return turn
    calls = [
        {
            "type": "function",
            "id": _id(call.id, dialect),
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }
        for call in message.calls
    ]
    return {**turn, "tool_calls": calls}


def _id(given: str, dialect: Dialect) -> str:
    """The id of a call, in the form that the dialect's templates insist on."""
    if dialect.name != "mistral" or _MISTRAL_ID.fullmatch(given):
        return given
    return digest(given.encode())[:9]


_OFFER = """\
You may call these functions. Each line between the tags describes one, as JSON:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between these tags, once for each call:
<tool_call>
{"name": "the function", "arguments": {"a parameter": "its value"}}
</tool_call>
What it returns is then shown to you between <tool_response> and </tool_response>."""


def _described(conversation: list[dict[str, Any]], tools: Sequence[Tool], role: str) -> list[dict[str, Any]]:
    """The conversation with the tools in its first turn of this role, which is made where it begins with none.

    In a system turn they stand behind what is there, in a user turn before it.
    """
    if not tools:
        return conversation
    offer = _OFFER.replace("{tools}", "\n".join(_json(tool.plain) for tool in tools))
    at = next(
        (at for at, turn in enumerate(conversation) if turn["role"] != "system" or role == "system"), len(conversation)
    )
    before, text, rest = conversation[:at], "", conversation[at:]
    if rest and rest[0]["role"] == role:
        text, rest = rest[0]["content"], rest[1:]
    both = (text, offer) if role == "system" else (offer, text)
    return [*before, {"role": role, "content": "\n\n".join(filter(None, both))}, *rest]


def _spelled(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns of nothing but text: calls in Hermes tags, results as a user turn.

    What the user says beside results is in the same turn: many templates want user and assistant to take turns.
    """
    found: list[dict[str, Any]] = []
    for theirs, run in groupby(messages, key=lambda message: message.role in ("tool", "user")):
        said = list(run)
        if theirs and any(message.role == "tool" for message in said):
            found.append({"role": "user", "content": "\n\n".join(_joined(said))})
        else:
            found += [{"role": message.role, "content": _with_calls(message)} for message in said]
    return found


def _joined(said: list[Message]) -> Iterator[str]:
    """Texts of a user turn: the results that follow each other as one, and what else there is."""
    for answers, run in groupby(said, key=lambda message: message.role == "tool"):
        if answers:
            yield "\n".join(f"<tool_response>\n{message.content}\n</tool_response>" for message in run)
        else:
            yield from (message.content for message in run)


def _with_calls(message: Message) -> str:
    calls = [
        f"{_OPEN}\n{_json({'name': call.name, 'arguments': json.loads(call.arguments)})}\n{_CLOSE}"
        for call in message.calls
    ]
    return "\n".join([message.content, *calls] if message.content else calls)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- from the model ----------------------------------------------------------------------------------------------------

_Read = tuple[str, list[tuple[str, object, object]]]
"""What was said besides the calls; and of each call its name, arguments and id ("" where it has none), not yet checked
but for the name being text."""


def parsed(text: str, dialect: Dialect, tools: Sequence[Tool]) -> Parsed:
    """The calls in a reply, and what it says besides. Never raises; nothing is guessed, and it is all or nothing.

    A call counts where its JSON holds, its function is one of the tools, its arguments are an object that canonical
    JSON can say, no key is there twice, and its id, if any, is its own. Calls without an id are "call_0", "call_1", by
    place. The special tokens that end a reply are to be cut off before; those that begin a call are to be left in.
    """
    if not tools:
        return Parsed(text)
    names = frozenset(tool.name for tool in tools)
    try:
        said, found = _READERS[dialect.name](text, names)
        calls = _checked(found, names)
    except (ValueError, RecursionError, RecordError):
        return Parsed(text, unparsed=True)
    return Parsed(said.strip(), calls) if calls else Parsed(text)


def certain(text: str, dialect: Dialect) -> str:
    """What of a reply so far stands in the text of the whole one, blanks at its ends removed, whatever comes.

    With every token more it goes on where it ended: `parsed(whole, ...).text.strip()` begins with it.
    """
    if dialect.name == "llama":  # a call is a whole reply
        first = text.lstrip()[: len(_TAG)]
        return "" if first.startswith("{") or _TAG.startswith(first) else text.strip()
    mark = _OPEN if dialect.name == "hermes" else _CALLS
    before, found, _ = text.partition(mark)
    return before[: len(before) - (0 if found else begun(before, [mark]))].strip()


def _checked(found: list[tuple[str, object, object]], names: frozenset[str]) -> tuple[ToolCall, ...]:
    calls = tuple(_call(*parts, place, names) for place, parts in enumerate(found))
    if len({call.id for call in calls}) < len(calls):
        raise ValueError("two calls have one id: a result could not be matched to its call")
    return calls


def _call(name: str, arguments: object, given: object, place: int, names: frozenset[str]) -> ToolCall:
    if name not in names:
        raise ValueError("no such function")
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")  # noqa: TRY004 - as every other fault of a reply
    if not isinstance(given, str):
        raise ValueError("an id is not text")  # noqa: TRY004 - the same
    written = canonical(arguments).decode()
    # What is recorded must be fit for a record again: 1e20 is written as a whole number that is too large to be read
    # back, and half of a surrogate pair, which JSON can spell, is not text.
    canonical([given, json.loads(written)])
    return ToolCall(name=name, arguments=written, id=given or f"call_{place}")


def _hermes(text: str, _: frozenset[str]) -> _Read:
    said, found, at = [], [], 0
    while (start := text.find(_OPEN, at)) >= 0:
        said.append(text[at:start].strip())
        # The JSON is read before the closing tag is looked for: its strings may hold the tags.
        value, end = _value(text, start + len(_OPEN))
        end = _past_blanks(text, end)
        if not text.startswith(_CLOSE, end):
            raise ValueError("a call is not closed")
        found.append(_parts(value, "arguments"))
        at = end + len(_CLOSE)
    said.append(text[at:].strip())
    if any(_CLOSE in part for part in said):
        raise ValueError("a call is not opened")
    return "\n".join(filter(None, said)), found


def _mistral(text: str, _: frozenset[str]) -> _Read:
    said, mark, _rest = text.partition(_CALLS)
    found: list[tuple[str, object, object]] = []
    at = len(said)
    while mark and at < len(text):
        if not text.startswith(_CALLS, at):
            raise ValueError("calls are followed by something else")
        at = _past_blanks(text, at + len(_CALLS))
        if text.startswith("[", at):
            value, at = _value(text, at)
            if not value:
                raise ValueError("a list of no calls")
            found += [_parts(one, "arguments") for one in value]
        else:
            brace = text.index("{", at)
            name, given = _head(text[at:brace])
            arguments, at = _value(text, brace)
            found.append((name, arguments, given))
        at = _past_blanks(text, at)
    return said, found


def _head(head: str) -> tuple[str, str]:
    """Name and id of what stands before a call's arguments: name, then perhaps [CALL_ID]id, then perhaps [ARGS]."""
    name, mark, given = head.strip().removesuffix(_ARGS).partition(_ID)
    if mark and not given.strip():
        raise ValueError("an empty id")
    return name.strip(), given.strip()


def _llama(text: str, names: frozenset[str]) -> _Read:
    body = text.strip()
    tagged = body.startswith(_TAG)
    if tagged:
        body = body.removeprefix(_TAG).lstrip()
    if not body.startswith("{"):
        if _TAG in text:
            raise ValueError("the tag of a call without one")  # of Python code, or behind other text
        return text, []
    values = _values(body)
    if not tagged and not any(_meant(value, names) for value in values):
        return text, []  # the answer is itself JSON
    return "", [_parts(value, "parameters") for value in values]


def _meant(value: Any, names: frozenset[str]) -> bool:
    """Is this meant as a call? Any JSON may have a name, so it has parameters as well, or is the name of a tool."""
    if not isinstance(value, dict) or "name" not in value:
        return False
    return "parameters" in value or (isinstance(value["name"], str) and value["name"] in names)


_READERS: dict[Name, Callable[[str, frozenset[str]], _Read]] = {
    "hermes": _hermes, "mistral": _mistral, "llama": _llama,
}  # fmt: skip


def _parts(value: Any, key: str) -> tuple[str, object, object]:
    """Name, arguments (under that key) and id of a call written as an object. ValueError where it is not one."""
    if not isinstance(value, dict) or not {"name", key} <= value.keys() <= {"name", key, "id", "type"}:
        raise ValueError("not the keys of a call")
    if not isinstance(value["name"], str) or value.get("type", "function") != "function":
        raise ValueError("not a call of a function")
    return value["name"], value[key], value.get("id", "")


# -- JSON from a model -------------------------------------------------------------------------------------------------


def _past_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins here, blanks aside, and where it ends. ValueError, RecursionError."""
    value, end = _DECODER.raw_decode(text, _past_blanks(text, at))
    level = [value]
    for _ in range(DEPTH):
        held = (
            inner.values() if isinstance(inner, dict) else inner for inner in level if isinstance(inner, dict | list)
        )
        level = [inner for values in held for inner in values]
        if not level:
            return value, end
    raise ValueError(f"nested deeper than {DEPTH}")


def _values(text: str) -> list[Any]:
    """JSON values up to the end of the text, separated by ; or line ends."""
    value, end = _value(text, 0)
    found = [value]
    while (at := _past_blanks(text, end)) < len(text):
        if text[at] == ";":
            at += 1
        elif "\n" not in text[end:at]:
            raise ValueError("not separated")
        value, end = _value(text, at)
        found.append(value)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
