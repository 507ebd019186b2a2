"""Tool calls: which dialect a template speaks, what it is given, and what is read out of a reply."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.records import Message, Tool, ToolCall, canonical
from truing.records.content import folder
from truing.targets.tools import DEPTH, Dialect, Parsed, certain, parsed, spoken, turns

HERMES, MISTRAL, LLAMA = (Dialect(name, native=True) for name in ("hermes", "mistral", "llama"))
OURS = Dialect("hermes", native=False)
NO_SYSTEM = Dialect("hermes", native=False, system=False)
DIALECTS = (HERMES, MISTRAL, LLAMA)

LOOK = Tool(
    name="look",
    description="Looks at a <place> in “words”.",
    parameters='{"properties":{"place":{"type":"string"}},"type":"object"}',
)
SEND = Tool(name="send_mail")
TOOLS = (LOOK, SEND)
YARD = ToolCall(name="look", arguments='{"place":"yard"}', id="call_0")
MAIL = ToolCall(name="send_mail", arguments="{}", id="call_1")


# -- a reply taken apart -----------------------------------------------------------------------------------------------

READ: list[tuple[Dialect, str, str, tuple[ToolCall, ...]]] = [
    (HERMES, '<tool_call>{"name": "look", "arguments": {"place": "yard"}}</tool_call>', "", (YARD,)),
    (HERMES, ' I look.\n<tool_call>\n{"arguments":{"place":"yard"},"name":"look"}\n</tool_call>\n', "I look.", (YARD,)),
    (
        HERMES,
        '<tool_call>{"name": "look", "arguments": {"place": "yard"}}</tool_call>and'
        '<tool_call>{"name": "send_mail", "arguments": {}, "type": "function"}</tool_call>done',
        "and\ndone",
        (YARD, MAIL),
    ),
    (
        HERMES,
        '<tool_call>{"name": "look", "arguments": {"place": "</tool_call><tool_call>"}}</tool_call>',
        "",
        (ToolCall(name="look", arguments='{"place":"</tool_call><tool_call>"}', id="call_0"),),
    ),
    (
        HERMES,
        '<tool_call>{"name": "look", "id": "a", "arguments": {"b": 1.0, "a": [true, null, -0.0]}}</tool_call>',
        "",
        (ToolCall(name="look", arguments='{"a":[true,null,0],"b":1}', id="a"),),
    ),
    (MISTRAL, '[TOOL_CALLS][{"name": "look", "arguments": {"place": "yard"}}]', "", (YARD,)),
    (
        MISTRAL,
        'So. [TOOL_CALLS] [{"name": "look", "arguments": {"place": "[TOOL_CALLS]"}, "id": "abcdefghi"},\n'
        ' {"name": "send_mail", "arguments": {}}]\n',
        "So.",
        (ToolCall(name="look", arguments='{"place":"[TOOL_CALLS]"}', id="abcdefghi"), MAIL),
    ),
    (MISTRAL, '[TOOL_CALLS]look{"place": "yard"}', "", (YARD,)),
    (MISTRAL, '[TOOL_CALLS]look[ARGS]{"place": "yard"}[TOOL_CALLS]send_mail[ARGS]{}', "", (YARD, MAIL)),
    (
        MISTRAL,
        'Yes[TOOL_CALLS]look[CALL_ID]xyz[ARGS]{"place": "yard"}',
        "Yes",
        (ToolCall(name="look", arguments='{"place":"yard"}', id="xyz"),),
    ),
    (LLAMA, '{"name": "look", "parameters": {"place": "yard"}}', "", (YARD,)),
    (LLAMA, '\n<|python_tag|>{"type": "function", "name": "look", "parameters": {"place": "yard"}} ', "", (YARD,)),
    (
        LLAMA,
        '{"name": "look", "parameters": {"place": "yard"}}; {"name": "send_mail", "parameters": {}}',
        "",
        (YARD, MAIL),
    ),
    (
        LLAMA,
        '<|python_tag|>{"name": "look", "parameters": {"place": "yard"}}\n{"name": "send_mail", "parameters": {}}',
        "",
        (YARD, MAIL),
    ),
]


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "reply", "text", "calls"), READ)
def test_calls_are_read(dialect: Dialect, reply: str, text: str, calls: tuple[ToolCall, ...]) -> None:
    assert parsed(reply, dialect, TOOLS) == Parsed(text, calls, unparsed=False)


PLAIN: list[tuple[Dialect, str]] = [
    (HERMES, ""),
    (HERMES, " A reply of words.\n"),
    (HERMES, '{"name": "look", "arguments": {}}'),
    (HERMES, '[TOOL_CALLS]look{} {"name": "look", "parameters": {}}'),
    (MISTRAL, ""),
    (MISTRAL, '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
    (MISTRAL, "look[ARGS]{}"),
    (LLAMA, ""),
    (LLAMA, 'I call {"name": "look", "parameters": {}}'),
    (LLAMA, '[{"name": "look", "parameters": {}}]'),
    (LLAMA, '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
    (LLAMA, '{"answer": 42}'),
    (LLAMA, '{"name": "Ann", "age": 30}'),
    (LLAMA, '{"name": ["look"]}\n{"parameters": {}}'),
    (LLAMA, '{"a": "<|python_tag|>"}'),
]


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "reply"), PLAIN)
def test_what_holds_no_mark_is_said_as_it_is(dialect: Dialect, reply: str) -> None:
    assert parsed(reply, dialect, TOOLS) == Parsed(reply, (), unparsed=False)


# An object that is no call of an offered function, in the key of the dialect.
BROKEN = [
    "",
    "{",
    "nothing",
    "[]",
    '"look"',
    "{}",
    '{"name": "look"}',
    '{"name": "look", "KEY": {}',
    '{"name": "look", "KEY": {},}',
    "{'name': 'look', 'KEY': {}}",
    '{"name": "look", "KEY": {}}}',
    '{"name": "look", "KEY": {}} and more',
    '{"name": "look", "KEY": "{}"}',
    '{"name": "look", "KEY": []}',
    '{"name": "look", "KEY": null}',
    '{"name": "fly", "KEY": {}}',
    '{"name": "LOOK", "KEY": {}}',
    '{"name": "", "KEY": {}}',
    '{"name": "look", "KEY": {}, "why": "because"}',
    '{"name": "look", "KEY": {}, "type": "macro"}',
    '{"name": "look", "KEY": {}, "id": 7}',
    '{"name": "look", "KEY": {}, "id": "\\ud800"}',
    '{"name": "look", "KEY": {}, "KEY": {}}',
    '{"name": "look", "KEY": {"a": 1, "a": 1}}',
    '{"name": "look", "KEY": {"a": NaN}}',
    '{"name": "look", "KEY": {"a": -Infinity}}',
    '{"name": "look", "KEY": {"a": 1e999}}',
    '{"name": "look", "KEY": {"a": 9007199254740992}}',
    '{"name": "look", "KEY": {"a": 1e20}}',
    '{"name": "look", "KEY": {"a": ' + "9" * 5000 + "}}",
    '{"name": "look", "KEY": {"a": "\\ud800"}}',
    '{"name": "look", "KEY": {"\\ud800": 1}}',
    '{"name": "look", "KEY": {"a": "\n"}}',
    '{"name": "look", "KEY": {"a": ' + "[" * DEPTH + "]" * DEPTH + "}}",
    '{"name": "look", "KEY": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    '{"name": "look", "KEY": {"a": ' + '{"a":' * 100_000,
]
ANY = {
    "hermes": lambda call: "<tool_call>" + call.replace("KEY", "arguments") + "</tool_call>",
    "mistral": lambda call: "[TOOL_CALLS][" + call.replace("KEY", "arguments") + "]",
    "llama": lambda call: "<|python_tag|>" + call.replace("KEY", "parameters"),
}


@pytest.mark.base
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("call", BROKEN, ids=lambda call: call[:60])
def test_a_broken_call_leaves_the_reply_unparsed(dialect: Dialect, call: str) -> None:
    reply = ANY[dialect.name](call)
    assert parsed(reply, dialect, TOOLS) == Parsed(reply, (), unparsed=True)


FAULTY: list[tuple[Dialect, str]] = [
    (HERMES, 'Words <tool_call>\n{"name": "look", "arguments": {}}'),
    (HERMES, '{"name": "look", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "look", "arguments": {}}</tool_call></tool_call>'),
    (HERMES, '<tool_call>{"name": "look", "arguments": {}}\n{"name": "look", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>[{"name": "look", "arguments": {}}]</tool_call>'),
    (HERMES, '<tool_call>{"name": "look", "parameters": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "look", "arguments": {}}</tool_call> then <tool_call>'),
    (HERMES, 2 * '<tool_call>{"name": "look", "arguments": {}, "id": "a"}</tool_call>'),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, "[TOOL_CALLS]   "),
    (MISTRAL, "[TOOL_CALLS]look"),
    (MISTRAL, "[TOOL_CALLS]look[ARGS]"),
    (MISTRAL, '[TOOL_CALLS]look[ARGS]{"place": "yard"'),
    (MISTRAL, "[TOOL_CALLS]fly{}"),
    (MISTRAL, "[TOOL_CALLS]look[CALL_ID][ARGS]{}"),
    (MISTRAL, "[TOOL_CALLS]look[ARGS][ARGS]{}"),
    (MISTRAL, "[TOOL_CALLS]look{} That is all."),
    (MISTRAL, "[TOOL_CALLS]look{}send_mail{}"),
    (MISTRAL, "[TOOL_CALLS][TOOL_CALLS]look{}"),
    (MISTRAL, '[TOOL_CALLS]{"name": "look", "arguments": {}}'),
    (MISTRAL, '[TOOL_CALLS][{"name": "look", "arguments": {}}] That is all.'),
    (MISTRAL, '[TOOL_CALLS][{"name": "look", "arguments": {}}, {"name": "fly", "arguments": {}}]'),
    (LLAMA, '{"name": "look", "parameters": {"place": "ya'),
    (LLAMA, "{ words }"),
    (LLAMA, '{"name": "look"}'),
    (LLAMA, '{"name": "look", "arguments": {}}'),
    (LLAMA, '{"name": "fly", "parameters": {}}'),
    (LLAMA, '{"name": ["look"], "parameters": {}}'),
    (LLAMA, '{"name": "look", "parameters": {}} I hope this helps.'),
    (LLAMA, '{"name": "look", "parameters": {}} {"name": "look", "parameters": {}}'),
    (LLAMA, '{"name": "look", "parameters": {}};;{"name": "look", "parameters": {}}'),
    (LLAMA, '{"name": "look", "parameters": {}};'),
    (LLAMA, '{"name": "look", "parameters": {}}\n{"answer": 42}'),
    (LLAMA, '<|python_tag|>{"answer": 42}'),
    (LLAMA, "<|python_tag|>print(1)"),
    (LLAMA, "<|python_tag|>"),
    (LLAMA, 'I look. <|python_tag|>{"name": "look", "parameters": {}}'),
]


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "reply"), FAULTY)
def test_a_mark_without_a_whole_call_leaves_the_reply_unparsed(dialect: Dialect, reply: str) -> None:
    assert parsed(reply, dialect, TOOLS) == Parsed(reply, (), unparsed=True)


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "reply"), [(d, r) for d, r, _, _ in READ] + FAULTY)
def test_without_tools_nothing_is_read(dialect: Dialect, reply: str) -> None:
    assert parsed(reply, dialect, ()) == Parsed(reply, (), unparsed=False)


@pytest.mark.base
def test_what_is_nested_less_deeply_is_read() -> None:
    deep = "[" * (DEPTH - 2) + "]" * (DEPTH - 2)
    (call,) = parsed(f'[TOOL_CALLS]look{{"place":{deep}}}', MISTRAL, TOOLS).calls
    assert call.arguments == f'{{"place":{deep}}}'


# -- calls written and read again --------------------------------------------------------------------------------------

MARKS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    ";",
    "\n",
    "{",
    "}",
    '"',
]
words = st.lists(st.sampled_from(MARKS) | st.text(max_size=5), max_size=5).map("".join)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(words, values, max_size=3)
asked = st.lists(st.tuples(st.sampled_from(["look", "send_mail"]), arguments), min_size=1, max_size=4)
Asked = list[tuple[str, dict[str, Any]]]


def hermes(calls: Asked, indent: int | None) -> str:
    bodies = [json.dumps({"name": name, "arguments": given}, indent=indent) for name, given in calls]
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def mistral_list(calls: Asked, indent: int | None) -> str:
    return "[TOOL_CALLS]" + json.dumps([{"name": name, "arguments": given} for name, given in calls], indent=indent)


def mistral_named(calls: Asked, indent: int | None) -> str:
    mark = "[ARGS]" if indent else ""
    return "".join(f"[TOOL_CALLS]{name}{mark}{json.dumps(given, indent=indent)}" for name, given in calls)


def mistral_with_ids(calls: Asked, indent: int | None) -> str:
    numbered = enumerate(calls)
    return "".join(f"[TOOL_CALLS]{n}[CALL_ID]call_{i}[ARGS]{json.dumps(a, indent=indent)}" for i, (n, a) in numbered)


def llama(calls: Asked, indent: int | None) -> str:
    return ("\n" if indent else "; ").join(json.dumps({"name": n, "parameters": a}, indent=indent) for n, a in calls)


def llama_tagged(calls: Asked, indent: int | None) -> str:
    return "<|python_tag|>" + llama(calls, indent)


WRITERS = [
    (HERMES, hermes), (MISTRAL, mistral_list), (MISTRAL, mistral_named), (MISTRAL, mistral_with_ids), (LLAMA, llama),
    (LLAMA, llama_tagged),
]  # fmt: skip
WRITER_NAMES = [write.__name__ for _, write in WRITERS]


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "write"), WRITERS, ids=WRITER_NAMES)
@given(calls=asked, indent=st.sampled_from([None, 2]))
def test_calls_come_back_as_written(
    dialect: Dialect, write: Callable[[Asked, int | None], str], calls: Asked, indent: int | None
) -> None:
    found = parsed(write(calls, indent), dialect, TOOLS)
    assert found.text == ""
    assert not found.unparsed
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == calls
    assert [call.arguments for call in found.calls] == [canonical(given).decode() for _, given in calls]
    assert [call.id for call in found.calls] == [f"call_{place}" for place in range(len(calls))]


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "write"), WRITERS, ids=WRITER_NAMES)
@given(calls=asked, cut=st.integers(0, 2**20))
def test_a_reply_that_was_cut_off_gives_no_call_that_was_not_finished(
    dialect: Dialect, write: Callable[[Asked, int | None], str], calls: Asked, cut: int
) -> None:
    whole = write(calls, None)
    found = parsed(whole[: cut % len(whole)], dialect, TOOLS)
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == calls[: len(found.calls)]
    assert len(found.calls) < len(calls)


@pytest.mark.base
@given(calls=asked)
def test_calls_spelled_in_text_are_read_back(calls: Asked) -> None:
    """What a target without tools in its template is shown of its own calls is what is asked of it."""
    said = tuple(ToolCall(name=n, arguments=canonical(a).decode(), id=f"call_{i}") for i, (n, a) in enumerate(calls))
    (turn,), _ = turns([Message(role="assistant", content="Wait.", calls=said)], (), OURS)
    assert parsed(turn["content"], OURS, TOOLS) == Parsed("Wait.", said, unparsed=False)


PIECES = [
    *MARKS, "look", "send_mail", '"look"', '"name"', '"arguments"', '"parameters"', ":", ",", "[", "]", " ",
    '{"name":"look","arguments":{}}', '{"name":"look","parameters":{}}', "look{}", '"type":"function"', "NaN", "1e999",
]  # fmt: skip
BEGIN = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama": "{"}


@pytest.mark.base
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(reply=st.text() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_text_raises_or_gives_a_call_out_of_nothing(dialect: Dialect, reply: str) -> None:
    found = parsed(reply, dialect, TOOLS)
    if found.calls:
        assert not found.unparsed
        assert BEGIN[dialect.name] in reply
        assert all(call.name in reply for call in found.calls)
        assert all(canonical(json.loads(call.arguments)).decode() == call.arguments for call in found.calls)
        assert len({call.id for call in found.calls}) == len(found.calls)
    else:
        assert found.text == reply


replies = (
    st.text(max_size=12)
    | st.lists(st.sampled_from([*PIECES, "<tool", "[TOOL", "<|python", "\x1c", "\u3000"]), max_size=12).map("".join)
    | st.builds(
        lambda before, write, calls: before + write(calls, None),
        words,
        st.sampled_from([write for _, write in WRITERS]),
        asked,
    )
)


@pytest.mark.base
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(reply=replies, cuts=st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)))
def test_what_is_certain_of_a_reply_stands_in_it_whatever_comes(
    dialect: Dialect, reply: str, cuts: tuple[int, int]
) -> None:
    less, more = (certain(reply[:cut], dialect) for cut in sorted(cut % (len(reply) + 1) for cut in cuts))
    assert more.startswith(less)
    assert parsed(reply, dialect, TOOLS).text.strip().startswith(more)


CERTAIN: list[tuple[Dialect, str, str]] = [
    (HERMES, "I look.\n", "I look."),
    (HERMES, " Is 3<4? <", "Is 3<4?"),
    (HERMES, "So <tool_cal", "So"),
    (HERMES, "So <tool_cap", "So <tool_cap"),
    (HERMES, "So <tool_call>{} and", "So"),
    (HERMES, "<tool_call><tool_call", ""),
    (HERMES, "<<tool", "<"),
    (HERMES, '{"a": "[TOOL_CALLS]"', '{"a": "[TOOL_CALLS]"'),
    (MISTRAL, "Well [x] [TOOL", "Well [x]"),
    (MISTRAL, "[TOOL_CALLS]look", ""),
    (MISTRAL, "<tool_call>", "<tool_call>"),
    (LLAMA, " \n", ""),
    (LLAMA, ' {"answer": 42} it is', ""),
    (LLAMA, "<|py", ""),
    (LLAMA, "<|pie|> {", "<|pie|> {"),
    (LLAMA, "<|python_tag|>x", ""),
    (LLAMA, " I say {", "I say {"),
]


@pytest.mark.base
@pytest.mark.parametrize(("dialect", "begun", "said"), CERTAIN)
def test_as_much_as_possible_is_certain(dialect: Dialect, begun: str, said: str) -> None:
    assert certain(begun, dialect) == said


MEGA = 1_000_000
LONG = {
    "open": "<tool_call>" * (MEGA // 11),
    "close": "</tool_call>" * (MEGA // 12),
    "open and close": "<tool_call></tool_call>" * (MEGA // 23),
    "calls": '<tool_call>{"name":"look","arguments":{}}</tool_call> ' * (MEGA // 53),
    "blanks": "<tool_call>" + " \n" * (MEGA // 2),
    "blanks between": ("<tool_call>" + " " * 1000) * (MEGA // 1011),
    "marks": "[TOOL_CALLS]" * (MEGA // 12),
    "named": "[TOOL_CALLS]look{}" * (MEGA // 18),
    "named, blanks": ("[TOOL_CALLS]look{}" + " " * 500) * (MEGA // 518),
    "heads": "[TOOL_CALLS]" + "look[CALL_ID]" * (MEGA // 13) + "{}",
    "list": "[TOOL_CALLS][" + ",".join(['{"name":"look","arguments":{}}'] * (MEGA // 31)) + "]",
    "nested lists": "[TOOL_CALLS]" + "[" * MEGA,
    "nested objects": '{"a":' * (MEGA // 5),
    "values": '{"name":"look","parameters":{}};' * (MEGA // 33) + '{"name":"look","parameters":{}}',
    "lines": '{"name":"look","parameters":{}}\n' * (MEGA // 33),
    "empty objects": "{};" * (MEGA // 3),
    "text": '[TOOL_CALLS]look{"a":"' + "\\u0041" * (MEGA // 6) + '"}',
    "quotes": '[TOOL_CALLS]look{"a":"' + '\\"' * (MEGA // 2) + '"}',
    "whole number": '[TOOL_CALLS]look{"a":' + "9" * MEGA + "}",
    "fraction": '[TOOL_CALLS]look{"a":0.' + "7" * MEGA + "}",
    "keys": "[TOOL_CALLS]look{" + ",".join(f'"{i}":{i}' for i in range(MEGA // 14)) + "}",
    "tags": "<|python_tag|>" * (MEGA // 14),
    "wide": '[TOOL_CALLS]look{"a":[' + ",".join(["[]"] * (MEGA // 3)) + "]}",
}


@pytest.mark.base
@pytest.mark.parametrize("reply", LONG.values(), ids=LONG.keys())
def test_a_long_reply_is_read_in_linear_time(reply: str) -> None:
    for dialect in DIALECTS:
        began = time.process_time()
        parsed(reply, dialect, TOOLS)
        certain(reply, dialect)
        assert time.process_time() - began < 8


# -- what a template is given ------------------------------------------------------------------------------------------

ASKING = Message(role="user", content="Look, then write.")
CALLING = Message(role="assistant", content="I look.", calls=(YARD, MAIL))
SEEN = Message(role="tool", content="a cat", call="call_0", tool="look")
SENT = Message(role="tool", content="sent", call="call_1", tool="send_mail")
DONE = Message(role="assistant", content="Done.")
TALK = (ASKING, CALLING, SEEN, SENT, DONE)


@pytest.mark.base
@pytest.mark.parametrize("dialect", [*DIALECTS, OURS])
def test_turns_without_tools_are_what_they_always_were(dialect: Dialect) -> None:
    talk = [Message(role="system", content="Be brief."), ASKING, DONE]
    assert turns(talk, (), dialect) == ([{"role": m.role, "content": m.content} for m in talk], None)


@pytest.mark.base
@pytest.mark.parametrize("dialect", [HERMES, LLAMA])
def test_a_native_template_is_given_calls_and_results(dialect: Dialect) -> None:
    given_turns, given_tools = turns(TALK, TOOLS, dialect)
    assert given_tools == [LOOK.plain, SEND.plain]
    assert given_turns == [
        {"role": "user", "content": "Look, then write."},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"type": "function", "id": "call_0", "function": {"name": "look", "arguments": {"place": "yard"}}},
                {"type": "function", "id": "call_1", "function": {"name": "send_mail", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "a cat", "name": "look", "tool_call_id": "call_0"},
        {"role": "tool", "content": "sent", "name": "send_mail", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Done."},
    ]


@pytest.mark.base
@pytest.mark.parametrize(
    ("given_id", "fits"), [("call_0", False), ("", False), ("aB3aB3aB3", True), ("é23456789", False)]
)
def test_mistral_ids_are_nine_letters_or_digits_and_the_same_in_call_and_result(given_id: str, fits: bool) -> None:
    call = Message(role="assistant", content="", calls=(YARD.model_copy(update={"id": given_id}), MAIL))
    found, _ = turns([call, SEEN.model_copy(update={"call": given_id})], TOOLS, MISTRAL)
    said = found[0]["tool_calls"][0]["id"]
    assert len(said) == 9
    assert said.isascii()
    assert said.isalnum()
    assert (said == given_id) is fits
    assert said != found[0]["tool_calls"][1]["id"]
    assert found[1]["tool_call_id"] == said


@pytest.mark.base
def test_where_the_template_renders_no_tools_all_is_text() -> None:
    found, given_tools = turns(TALK, TOOLS, OURS)
    assert given_tools is None
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "user", "assistant"]
    assert all(turn.keys() == {"role", "content"} for turn in found)
    offer = found[0]["content"]
    described = offer.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in described.split("\n")] == [LOOK.plain, SEND.plain]
    assert "“words”" in described
    assert all(mark in offer for mark in ("<tool_call>", "</tool_call>", '"name"', '"arguments"', "<tool_response>"))
    assert found[2]["content"] == (
        'I look.\n<tool_call>\n{"name": "look", "arguments": {"place": "yard"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "send_mail", "arguments": {}}\n</tool_call>'
    )
    assert found[3]["content"] == ("<tool_response>\na cat\n</tool_response>\n<tool_response>\nsent\n</tool_response>")


@pytest.mark.base
def test_the_description_is_added_to_the_system_turn() -> None:
    alone = turns([ASKING], TOOLS, OURS)[0][0]["content"]
    (system, user), _ = turns([Message(role="system", content="Be brief."), ASKING], TOOLS, OURS)
    assert system == {"role": "system", "content": f"Be brief.\n\n{alone}"}
    assert user == {"role": "user", "content": ASKING.content}
    assert turns([Message(role="system", content=""), ASKING], TOOLS, OURS)[0][0]["content"] == alone
    assert turns([], TOOLS, OURS) == ([{"role": "system", "content": alone}], None)
    assert turns([ASKING], (), OURS) == ([user], None)


@pytest.mark.base
def test_where_there_is_no_system_turn_the_description_stands_before_what_the_user_says_first() -> None:
    offer = turns([ASKING], TOOLS, OURS)[0][0]["content"]
    user, made = ({"role": "user", "content": text} for text in (f"{offer}\n\n{ASKING.content}", offer))
    system, done = Message(role="system", content="Be brief."), {"role": "assistant", "content": "Done."}
    kept = {"role": "system", "content": "Be brief."}  # the template says what it thinks of it
    for talk, expected in (
        ([ASKING], [user]), ([ASKING, DONE, ASKING], [user, done, {"role": "user", "content": ASKING.content}]),
        ([system, ASKING], [kept, user]), ([], [made]), ([DONE], [made, done]), ([system], [kept, made]),
        ([ASKING.model_copy(update={"content": ""})], [made]),
    ):  # fmt: skip
        assert turns(talk, TOOLS, NO_SYSTEM) == (expected, None)
    assert turns([system, ASKING], (), NO_SYSTEM)[0] == [kept, {"role": "user", "content": ASKING.content}]


@pytest.mark.base
@pytest.mark.parametrize("dialect", [OURS, NO_SYSTEM])
def test_what_a_user_says_beside_results_is_in_their_turn(dialect: Dialect) -> None:
    found, _ = turns([ASKING, CALLING, SEEN, SENT, ASKING, ASKING, SENT, DONE, ASKING, ASKING], (), dialect)
    assert [turn["role"] for turn in found] == ["user", "assistant", "user", "assistant", "user", "user"]
    cat, sent = (f"<tool_response>\n{said}\n</tool_response>" for said in ("a cat", "sent"))
    assert found[2]["content"] == f"{cat}\n{sent}\n\n{ASKING.content}\n\n{ASKING.content}\n\n{sent}"
    assert found[-1]["content"] == ASKING.content


@pytest.mark.base
def test_results_apart_from_each_other_stay_apart() -> None:
    found, _ = turns([SEEN, DONE, SENT], (), OURS)
    assert [turn["role"] for turn in found] == ["user", "assistant", "user"]


@pytest.mark.base
def test_the_label_says_who_renders() -> None:
    assert [dialect.said for dialect in (*DIALECTS, OURS, NO_SYSTEM)] == [
        "hermes (template)", "mistral (template)", "llama (template)", "hermes (system turn)", "hermes (user turn)",
    ]  # fmt: skip


# -- templates, rendered -----------------------------------------------------------------------------------------------

# Each in the shape of a family's own: where tools, calls and results stand, and what it refuses.
HERMES_TEMPLATE = """\
{%- set system = messages[0].content if messages[0].role == 'system' else 'Hi.' %}
{{- '<|im_start|>system\n' + system }}
{%- if tools %}
    {{- '\n<tools>' }}
    {%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}
    {{- '\n</tools>\nAnswer with <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- elif message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA_TEMPLATE = """\
{%- set offered = namespace(left=tools is not none and tools is defined) %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (message.content | tojson) + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
        {%- if message.role == 'user' and offered.left %}
            {%- set offered.left = false %}
            {{- 'Answer with {"name": function, "parameters": its arguments}.\n\n' }}
            {%- for tool in tools %}{{ (tool | tojson(indent=4)) + '\n\n' }}{% endfor %}
        {%- endif %}
        {{- message.content + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

MISTRAL_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and (messages | selectattr('role', 'equalto', 'user') | list | last) == message %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
        {%- endfor %}
        {{- '</s>' }}
    {%- else %}
        {{- ' ' + message.content + '</s>' }}
    {%- endif %}
{%- endfor %}"""

NAMED_TEMPLATE = """\
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}{{ '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
        {%- endfor %}
        {{- '</s>' }}
    {%- endif %}
{%- endfor %}"""

NATIVE = [
    (HERMES, HERMES_TEMPLATE, "<|im_start|>assistant\n", "<|im_end|>"),
    (LLAMA, LLAMA_TEMPLATE, "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    (MISTRAL, MISTRAL_TEMPLATE, "[/INST]", "</s>"),
    (MISTRAL, NAMED_TEMPLATE, "[/INST]", "</s>"),
]

XML_TEMPLATE = HERMES_TEMPLATE.replace(
    """'\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": '""",
    "'\n<tool_call>\n<function=' + call.function.name + '>'",
).replace("""+ '}\n</tool_call>'""", """+ '</function>\n</tool_call>'""")
OTHERS = {
    "no tools": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
    "tools, but no calls": HERMES_TEMPLATE.replace("message.tool_calls or []", "[]"),
    "calls, but no tools": HERMES_TEMPLATE.replace("{%- for tool in tools %}", "{%- for tool in [] %}"),
    "no results": HERMES_TEMPLATE.replace("message.role == 'tool'", "message.role == 'ipython'").replace(
        "message.role != 'system'", "message.role not in ['system', 'tool']"
    ),
    "XML between the tags": XML_TEMPLATE,
    "calls in tags of its own": HERMES_TEMPLATE.replace("<tool_call>", "<call>"),
    "arguments have to be text": HERMES_TEMPLATE.replace(
        "(call.function.arguments | tojson)", "call.function.arguments"
    ),
    "it raises": "{{ raise_exception('no tools here') }}",
    "it does not parse": "{% if tools %}",
}


@pytest.fixture(scope="module")
def rendering() -> Callable[[str], Callable[..., str]]:
    """A function that renders a template, by template; transformers does the rendering."""
    transformers = pytest.importorskip("transformers")
    file = folder("truing.targets.local", "tiny-tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))

    def of(template: str) -> Callable[..., str]:
        def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
            return str(tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False))

        return render

    return of


Rendering = Callable[[str], Callable[..., str]]


@pytest.mark.parametrize(("dialect", "template", "begin", "end"), NATIVE)
def test_the_dialect_of_a_template_is_found(
    rendering: Rendering, dialect: Dialect, template: str, begin: str, end: str
) -> None:
    assert spoken(template, rendering(template)) == dialect


@pytest.mark.parametrize("template", OTHERS.values(), ids=OTHERS.keys())
def test_what_renders_no_exchange_that_we_can_read_gets_text(rendering: Rendering, template: str) -> None:
    assert template not in (HERMES_TEMPLATE, "")
    assert spoken(template, rendering(template)) == OURS


def test_the_templates_that_are_not_native_differ(rendering: Rendering) -> None:
    """Each was made from a native one by a replacement that took."""
    assert len(set(OTHERS.values())) == len(OTHERS)
    assert "<function=" in XML_TEMPLATE
    exchange, given_tools = turns([ASKING, CALLING, SEEN, SENT], TOOLS, HERMES)
    assert "<tool_call>\n<function=look>" in rendering(XML_TEMPLATE)(exchange, given_tools)


@pytest.mark.base
def test_a_template_that_raises_anything_renders_nothing() -> None:
    def render(messages: object, tools: object) -> str:
        raise ZeroDivisionError

    assert spoken("{{ tools }}", render) == OURS


@pytest.mark.parametrize(("dialect", "template", "begin", "end"), NATIVE)
def test_calls_that_a_template_writes_are_read_back(
    rendering: Rendering, dialect: Dialect, template: str, begin: str, end: str
) -> None:
    """The template is the oracle: what it shows a model of its own calls is how the model writes them."""
    calls = (YARD,) if dialect == LLAMA else (YARD, MAIL)
    results = [SEEN, SENT][: len(calls)]
    talk = [Message(role="system", content="Be brief.")] if dialect != MISTRAL else []
    talk += [ASKING, Message(role="assistant", content="", calls=calls), *results, DONE]
    given_turns, given_tools = turns(talk, TOOLS, dialect)
    whole = rendering(template)(given_turns, given_tools)
    assert "a cat" in whole
    assert LOOK.description in whole or json.dumps(LOOK.description, ensure_ascii=False) in whole
    reply = whole.partition(ASKING.content)[2].partition(begin)[2].partition(end)[0]
    found = parsed(reply, dialect, TOOLS)
    assert not found.unparsed
    assert found.text == ""
    assert [(call.name, call.arguments) for call in found.calls] == [(call.name, call.arguments) for call in calls]


GEMMA_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}"""
DROPS = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
)
AT_THE_END = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n' }}{% endif %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(("template", "dialect"), [(GEMMA_TEMPLATE, NO_SYSTEM), (DROPS, NO_SYSTEM), (AT_THE_END, OURS)])
def test_tools_are_offered_where_the_template_shows_them(rendering: Rendering, template: str, dialect: Dialect) -> None:
    render = rendering(template)
    assert spoken(template, render) == dialect
    whole = render(*turns([ASKING, CALLING, SEEN, SENT, ASKING, DONE], TOOLS, dialect))
    assert all(part in whole for part in (LOOK.description, "</tools>", "a cat", "sent\n", DONE.content))
    assert whole.count(ASKING.content) == 2


def test_what_a_template_refuses_stays_its_own_error(rendering: Rendering) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.TemplateError, match="one call at once"):
        rendering(LLAMA_TEMPLATE)(*turns(TALK, TOOLS, LLAMA))


def shows_all(target: Any) -> None:
    """The target's template renders no tools, and yet all of a conversation with tools is in its prompt."""

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        return str(target.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))

    dialect = spoken(target.tokenizer.chat_template, render)
    assert dialect.said == "hermes (system turn)"
    whole = render(*turns(TALK, TOOLS, dialect))
    places = [
        whole.find(part)
        for part in ("</tools>", ASKING.content, '"arguments": {"place": "yard"}', "a cat", "sent\n", DONE.content)
    ]
    assert -1 not in places
    assert places == sorted(places)


def test_the_tiny_model_gets_tools_as_text(tiny: Any) -> None:
    shows_all(tiny)


@pytest.mark.slow
def test_the_bundled_model_gets_tools_as_text() -> None:
    pytest.importorskip("torch")
    from truing.targets import resolve

    shows_all(resolve("local/smollm2-135m"))
