"""The server, asked by OpenAI's own client over a real port."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import http.client
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

import openai
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from truing.cli.target import command
from truing.errors import TargetError, UsageError
from truing.records import Message, Tool, ToolCall
from truing.targets import serve as package
from truing.targets.local import LocalTarget
from truing.targets.local.engine import Engine
from truing.targets.local.generate import Batch, write
from truing.targets.local.pieces import Pieces
from truing.targets.local.sample import Sampling
from truing.targets.local.write import Ask, Token, Writer, Written
from truing.targets.serve import app, listen, serving
from truing.targets.serve.scores import scores
from truing.targets.serve.told import Part, Told

HELLO = [{"role": "user", "content": "Hello there."}]
ASKED = (Message(role="user", content="Hello there."),)
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "yard"}}\n</tool_call>'


@pytest.fixture(scope="module")
def server(tiny: Any, wild: Any) -> Iterator[Any]:
    with serving({"tiny": tiny, "wild": wild}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as found:
        yield found


def raw(url: str, path: str, body: bytes | None = None, *, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and JSON of the answer to a request that no client of OpenAI's would send."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def post(url: str, path: str, body: Any) -> tuple[int, Any]:
    return raw(url, path, json.dumps(body).encode())


def alone(target: Any, ask: Ask) -> Written:
    return write(Batch(target.model), [ask], target.tokenizer)[0]


def log_softmax(target: Any, ids: list[int]) -> Any:
    """What the model itself says about every next token, shape (L, V)."""
    with torch.no_grad():
        return target.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def completion_ask(target: Any, ids: tuple[int, ...], more: int, **how: Any) -> Ask:
    return Ask(ids, more, frozenset({target.tokenizer.eos_token_id}), **how)


# -- chat --------------------------------------------------------------------------------------------------------------


def test_a_greedy_chat_is_the_reply_of_the_target(client: Any, wild: Any, tiny: Any) -> None:
    for name, target in (("wild", wild), ("local/tiny", tiny)):
        found = client.chat.completions.create(model=name, messages=HELLO, temperature=0, max_tokens=9)
        (said,) = target.reply([ASKED], max_tokens=9)
        assert found.choices[0].message.content.strip() == said.text
        assert found.choices[0].finish_reason == ("stop" if said.finished else "length")
        assert found.usage.completion_tokens == said.tokens
        assert found.usage.prompt_tokens == len(target.prompt_ids(ASKED))
        assert found.usage.total_tokens == found.usage.prompt_tokens + said.tokens
        assert found.model == name.removeprefix("local/")
        assert found.system_fingerprint == f"fp_{target.card.id[:12]}"


def test_a_seed_decides_and_n_replies_have_the_seeds_after_it(client: Any, wild: Any) -> None:
    asked = {"model": "wild", "messages": HELLO, "max_completion_tokens": 12, "top_p": 0.9, "temperature": 1.3}
    found = client.chat.completions.create(**asked, seed=40, n=3)
    expected = [
        alone(wild, wild.ask(ASKED, max_tokens=12, sampling=Sampling(1.3, 0.9, seed=seed))).text
        for seed in (40, 41, 42)
    ]
    assert [choice.message.content for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len(set(expected)) == 3


def test_without_a_seed_replies_differ_and_the_seed_that_was_drawn_is_told(client: Any) -> None:
    first, second = (client.chat.completions.create(model="wild", messages=HELLO, max_tokens=12) for _ in range(2))
    assert first.choices[0].message.content != second.choices[0].message.content
    again = client.chat.completions.create(model="wild", messages=HELLO, max_tokens=12, seed=first.truing["seed"])
    assert again.choices[0].message.content == first.choices[0].message.content


def test_stops_end_a_reply_and_are_not_part_of_it(client: Any) -> None:
    asked = {"model": "wild", "messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    for stop in (whole[4:7], ["nowhere in it", whole[4:7]]):
        (choice,) = client.chat.completions.create(**asked, stop=stop).choices
        assert choice.message.content == whole[: whole.index(whole[4:7])]
        assert choice.finish_reason == "stop"


def test_parts_of_text_and_the_role_developer(client: Any, wild: Any) -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there."}]
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    found = client.chat.completions.create(model="wild", messages=turns, temperature=0, max_tokens=9)
    (said,) = wild.reply([(Message(role="system", content="Be brief."), *ASKED)], max_tokens=9)
    assert found.choices[0].message.content.strip() == said.text


@pytest.mark.parametrize(
    "turn", [{"content": [{"type": "refusal", "refusal": "I will "}, {"type": "text", "text": "not."}]},
             {"content": None, "refusal": "I will not."}],
)  # fmt: skip
def test_what_an_assistant_refused_with_is_what_it_said(client: Any, wild: Any, server: Any, turn: Any) -> None:
    with saying(server, "wild", NOTHING) as asks:
        client.chat.completions.create(model="wild", messages=[*HELLO, {"role": "assistant", **turn}, *HELLO])
    assert list(asks[0].prompt) == wild.prompt_ids([*ASKED, Message(role="assistant", content="I will not."), *ASKED])


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"n": 2}, {"tools": [LOOK]}])
def test_a_stream_says_what_the_whole_answer_says(client: Any, more: dict[str, Any]) -> None:
    asked = {"model": "wild", "messages": HELLO, "max_tokens": 15, "seed": 3, **more}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        if choice.logprobs:
            assert [token for part in own if part.logprobs for token in part.logprobs.content] == (
                choice.logprobs.content
            )
        if not more or "tools" in more:
            assert len(own) > 5


def test_log_probabilities_are_the_models_own(client: Any, wild: Any) -> None:
    found = client.chat.completions.create(
        model="wild", messages=HELLO, max_tokens=10, seed=5, temperature=0.7, logprobs=True, top_logprobs=4
    )
    prompt = wild.prompt_ids(ASKED)
    written = alone(wild, wild.ask(ASKED, max_tokens=10, sampling=Sampling(0.7, seed=5)))
    expected = log_softmax(wild, [*prompt, *written.ids])[len(prompt) - 1 :]
    said = found.choices[0].logprobs.content
    pieces = Pieces(wild.tokenizer)
    assert len(said) == len(written.ids)
    for token, one, log_p in zip(said, written.ids, expected, strict=False):
        assert token.logprob == pytest.approx(float(log_p[one]), abs=1e-4)
        assert bytes(token.bytes) == pieces.bytes(one)
        best = log_p.topk(4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [top.token for top in token.top_logprobs] == [pieces.name(one) for one in best.indices.tolist()]
    assert b"".join(bytes(token.bytes) for token in said).decode(errors="replace") == found.choices[0].message.content


def test_a_token_that_ends_a_chat_is_not_among_its_log_probabilities(client: Any, wild: Any, server: Any) -> None:
    ends = wild.tokenizer.eos_token_id
    text = wild.text_ids(" some words")
    with saying(server, "wild", replace(NOTHING, ids=(*text, ends), text=" some words", ended="stop")):
        found = client.chat.completions.create(model="wild", messages=HELLO, logprobs=True)
    assert [token.token for token in found.choices[0].logprobs.content] == [
        Pieces(wild.tokenizer).name(i) for i in text
    ]


def test_where_nothing_is_said_a_reply_may_fill_the_context_and_no_more(client: Any, wild: Any) -> None:
    prompt = len(wild.prompt_ids(ASKED))
    found = client.chat.completions.create(model="wild", messages=HELLO, temperature=1.9, seed=1)
    assert found.choices[0].finish_reason in ("length", "stop")
    assert found.usage.total_tokens <= 512
    if found.choices[0].finish_reason == "length":
        assert found.usage.total_tokens == 512
    with pytest.raises(openai.BadRequestError, match=f"{prompt} of them are the prompt's") as caught:
        client.chat.completions.create(model="wild", messages=HELLO, max_tokens=512)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="longer than the context") as caught:
        client.chat.completions.create(model="wild", messages=[{"role": "user", "content": "word " * 600}])
    assert caught.value.code == "context_length_exceeded"


def test_no_conversation_is_kept(client: Any, wild: Any) -> None:
    before = wild._known_ids.cache_info().currsize
    client.chat.completions.create(
        model="wild", messages=[{"role": "user", "content": "Said only once."}], max_tokens=1
    )
    assert wild._known_ids.cache_info().currsize == before


# -- tools -------------------------------------------------------------------------------------------------------------

NOTHING = Written((), "", "length")


@contextlib.contextmanager
def saying(server: Any, name: str, written: Written) -> Iterator[list[Ask]]:
    """Let an engine write this, whatever it is asked; what it was asked is listed."""
    engine, asks = server.engines[name], []

    def submit(ask: Ask) -> Future[Written]:
        asks.append(ask)
        tokens = tuple(app.Token(one, -1.0, ()) for one in written.ids)
        for place, letter in enumerate(written.text if ask.hear else ""):
            ask.hear(letter, tokens[place : place + 1] if ask.top is not None else ())
        future: Future[Written] = Future()
        future.set_result(replace(written, tokens=tokens) if ask.top is not None else written)
        return future

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "submit", submit)
        yield asks


def test_a_call_is_parsed_and_its_result_goes_back_to_the_model(client: Any, tiny: Any, server: Any) -> None:
    asked = {"model": "tiny", "tools": [LOOK], "max_tokens": 30}
    reply = Written(tuple(tiny.text_ids(CALL)), f"I look.\n{CALL}", "stop")
    with saying(server, "tiny", reply) as asks:
        first = client.chat.completions.create(**asked, messages=HELLO)
        (choice,) = first.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "look")
        assert json.loads(call.function.arguments) == {"place": "yard"}
        history = [
            *HELLO,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "A dog."},
        ]
        second = client.chat.completions.create(**asked, messages=history).choices[0].message.tool_calls[0]
        again = client.chat.completions.create(**asked, messages=HELLO, seed=first.truing["seed"])
    assert second.id != call.id  # clients match results by id, so that it may not come twice in a conversation
    assert again.choices[0].message == choice.message
    tool = Tool(
        name="look", description="Looks.", parameters='{"properties":{"place":{"type":"string"}},"type":"object"}'
    )
    made = Message(role="assistant", content="I look.", calls=(ToolCall(name="look", arguments='{"place":"yard"}'),))
    found = Message(role="tool", content="A dog.", tool="look")
    assert list(asks[0].prompt) == tiny.prompt_ids(ASKED, [tool])
    assert list(asks[1].prompt) == tiny.prompt_ids([*ASKED, made, found], [tool])
    assert not asks[0].special


def test_calls_alone_have_no_content_and_a_stream_gives_them_at_once(client: Any, server: Any) -> None:
    asked = {"model": "tiny", "tools": [LOOK], "messages": HELLO, "seed": 1}
    with saying(server, "tiny", Written((5, 6), f"{CALL}\n{CALL}", "stop")):
        whole = client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.create(**asked, stream=True) as stream:
            parts = [part for chunk in stream for part in chunk.choices]
    assert whole.message.content is None
    calls = [call for part in parts for call in part.delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert [(call.id, call.function.arguments) for call in calls] == [
        (call.id, call.function.arguments) for call in whole.message.tool_calls
    ]
    assert len({call.id for call in calls}) == 2
    assert parts[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("ended", ["stop", "length"])
def test_what_is_no_whole_call_is_text_and_said_to_be(client: Any, server: Any, ended: Any) -> None:
    broken = '<tool_call>{"name": "look", "arguments"'
    asked = {"model": "tiny", "tools": [LOOK], "messages": HELLO}
    with saying(server, "tiny", Written((5, 6), broken, ended)):
        (whole,) = client.chat.completions.create(**asked).choices
        with client.chat.completions.create(**asked, stream=True) as stream:
            last = [part for chunk in stream for part in chunk.choices][-1]
    assert (whole.message.content, whole.message.tool_calls, whole.finish_reason) == (broken, None, ended)
    assert whole.truing == {"unparsed": True, "dialect": "hermes (system turn)"}
    assert last.truing == whole.truing


@pytest.mark.parametrize(
    ("reply", "early"),
    [
        (f" I look.\n{CALL}\nWait.", "I look."), (f"\n{CALL}", ""), (" Just words. ", "Just words."), ("  ", ""),
        ('So <tool_call>{"name"', "So"), ("One </tool_call>", "One </tool_call>"), ("1 <", "1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("logprobs", [False, True])
def test_with_tools_a_stream_says_early_what_is_certain_and_in_the_end_what_the_whole_answer_says(
    client: Any, server: Any, reply: str, early: str, logprobs: bool
) -> None:
    asked = {"model": "tiny", "tools": [LOOK], "messages": HELLO, "seed": 1, "logprobs": logprobs}
    with saying(server, "tiny", Written((5, 6), reply, "stop")):
        (whole,) = client.chat.completions.create(**asked).choices
        with client.chat.completions.create(**asked, stream=True) as stream:
            parts = [part for chunk in stream for part in chunk.choices]
    said = [part.delta.content for part in parts if part.delta.content]
    assert "".join(said) == (whole.message.content or "") == (whole.message.content or "").strip()
    if logprobs:
        assert len(said) <= 1
    else:
        assert early in accumulate(said, initial="")
        assert len(said) >= len(early.split())
    calls = [call for part in parts for call in part.delta.tool_calls or ()]
    assert [call.id for call in calls] == [call.id for call in whole.message.tool_calls or ()]
    assert parts[-1].finish_reason == whole.finish_reason


def test_tool_choice_none_offers_nothing(client: Any, tiny: Any, server: Any) -> None:
    with saying(server, "tiny", Written((5, 6), CALL, "stop")) as asks:
        (found,) = client.chat.completions.create(
            model="tiny", tools=[LOOK], messages=HELLO, tool_choice="none"
        ).choices
    assert (found.message.content, found.finish_reason) == (CALL, "stop")
    assert list(asks[0].prompt) == tiny.prompt_ids(ASKED)


NATIVE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


def test_a_template_with_tools_of_its_own_is_used(wild: Any) -> None:
    tokenizer = copy.deepcopy(wild.tokenizer)
    tokenizer.chat_template = NATIVE
    native = LocalTarget("local/native", wild.model, tokenizer, weights="1" * 64)
    assert native.dialect.said == "mistral (template)"
    reply = Written((5, 6), 'Ah.[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{"place": "yard"}', "stop")
    with (
        serving({"native": native}) as running,
        openai.OpenAI(base_url=running.url, api_key="none") as client,
        saying(running, "native", reply) as asks,
    ):
        (choice,) = client.chat.completions.create(model="native", tools=[LOOK], messages=HELLO).choices
    assert asks[0].special
    assert choice.message.tool_calls[0].id == "abcdefghi"
    assert choice.message.content == "Ah."


# -- completions -------------------------------------------------------------------------------------------------------


def test_prompts_of_all_four_kinds(client: Any, wild: Any) -> None:
    texts = ["The cat sat on", "A dog"]
    ids = [wild.text_ids(text) for text in texts]
    asked = {"model": "wild", "temperature": 0, "max_tokens": 6}
    expected = [alone(wild, completion_ask(wild, tuple(one), 6)).text for one in ids]
    for prompt in (texts, ids):
        found = client.completions.create(prompt=prompt, **asked)
        assert [choice.text for choice in found.choices] == expected
        assert found.usage.prompt_tokens == sum(map(len, ids))
        assert client.completions.create(prompt=prompt[0], **asked).choices[0].text == expected[0]


def test_n_continuations_of_each_prompt_stand_together(client: Any, wild: Any) -> None:
    found = client.completions.create(model="wild", prompt=[[7, 8], [9]], n=2, seed=20, max_tokens=5)
    expected = [
        alone(wild, completion_ask(wild, ids, 5, sampling=Sampling(1.0, seed=seed))).text
        for ids in ((7, 8), (9,))
        for seed in (20, 21)
    ]
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"echo": True}, {"n": 2, "echo": True, "logprobs": 0}])
def test_a_streamed_completion_says_what_the_whole_one_says(client: Any, more: dict[str, Any]) -> None:
    asked = {"model": "wild", "prompt": ["The cat", "A dog"], "seed": 3, "max_tokens": 8, **more}
    whole = client.completions.create(**asked)
    with client.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        assert together(own) == (lists(choice.logprobs) if choice.logprobs else [])


def lists(logprobs: Any) -> list[tuple[Any, ...]]:
    """The log-probabilities of a completion, token by token."""
    said = logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset
    return list(zip(*said, strict=True))


def together(parts: list[Any]) -> list[tuple[Any, ...]]:
    """Those of all parts of a completion."""
    return [row for part in parts if part.logprobs for row in lists(part.logprobs)]


@pytest.mark.parametrize("more", [0, 1, 4])
def test_a_prompt_is_scored(client: Any, wild: Any, more: int) -> None:
    texts = ["The cat sat on the mat ü", "The cat sat by"]
    found = client.completions.create(
        model="wild", prompt=texts, echo=True, max_tokens=more, logprobs=3, temperature=0, seed=1
    )
    pieces = Pieces(wild.tokenizer)
    for choice, text in zip(found.choices, texts, strict=True):
        prompt = wild.text_ids(text)
        written = alone(wild, completion_ask(wild, tuple(prompt), more)) if more else NOTHING
        ids = [*prompt, *written.ids]
        log_p = log_softmax(wild, ids)
        said = choice.logprobs
        assert choice.text == text + written.text
        assert said.tokens == [pieces.name(one) for one in ids]
        assert said.token_logprobs[0] is None
        assert said.top_logprobs[0] is None
        expected = [float(log_p[at, one]) for at, one in enumerate(ids[1:])]
        assert said.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
        assert said.token_logprobs[1 : len(prompt)] == pytest.approx(
            wild.log_probs([(prompt[:1], prompt[1:])])[0][0].tolist(), abs=1e-4
        )
        for at, (one, top) in enumerate(zip(ids[1:], said.top_logprobs[1:], strict=True)):
            best = log_p[at].topk(3)
            names = [pieces.name(other) for other in best.indices.tolist()]
            assert set(top) == {*names, pieces.name(one)}
            assert sorted(top.values())[-3:] == pytest.approx(sorted(best.values.tolist()), abs=1e-4)
            # Clients read from this whether the text is what the model would have written.
            assert (said.token_logprobs[at + 1] == max(top.values())) == (one == int(log_p[at].argmax()))
        for name, at in zip(said.tokens, said.text_offset, strict=True):
            if not name.startswith("bytes:"):
                assert choice.text[at:].startswith(name)


def test_a_token_that_ends_a_scored_text_is_counted(client: Any, wild: Any, server: Any) -> None:
    """Clients that score a prompt ask for one token more and cut it off, whichever it is."""
    with saying(server, "wild", Written((0,), "", "stop")):
        found = client.completions.create(model="wild", prompt=[[5, 6, 7]], echo=True, max_tokens=1, logprobs=1)
    assert len(found.choices[0].logprobs.token_logprobs) == 4


def scored(target: Any, texts: list[list[int]]) -> list[tuple[Token, ...]]:
    """All steps at once."""
    steps = scores(target, texts, top=2)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_scores_do_not_depend_on_blocks_or_company(wild: Any, monkeypatch: Any) -> None:
    texts = [[5, 6, 7, 8, 9], [5], [5, 6, 7, 1, 2, 3], [9, 9]]
    together = scored(wild, texts)
    monkeypatch.setattr("truing.targets.local.memory.BLOCK", 2)
    for text, found in zip(texts, together, strict=True):
        (by_itself,) = scored(wild, [text])
        assert [token.id for token in found] == text[1:]
        assert [token.log_p for token in found] == pytest.approx([token.log_p for token in by_itself], abs=1e-4)
        assert [[one for one, _ in token.top] for token in found] == [[one for one, _ in t.top] for t in by_itself]


def test_stopped_completions_have_the_tokens_of_their_text(client: Any) -> None:
    asked = {"model": "wild", "prompt": "The cat", "temperature": 0, "max_tokens": 12, "logprobs": 1}
    whole = client.completions.create(**asked).choices[0]
    stop = whole.text[5:8]
    cut = client.completions.create(**asked, stop=stop).choices[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    kept = [at for at in whole.logprobs.text_offset if at < len(cut.text)]
    assert cut.logprobs.text_offset == kept
    assert cut.logprobs.tokens == whole.logprobs.tokens[: len(kept)]


# -- log-probabilities in streams --------------------------------------------------------------------------------------


@contextlib.contextmanager
def dictating(server: Any, name: str, ids: list[int], go: Callable[[int], Any] = int) -> Iterator[None]:
    """Let an engine write these tokens at temperature 0, whatever the model has in mind, and as many in any case.

    `go` is called before each token, in a thread of its own, with its place.
    """
    engine = server.engines[name]
    tokenizer = engine.target.tokenizer

    def written(ask: Ask) -> Written:
        writer = Writer(ask, tokenizer)
        for place, one in enumerate(ids):
            if writer.ended is None:
                go(place)
                writer.take(torch.arange(len(tokenizer)) % 7 / (place + 1), one)
        if writer.error is not None:
            raise writer.error
        return writer.written

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as threads:
        patch.setattr(engine, "submit", partial(threads.submit, written))
        yield


def chat_parts(client: Any, asked: dict[str, Any]) -> list[Any]:
    """Of each choice of a chat the text and its tokens, whole, and those of each chunk of a stream."""
    asked = {"messages": HELLO, "logprobs": True, **asked}
    whole = client.chat.completions.create(**asked).choices
    with client.chat.completions.create(**asked, stream=True) as stream:
        parts = [part for chunk in stream for part in chunk.choices]
    said = [(part.index, (part.delta.content or "", part.logprobs.content if part.logprobs else [])) for part in parts]
    return [
        ((choice.message.content, choice.logprobs.content), [one for index, one in said if index == choice.index])
        for choice in whole
    ]


def completion_parts(client: Any, asked: dict[str, Any]) -> list[Any]:
    """The same of a completion."""
    how = {key: value for key, value in asked.items() if key != "top_logprobs"}
    asked = {"prompt": [[7, 8, 9]], "logprobs": asked.get("top_logprobs", 0), **how}
    whole = client.completions.create(**asked).choices
    with client.completions.create(**asked, stream=True) as stream:
        parts = [part for chunk in stream for part in chunk.choices]
    said = [(part.index, (part.text, together([part]))) for part in parts]
    return [
        ((choice.text, lists(choice.logprobs)), [one for index, one in said if index == choice.index])
        for choice in whole
    ]


PARTS_OF = pytest.mark.parametrize("parts_of", [chat_parts, completion_parts])


def check_parts(found: list[Any]) -> None:
    """Whether each choice comes in parts that are the whole."""
    for (text, tokens), parts in found:
        assert "".join(said for said, _ in parts) == text
        assert [token for _, those in parts for token in those] == tokens
        assert sum(bool(said and those) for said, those in parts) > 5


@PARTS_OF
@pytest.mark.parametrize("more", [{}, {"top_logprobs": 3}, {"stop": ["t sl", "nowhere"]}])
def test_streams_have_the_log_probabilities_of_the_whole_answer(client: Any, parts_of: Any, more: Any) -> None:
    check_parts(parts_of(client, {"model": "wild", "max_tokens": 40, "seed": 40, **more}))


@PARTS_OF
def test_each_choice_of_a_stream_has_its_own_log_probabilities(server: Any, client: Any, parts_of: Any) -> None:
    with dictating(server, "wild", [5] * 40):  # neither minds when the other joined, as the last digits may
        found = parts_of(client, {"model": "wild", "max_tokens": 40, "seed": 40, "n": 2})
    check_parts(found)
    assert len({text for (text, _), _ in found}) == 2


SAID = "Né 😀 is EN route ✓✓, and not at the END of it."


@pytest.mark.parametrize("stop", [[], [" END"]])
def test_each_chunk_has_the_tokens_of_its_text(client: Any, server: Any, tiny: Any, stop: list[str]) -> None:
    ids, pieces = [*tiny.text_ids(SAID), tiny.tokenizer.eos_token_id], Pieces(tiny.tokenizer)
    assert len([one for one in ids if pieces.name(one).startswith("bytes:")]) > 5
    expected = SAID[: SAID.index(stop[0])] if stop else SAID
    asked = {"model": "tiny", "temperature": 0, "top_logprobs": 2, "stop": stop, "max_tokens": 200}
    with dictating(server, "tiny", ids):
        ((whole, chat),) = chat_parts(client, asked)
        ((same, completion),) = completion_parts(client, asked)
    assert whole[0] == same[0] == expected
    assert [token for _, those in chat for token in those] == whole[1]
    assert [token for _, those in completion for token in those] == same[1]
    for text, tokens in chat:
        assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    *parts, (nothing, end) = completion
    assert [text for text, _ in chat if text] == [text for text, _ in parts]
    assert (nothing, [name for name, *_ in end]) == ("", [] if stop else [tiny.tokenizer.eos_token])
    said = ""
    for text, tokens in parts:
        names = [name for name, *_ in tokens]
        assert "".join(names) == text or any(name.startswith("bytes:") for name in names)
        assert all(len(said) <= at < len(said + text) for *_, at in tokens)
        said += text
    assert len(parts) > 10


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_log_probabilities_come_while_the_reply_is_written(server: Any, client: Any, tiny: Any, path: str) -> None:
    """No token is written before the one before it has come."""
    ids, came = tiny.text_ids("One of these days"), threading.Semaphore(1)

    def go(_: int) -> None:
        assert came.acquire(timeout=20)

    chat = path == "chat/completions"
    create: Any = client.chat.completions.create if chat else client.completions.create
    how = {"messages": HELLO, "logprobs": True} if chat else {"prompt": "x", "logprobs": 0}
    with (
        dictating(server, "tiny", ids, go),
        create(model="tiny", stream=True, temperature=0, max_tokens=len(ids), **how) as stream,
    ):
        found = []
        for chunk in stream:
            if logprobs := chunk.choices[0].logprobs:
                found += [token.token for token in logprobs.content] if chat else logprobs.tokens
                came.release()
    assert found == [Pieces(tiny.tokenizer).name(one) for one in ids]


@given(st.data())
def test_what_is_told_and_the_rest_are_the_whole(tiny: Any, data: st.DataObject) -> None:
    """Whatever the tokens: halves of letters, special ones, stops within tokens, a decoder that drops a blank."""
    tokenizer = data.draw(st.sampled_from([tiny.tokenizer, sentencepiece()]))
    pieces, size = Pieces(tokenizer), len(tokenizer)
    # Beside any others, those that are no letters of their own.
    halves = [one for one in range(size) if pieces.name(one).startswith("bytes:")]
    ids = data.draw(st.lists(st.sampled_from(halves) | st.integers(0, size - 1), min_size=1, max_size=20))
    stop = data.draw(st.lists(st.text("a e\ufffdt", min_size=1, max_size=2), max_size=2))
    parts: list[Part] = []
    ask = Ask(
        (data.draw(st.sampled_from(ids)),), data.draw(st.integers(1, 20)), frozenset({0}), tuple(stop), top=1,
        special=data.draw(st.booleans()), hear=lambda *heard: parts.append(told.hear(*heard)),
    )  # fmt: skip
    told = Told(pieces, ask, str)
    writer = Writer(ask, tokenizer)
    for one in ids:
        if writer.ended is None:
            writer.take(torch.eye(size)[one], one)
    assert writer.error is None
    shown, said = pieces.shown(ask, writer.written), ""
    for part in parts:
        said += part.text
        assert all(at < len(said) for _, at in part.tokens)
    rest = told.rest(Part(writer.written.text, shown))
    assert said + rest.text == writer.written.text
    assert [one for part in (*parts, rest) for one in part.tokens] == shown


# -- tokens as bytes ---------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_the_bytes_of_the_tokens_are_the_text(tiny: Any, text: str) -> None:
    encoded = tiny.tokenizer(text, return_offsets_mapping=True)
    ids, pieces = encoded["input_ids"], Pieces(tiny.tokenizer)
    assert b"".join(map(pieces.bytes, ids)).decode() == text
    assert len({pieces.name(one) for one in ids}) == len(set(ids))
    # The same places as the tokenizer's own, which a text of tokens alone does not have.
    assert list(pieces.starts(ids, special=True)) == [start for start, _ in encoded["offset_mapping"]]


def sentencepiece() -> Any:
    """A tokenizer whose decoder leaves out the first blank of a text."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "\u2581cat": 1, "s": 2, "<0xE2>": 3, "##x": 4, "<0x82>": 5, "<0xAC>": 6}
    backend = Tokenizer(models.BPE(vocabulary, []))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


def test_tokens_of_sentencepiece_and_of_no_known_kind() -> None:
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast

    tokenizer = sentencepiece()
    backend, pieces = tokenizer.backend_tokenizer, Pieces(tokenizer)
    assert [pieces.bytes(one) for one in (0, 1, 2, 3, 99)] == [b"<s>", b" cat", b"s", b"\xe2", b""]
    assert pieces.name(3) == "bytes:\\xe2"
    assert list(pieces.starts([0, 1, 2], special=False)) == [0, 0, 4]
    backend.decoder = decoders.WordPiece()
    assert Pieces(PreTrainedTokenizerFast(tokenizer_object=backend)).bytes(2) == b"s"


@pytest.mark.parametrize("ids", [[1, 2, 1], [0, 1, 2], [2, 3, 5, 6, 1], [1, 3, 5, 2]])
def test_a_prompt_of_tokens_is_said_again_as_their_bytes(wild: Any, ids: list[int]) -> None:
    """The places of tokens and the text agree, where a decoder leaves out the first blank too."""
    tokenizer = sentencepiece()
    tokenizer.chat_template = "x"
    pieces, target = Pieces(tokenizer), LocalTarget("local/sp", wild.model, tokenizer, weights="4" * 64)
    with (
        serving({"sp": target}) as running,
        openai.OpenAI(base_url=running.url, api_key="none") as client,
        saying(running, "sp", Written((2, 2), "ss", "length")),
    ):
        (choice,) = client.completions.create(model="sp", prompt=[ids], echo=True, logprobs=0, max_tokens=2).choices
    assert choice.text.encode().startswith(pieces.bytes(ids[0]))
    said = choice.logprobs
    assert [*map(choice.text.__getitem__, said.text_offset[-2:])] == ["s", "s"]
    whole = [
        (at, name) for at, name in zip(said.text_offset, said.tokens, strict=True) if not name.startswith("bytes:")
    ]
    assert all(choice.text[at:].startswith(name) for at, name in whole)
    assert said.text_offset[-1] == len(choice.text) - 1


# -- models ------------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_named_with_or_without_local(client: Any, server: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "wild"]
    assert client.models.retrieve("local/wild") == client.models.retrieve("wild")
    for ask in (
        lambda: client.models.retrieve("gone/away"),
        lambda: client.completions.create(model="gone/away", prompt="x"),
        lambda: client.chat.completions.create(model="gone/away", messages=HELLO),
    ):
        with pytest.raises(openai.NotFoundError, match="'gone/away' is not served here; known: tiny, wild") as caught:
            ask()
        assert caught.value.code == "model_not_found"
    assert raw(server.url, "/health") == (200, {"status": "ok"})


# -- many at once ------------------------------------------------------------------------------------------------------


def test_64_at_once_each_get_what_they_would_get_alone(server: Any, client: Any, wild: Any, monkeypatch: Any) -> None:
    engine, begin, at_once = server.engines["wild"], threading.Event(), [0]
    advance = Batch.advance

    def counted(batch: Batch) -> None:
        advance(batch)
        at_once.append(engine.busy[0])

    monkeypatch.setattr(Batch, "advance", counted)

    def ask(place: int) -> str:
        words = [{"role": "user", "content": f"Number {place}, {'on and ' * (place % 7)}on."}]
        asked = {"model": "wild", "messages": words, "max_tokens": 5 + place % 11, "seed": place}
        if place % 3:
            return str(client.chat.completions.create(**asked).choices[0].message.content)
        with client.chat.completions.create(**asked, stream=True) as stream:
            return "".join(part.delta.content or "" for chunk in stream for part in chunk.choices)

    with ThreadPoolExecutor(64) as threads:
        engine.run(partial(begin.wait, 30))
        asking = [threads.submit(ask, place) for place in range(64)]
        assert until(lambda: engine.busy[1] >= 64)  # none waits for another to be answered
        begin.set()
        found = [one.result(60) for one in asking]
    assert max(at_once) > 32
    for place, text in enumerate(found):
        asked = (Message(role="user", content=f"Number {place}, {'on and ' * (place % 7)}on."),)
        how = Sampling(1.0, seed=place)
        assert text == alone(wild, wild.ask(asked, max_tokens=5 + place % 11, sampling=how)).text


def until(what: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


@pytest.fixture(scope="module")
def slow(wild: Any) -> Iterator[Any]:
    """A server of a model that writes nothing but one word, without end, and takes its time."""
    model = copy.deepcopy(wild.model)
    model.config.max_position_embeddings = 100_000
    forward = model.forward

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.005)
        out = forward(*args, **kwargs)
        out.logits[..., 0] = -100
        return out

    model.forward = slowly
    with serving({"slow": LocalTarget("local/slow", model, wild.tokenizer, weights="2" * 64)}) as running:
        yield running


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream": True, "logprobs": True}, {"n": 3}])
def test_a_client_that_leaves_frees_its_place(slow: Any, more: dict[str, Any]) -> None:
    engine, place = slow.engines["slow"], urlsplit(slow.url)
    body = json.dumps({"model": "slow", "messages": HELLO, "max_tokens": 50_000, **more})
    connection = http.client.HTTPConnection(str(place.hostname), place.port)
    connection.request("POST", "/v1/chat/completions", body)
    assert until(lambda: engine.busy[0] == more.get("n", 1))
    if more == {"stream": True}:
        answer = connection.getresponse()
        assert answer.read(40).startswith(b"data: ")
        answer.close()
    connection.close()
    assert until(lambda: engine.busy == (0, 0))


@contextlib.contextmanager
def asking(url: str, path: str, **body: Any) -> Iterator[http.client.HTTPConnection]:
    """A client that has asked, and leaves with its answer or without."""
    place = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(str(place.hostname), place.port)) as connection:
        connection.request("POST", path, json.dumps({"model": "slow", **body}))
        yield connection


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_a_client_that_leaves_the_queue_is_waited_for_no_more(slow: Any, more: dict[str, Any]) -> None:
    body = {"messages": HELLO, "max_tokens": 50_000}
    with serving({"slow": slow.engines["slow"].target}, rows=1) as running:
        engine = running.engines["slow"]
        with asking(running.url, "/v1/chat/completions", **body):
            assert until(lambda: engine.busy == (1, 0))
            with asking(running.url, "/v1/chat/completions", **body, **more):
                assert until(lambda: engine.busy == (1, 1))
            assert until(lambda: engine.busy == (1, 0))
        assert until(lambda: engine.busy == (0, 0))


def still(what: list[Any]) -> bool:
    """Whether nothing is added any more."""
    before = len(what)
    time.sleep(0.2)
    return len(what) == before


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_a_client_that_leaves_while_its_text_is_scored_has_no_more_of_it_scored(
    slow: Any, monkeypatch: Any, more: dict[str, Any]
) -> None:
    monkeypatch.setattr("truing.targets.local.memory.BLOCK", 2)
    engine, passed = slow.engines["slow"], []
    embedding = engine.target.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, args: passed.append(args[0].numel()))
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        text = {"prompt": [[5 + place % 100 for place in range(4000)]], "echo": True, "logprobs": 0, "max_tokens": 0}
        with asking(slow.url, "/v1/completions", **text, **more):
            assert until(lambda: len(passed) > 3)
        assert until(lambda: still(passed))
    assert sum(passed) < 3999


def test_a_stream_that_has_nothing_to_say_yet_says_that_it_is_alive(slow: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(app, "QUIET", 0.05)
    body = {"model": "slow", "messages": HELLO, "max_tokens": 60, "stream": True, "logprobs": True, "tools": [LOOK]}
    place = urlsplit(slow.url)
    with contextlib.closing(http.client.HTTPConnection(str(place.hostname), place.port)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        events = connection.getresponse().read().decode().split("\n\n")
    assert events[1:3] == [": keep-alive"] * 2
    assert events[-2:] == ["data: [DONE]", ""]
    assert {event[:6] for event in events[:-1]} == {"data: ", ": keep"}
    with openai.OpenAI(base_url=slow.url, api_key="none") as client:
        parts = [part for chunk in client.chat.completions.create(**body) for part in chunk.choices]
    assert sum(len(part.logprobs.content) for part in parts if part.logprobs) == 60


def test_when_a_stream_is_closed_so_is_what_makes_it(monkeypatch: Any) -> None:
    closed = []

    async def chunks(*_: Any) -> AsyncIterator[Any]:
        try:
            yield {}
            yield {}
        finally:
            closed.append(True)

    async def half() -> None:
        events = app._events(None, None)  # type: ignore[arg-type]
        await anext(events)
        await events.aclose()
        assert closed

    monkeypatch.setattr(app, "_chunks", chunks)
    asyncio.run(half())


SHUTTING_DOWN = {
    "error": {"message": "the server is shutting down", "type": "server_error", "param": None, "code": "shutting_down"}
}


def test_a_server_that_ends_cancels_what_is_left(slow: Any, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr("truing.targets.serve.server.GRACE", 1)
    body = {"messages": HELLO, "max_tokens": 50_000}
    with contextlib.ExitStack() as clients:  # they stay until the server is gone
        with serving({"slow": slow.engines["slow"].target}) as running:
            stream, whole = (
                clients.enter_context(asking(running.url, "/v1/chat/completions", stream=stream, **body))
                for stream in (True, False)
            )
            assert until(lambda: running.engines["slow"].busy == (2, 0))
            began = time.monotonic()
        assert 0.9 < time.monotonic() - began < 10
        answer, (*_, last, end) = whole.getresponse(), stream.getresponse().read().decode().split("\n\n")
        assert answer.status == 503
        assert json.loads(answer.read()) == json.loads(last.removeprefix("data: ")) == SHUTTING_DOWN
        assert end == ""
    assert not caplog.records
    with pytest.raises(TargetError, match="is closed"):
        running.engines["slow"].submit(Ask((5,), 1))


def test_whoever_waits_for_an_engine_that_is_closed_is_told(slow: Any) -> None:
    with serving({"slow": slow.engines["slow"].target}) as running, ThreadPoolExecutor(1) as thread:
        body = {"model": "slow", "messages": HELLO, "max_tokens": 50_000}
        waiting = thread.submit(post, running.url, "/v1/chat/completions", body)
        assert until(lambda: running.engines["slow"].busy == (1, 0))
        running.engines["slow"].close()
        status, answer = waiting.result(20)
    assert status == 503
    assert answer == SHUTTING_DOWN


# -- what is refused ---------------------------------------------------------------------------------------------------

CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "x"}


def turns(*more: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": [*HELLO, *more]}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": HELLO}, "model", "model: this field is missing"),
    ({"model": "tiny"}, "messages", "messages: this field is missing"),
    ({"model": "tiny", "messages": []}, "messages", "at least 1 item"),
    ({"model": 7, "messages": HELLO}, "model", "valid string (seen: 7)"),
    (CHAT | {"temperature": "hot"}, "temperature", "valid number (seen: 'hot')"),
    (CHAT | {"temperature": 2.5}, "temperature", "less than or equal to 2 (seen: 2.5)"),
    (CHAT | {"temperature": True}, "temperature", "seen: True"),
    (CHAT | {"top_p": 0}, "top_p", "greater than 0"),
    (CHAT | {"max_tokens": 0}, "max_tokens", "greater than or equal to 1 (seen: 0)"),
    (CHAT | {"max_tokens": 5.5}, "max_tokens", "seen: 5.5"),
    (CHAT | {"max_completion_tokens": -1}, "max_completion_tokens", "seen: -1"),
    (CHAT | {"n": 0}, "n", "seen: 0"),
    (CHAT | {"n": 129}, "n", "seen: 129"),
    (CHAT | {"seed": "x"}, "seed", "seen: 'x'"),
    (CHAT | {"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4 items"),
    (CHAT | {"stop": ["a", ""]}, "stop[1]", "at least 1 character"),
    (CHAT | {"stop": 5}, "stop", "valid list (seen: 5)"),
    (CHAT | {"stream": "yes"}, "stream", "valid boolean"),
    (CHAT | {"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "valid boolean"),
    (CHAT | {"logprobs": 3}, "logprobs", "valid boolean"),
    (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "seen: 21"),
    (CHAT | {"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs to be true"),
    (CHAT | {"logit_bias": {"5": 1}}, "logit_bias", "not supported here (seen: {'5': 1})"),
    (CHAT | {"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    (CHAT | {"presence_penalty": 0.1}, "presence_penalty", "not supported"),
    (CHAT | {"frequency_penalty": -1}, "frequency_penalty", "not supported"),
    (CHAT | {"modalities": ["text", "audio"]}, "modalities", "not supported"),
    (CHAT | {"functions": [{}]}, "functions", "not supported"),
    (CHAT | {"parallel_tool_calls": False}, "parallel_tool_calls", "not supported"),
    (CHAT | {"top_k": 5}, "top_k", "not supported"),
    (CHAT | {"tools": [LOOK], "tool_choice": "required"}, "tool_choice", "what it writes is not constrained"),
    (CHAT | {"tools": [LOOK], "tool_choice": {"type": "function"}}, "tool_choice", "not constrained"),
    (CHAT | {"tools": [{"type": "custom", "function": {"name": "x"}}]}, "tools[0].type", "seen: 'custom'"),
    (CHAT | {"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
    (
        CHAT | {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"a": 1e400}}}]},
        None,
        "the body is not JSON",
    ),
    (
        CHAT | {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"a": 2**60}}}]},
        "tools[0].function.parameters",
        "ints below 2^53",
    ),
    ({"model": "tiny", "messages": ["hi"]}, "messages[0]", "seen: 'hi'"),
    (turns({"role": "critic", "content": "x"}), "messages[1].role", "seen: 'critic'"),
    (turns({"role": "user"}), "messages[1]", "a user message needs content"),
    (turns({"role": "user", "content": 5}), "messages[1].content", "seen: 5"),
    (turns({"role": "user", "content": [{"type": "image_url"}]}), "messages[1].content", "only parts"),
    (turns({"role": "tool", "content": "x"}), "messages[1]", "a tool message needs tool_call_id"),
    (turns({"role": "tool", "content": "x", "tool_call_id": "b"}), "messages[1].tool_call_id", "no call before it"),
    (turns(called("{")), "messages[1].tool_calls[0].function.arguments", "not JSON"),
    (turns(called("[1]")), "messages[1].tool_calls[0].function.arguments", "not a JSON object (seen: '[1]')"),
    (turns(called("[" * 100_000)), "messages[1].tool_calls[0].function.arguments", "not JSON"),
    (TEXT | {"prompt": ""}, "prompt", "the prompt has no tokens"),
    (TEXT | {"prompt": []}, "prompt", "give a string, a list of strings"),
    (TEXT | {"prompt": [[]]}, "prompt", "none empty"),
    (TEXT | {"prompt": ["a", 5]}, "prompt", "give a string"),
    (TEXT | {"prompt": [True]}, "prompt", "give a string"),
    (TEXT | {"prompt": [[99999]]}, None, "token id 99999 is out of the range"),
    (TEXT | {"prompt": [[-1]]}, None, "out of the range"),
    (TEXT | {"prompt": [5] * 5000}, None, "longer than the context"),
    (TEXT | {"prompt": ["a"] * 600, "n": 2}, None, "prompts times n is 1200"),
    (TEXT | {"max_tokens": -1}, "max_tokens", "seen: -1"),
    (TEXT | {"logprobs": 6}, "logprobs", "seen: 6"),
    (TEXT | {"logprobs": True}, "logprobs", "seen: True"),
    (TEXT | {"suffix": "x"}, "suffix", "not supported"),
    (TEXT | {"best_of": 3}, "best_of", "not supported"),
    (TEXT | {"best_of": True}, "best_of", "not supported here (seen: True)"),
    (CHAT | {"frequency_penalty": False}, "frequency_penalty", "not supported here (seen: False)"),
    (CHAT | {"ignore_eos": 0}, "ignore_eos", "not supported here (seen: 0)"),
    (CHAT | {"guided_json": {}}, "guided_json", "not supported here (seen: {})"),
    (CHAT | {"guided_choice": ["a", "b"]}, "guided_choice", "not supported"),
    (CHAT | {"structured_outputs": {"regex": "a"}}, "structured_outputs", "not supported"),
    (TEXT | {"grammar": "root ::= x"}, "grammar", "not supported"),
    (TEXT | {"json_schema": {"type": "object"}}, "json_schema", "not supported"),
    (TEXT | {"repeat_penalty": 1.1}, "repeat_penalty", "not supported"),
    (TEXT | {"truncate_prompt_tokens": 10}, "truncate_prompt_tokens", "not supported"),
    (TEXT | {"typical_p": 0.9}, "typical_p", "not supported"),
    (TEXT | {"mirostat": 2}, "mirostat", "not supported"),
    (turns({"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}), "messages[1].content", "only parts"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), BAD, ids=[says[:40] for *_, says in BAD])
def test_a_bad_request_is_told_its_field_and_value(server: Any, body: Any, param: str | None, says: str) -> None:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    status, answer = post(server.url, path, body)
    error = answer["error"]
    assert (status, error["type"]) == (400, "invalid_request_error"), error
    assert says in error["message"]
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "the body is [1]; send a JSON object"),
        (b'"x"', "send a JSON object"), (b'{"model": NaN}', "not JSON"), (b'{"model": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"), (b'{"seed": ' + b"9" * 10_000 + b"}", "number out of range"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_object_is_refused(server: Any, body: bytes, says: str) -> None:
    status, answer = raw(server.url, "/v1/chat/completions", body)
    assert status == 400
    assert says in answer["error"]["message"]


def test_what_changes_nothing_is_taken(server: Any) -> None:
    neutral = {
        "logit_bias": {}, "response_format": {"type": "text"}, "presence_penalty": 0.0, "stop": None, "user": "me",
        "parallel_tool_calls": True, "temperature": None, "tools": [], "metadata": {"a": "b"}, "store": False,
        "max_tokens": 2, "seed": -5, "repeat_penalty": 1.0, "guided_regex": None, "mirostat": 0,
        "skip_special_tokens": True,
    }  # fmt: skip
    assert post(server.url, "/v1/chat/completions", CHAT | neutral)[0] == 200
    assert post(server.url, "/v1/completions", TEXT | {"suffix": None, "best_of": 1, "max_tokens": 0})[0] == 200
    empty = turns(called("  "), {"role": "tool", "content": "x", "tool_call_id": "a"})
    assert post(server.url, "/v1/chat/completions", empty | {"max_tokens": 1})[0] == 200


def test_a_body_that_is_too_long_is_refused(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(app, "LIMIT", 100_000)
    body = json.dumps(turns({"role": "user", "content": "x" * 200_000}))
    status, answer = raw(server.url, "/v1/chat/completions", body.encode())
    assert status == 413
    assert "more than 100,000 bytes" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2", None, 404), ("/v1/completions", None, 405), ("/v1/chat/completions/", b"{}", 404),
        ("/v1/models/", None, 404), ("/health/", None, 404),
    ],
)  # fmt: skip
def test_other_paths_and_methods(server: Any, path: str, body: bytes | None, status: int) -> None:
    found, answer = raw(server.url, path, body)
    assert found == status
    assert answer["error"]["type"] == "invalid_request_error"
    assert ("not served here" if path == "/v1/models/" else "no such endpoint") in answer["error"]["message"]


def test_no_host_is_sent_on_to(tiny: Any) -> None:
    with serving({"tiny": tiny}, key="sesame-1234") as running:
        named = {"Host": "evil.example", "Authorization": "Bearer sesame-1234"}
        assert raw(running.url, "/v1/chat/completions/", b"{}", headers=named)[0] == 404


@pytest.mark.parametrize("stream", [False, True])
def test_what_breaks_inside_is_logged_and_not_shown(server: Any, monkeypatch: Any, caplog: Any, stream: bool) -> None:
    engine = server.engines["tiny"]
    broken: Future[Written] = Future()
    broken.set_exception(RuntimeError("secret detail"))
    monkeypatch.setattr(engine, "submit", lambda _: broken)
    place = urlsplit(server.url)
    with contextlib.closing(http.client.HTTPConnection(str(place.hostname), place.port)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": stream}))
        answer = connection.getresponse()
        text = answer.read().decode()
    assert answer.status == (200 if stream else 500)
    assert '"internal_error"' in text
    assert "secret" not in text
    assert "[DONE]" not in text
    assert "secret detail" in caplog.text


def test_too_little_memory_is_said_before_a_stream_begins(tiny: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRUING_MAX_MEMORY", "1kB")
    with serving({"tiny": tiny}) as running:
        for more in ({"stream": True}, {}):
            status, answer = post(running.url, "/v1/chat/completions", CHAT | more)
            assert status == 400
            assert "Raise max_memory (TRUING_MAX_MEMORY)" in answer["error"]["message"]


def test_targets_that_are_served_together_share_what_one_could_plan_for(tiny: Any, wild: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRUING_MAX_MEMORY", "60MB")
    monkeypatch.setattr(wild, "max_memory", 8_000_000)
    other = LocalTarget("local/other", wild.model, wild.tokenizer, weights="5" * 64)
    with serving({"tiny": tiny, "wild": wild, "other": other}) as running:
        # An engine's batch is planned for what its target may have when it begins.
        assert [engine._batch._budget for engine in running.engines.values()] == [20_000_000, 2_666_666, 20_000_000]
        assert [engine.target.budget for engine in running.engines.values()] == [20_000_000, 2_666_666, 20_000_000]
    assert [target.max_memory for target in (tiny, wild, other)] == [0, 8_000_000, 0]  # as their owners left them
    with serving({"tiny": tiny}) as running:
        assert running.engines["tiny"].target.budget == 60_000_000


NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] can't allocate memory: you tried to allocate 4 bytes")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (CHAT, "no memory for a reply of up to 1024 tokens after 8, even alone: "),
        (TEXT | {"prompt": [[5, 6]], "echo": True, "logprobs": 0, "max_tokens": 0}, "memory ran out: "),
    ],
)  # fmt: skip
def test_where_memory_runs_out_a_client_may_try_again(
    server: Any, monkeypatch: Any, body: dict[str, Any], says: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise NO_MEMORY

    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    with monkeypatch.context() as patch:
        patch.setattr(type(server.engines["tiny"].target.model), "forward", full)
        status, answer = post(server.url, path, body)
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (503, "server_error", "unavailable")
    assert answer["error"]["message"].startswith(says)
    assert post(server.url, path, body | {"max_tokens": body.get("max_tokens", 1)})[0] == 200


def test_an_engine_that_is_closed_is_no_fault_of_the_request(tiny: Any) -> None:
    with serving({"tiny": tiny}) as running:
        running.engines["tiny"].close()
        status, answer = post(running.url, "/v1/chat/completions", CHAT)
    assert (status, answer["error"]["type"]) == (503, "server_error")
    assert "is closed" in answer["error"]["message"]


def test_a_template_that_refuses_is_quoted(wild: Any) -> None:
    tokenizer = copy.deepcopy(wild.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    picky = LocalTarget("local/picky", wild.model, tokenizer, weights="3" * 64)
    with serving({"picky": picky}) as running:
        status, answer = post(running.url, "/v1/chat/completions", {"model": "picky", "messages": HELLO})
    assert status == 400
    assert "no system turns" in answer["error"]["message"]


# -- who may ask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:5"}, 200), ({"Host": "localhost"}, 200), ({"Host": "[::1]:80"}, 200),
        ({"Host": "LOCALHOST:8000"}, 200), ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[bad"}, 403), ({"Host": ""}, 403), ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403), ({"Origin": "http://localhost:3000"}, 200),
        ({"Host": "localhost@evil.example"}, 403),
    ],
)  # fmt: skip
def test_on_loopback_requests_must_be_meant_for_this_machine(server: Any, headers: Any, status: int) -> None:
    found, answer = raw(server.url, "/v1/models", headers=headers)
    assert found == status
    assert ("error" in answer) == (status == 403)


def test_nothing_tells_browsers_that_other_pages_may_read(server: Any) -> None:
    place = urlsplit(server.url)
    with contextlib.closing(http.client.HTTPConnection(str(place.hostname), place.port)) as connection:
        connection.request("GET", "/v1/models", headers={"Origin": "http://localhost:3000"})
        answer = connection.getresponse()
        answer.read()
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]


def test_with_a_key_nothing_but_health_is_answered_without_it(tiny: Any, capfd: Any) -> None:
    with serving({"tiny": tiny}, host="0.0.0.0", key="sesame-é-1234") as running:
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        for headers in (
            {}, {"Authorization": "Bearer sesame"}, {"Authorization": "sesame-1234"}, {"Authorization": "Basic x"},
        ):  # fmt: skip
            status, answer = raw(url, "/v1/models", headers=headers)
            assert status == 401
            assert answer["error"]["code"] == "invalid_api_key"
        assert raw(url, "/health")[0] == 200
        assert raw(url, "/health", headers={"Host": "any.name"})[0] == 200
        # A Host that would make a URL whose path is open.
        assert raw(url, "/v1/models", headers={"Host": "x/health?"})[0] in (400, 401)
    with (
        serving({"tiny": tiny}, key="sesame-1234") as running,
        openai.OpenAI(base_url=running.url, api_key="sesame-1234") as client,
    ):
        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sesame-1235").models.list()
        # Who has the key may come through a proxy that has a name of its own.
        named = {"Host": "models.example", "Origin": "https://models.example", "Authorization": "Bearer sesame-1234"}
        assert raw(running.url, "/v1/models", headers=named)[0] == 200
    assert "sesame" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("host", ["x/health?", "127.0.0.1/health?", "x/health#"])
def test_the_host_opens_no_path(host: str) -> None:
    """Whatever the web framework in use makes of such a Host: the guard asks for the key."""
    passed, sent = [], []

    async def inside(*_: Any) -> None:
        passed.append(1)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", host.encode())],
             "query_string": b"", "scheme": "http", "server": ("0.0.0.0", 80)}  # fmt: skip
    asyncio.run(app.Guard(inside, key="sesame", loopback=False)(scope, None, send))  # type: ignore[arg-type]
    assert not passed
    assert sent[0]["status"] == 401


def test_what_texts_share_is_computed_once_for_all_of_a_request(client: Any, wild: Any) -> None:
    texts = [[*range(20, 270), 5 + place] for place in range(15)] + [[*range(20, 260), 4]]
    passed = []
    hook = wild.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: passed.append(args[0].numel()))
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        found = client.completions.create(model="wild", prompt=texts, max_tokens=0, echo=True, logprobs=0)
    assert sum(passed) == 250  # nothing follows the last token of a text, so that it is not passed
    for text, choice in zip(texts, found.choices, strict=True):
        expected = wild.log_probs([(text[:1], text[1:])])[0][0].tolist()
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_scoring_that_is_cancelled_half_way_computes_no_more(wild: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("truing.targets.local.memory.BLOCK", 8)
    passed: list[int] = []
    with Engine(wild) as engine:
        future: Any = None

        def count(_: Any, args: Any) -> None:
            passed.append(args[0].numel())
            if len(passed) == 3:
                future.cancel()

        hook = wild.model.get_input_embeddings().register_forward_pre_hook(count)
        ready = threading.Event()
        engine.run(ready.wait)
        future = engine.run(partial(scores, wild, [list(range(20, 120))], top=1))
        ready.set()
        assert wait([future], timeout=30).done
        engine.run(lambda: None).result(30)
        hook.remove()
    assert passed == [8, 8, 8]


@pytest.mark.parametrize("texts", [[[5 + place] * 400 for place in range(40)], [[*range(20, 420)]]])
def test_replies_go_on_while_texts_are_scored(server: Any, client: Any, monkeypatch: Any, texts: Any) -> None:
    """Between blocks the tokens of a reply come, be it many texts or a long one."""
    monkeypatch.setattr("truing.targets.local.memory.BLOCK", 2 if len(texts) == 1 else 512)
    asked = {"model": "wild", "prompt": texts, "max_tokens": 0, "logprobs": 1}
    with ThreadPoolExecutor(1) as pool:
        scored = pool.submit(lambda: client.completions.create(**asked, echo=True))
        pieces = 0
        for _ in client.chat.completions.create(
            model="wild", messages=HELLO, max_tokens=20, temperature=0, stream=True
        ):
            pieces += not scored.done()
        assert pieces > 5
        assert len(scored.result().choices) == len(texts)


def test_without_a_key_no_other_machine_is_let_in() -> None:
    for host in ("0.0.0.0", "::", "example.org", "192.168.1.5"):
        with pytest.raises(UsageError, match="--key-file, or into the environment variable TRUING_SERVE_KEY"):
            listen(host, 0, key=None)


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0, key=None) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port}: .*in use.*--port 0"):
            listen("127.0.0.1", port, key=None)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        (["scripted/honest"], UsageError, "only targets with open weights"),
        (["local/tiny", "--host", "0.0.0.0"], UsageError, "there is no key"),
        (["local/tiny", "--adapter", "fix"], UsageError, "write NAME=FOLDER"),
        (["local/tiny", "--adapter", "a=x", "--adapter", "a=y"], UsageError, "another NAME for each"),
        (["local/tiny", "--port", "0", "--adapter", "a=nowhere"], TargetError, "no adapter at nowhere"),
        (["local/tiny", "--key-file", "nowhere"], UsageError, "cannot be read"),
        (["local/nowhere-at-all", "--port", "0"], TargetError, "cannot load"),
    ],
)
def test_wrong_use_is_said(args: list[str], error: type[Exception], says: str) -> None:
    done = CliRunner().invoke(command, ["serve", *args])
    assert isinstance(done.exception, error)
    assert says in str(done.exception)


@pytest.mark.parametrize("key", ["", " \n", "two words", "ключ"])
def test_a_key_is_one_word(tmp_path: Path, key: str, monkeypatch: Any) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    done = CliRunner().invoke(command, ["serve", "local/tiny", "--key-file", str(file)])
    assert "holds no key" in str(done.exception)
    monkeypatch.setenv("TRUING_SERVE_KEY", key)
    assert "TRUING_SERVE_KEY holds no key" in str(CliRunner().invoke(command, ["serve", "local/tiny"]).exception)


def test_what_is_not_installed_is_named(monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None if name in ("starlette", "uvicorn") else 1)
        with pytest.raises(TargetError, match=re.escape("Run: pip install 'truing[serve]'")):
            importlib.reload(package)
    importlib.reload(package)


@pytest.fixture(scope="module")
def adapter(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    model = get_peft_model(
        copy.deepcopy(tiny.model), LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_end(
    tiny: Any, adapter: Path, how: signal.Signals, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("open-sesame\n")
    words = ["serve", "local/tiny", "--port", "0", "--json", "--adapter", f"fix={adapter}", "--key-file", str(key)]
    with subprocess.Popen(
        [sys.executable, "-m", "truing", "target", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ},
    ) as process:  # fmt: skip
        try:
            said = json.loads(read_object(process))
            assert said.keys() == {"url", "models", "key"}
            assert said["models"] == ["tiny", "tiny@fix"]
            with openai.OpenAI(base_url=said["url"], api_key="open-sesame") as client:
                replies = {
                    name: client.chat.completions.create(
                        model=name, messages=HELLO, temperature=0, max_tokens=4, logprobs=True
                    ).choices[0].logprobs.content[0].logprob
                    for name in said["models"]
                }  # fmt: skip
            assert replies["tiny"] != replies["tiny@fix"]
        finally:
            process.send_signal(how)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == ""
    assert "sesame" not in err
    assert "Traceback" not in err


def read_object(process: subprocess.Popen[str]) -> str:
    """What a process prints, up to the end of one JSON object."""
    assert process.stdout is not None
    lines = []
    end = time.monotonic() + 120
    while not lines or lines[-1] != "}\n":
        ready, _, _ = select.select([process.stdout], [], [], 0.1) if not lines else ([1], [], [])
        assert process.poll() is None
        assert time.monotonic() < end
        if ready:
            lines.append(process.stdout.readline())
    return "".join(lines)


def test_a_taken_port_ends_the_command_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "truing", "target", "serve", "local/tiny", "--port", port],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
