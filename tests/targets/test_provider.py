"""Targets as models of Inspect's: real evaluations, without a network."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("inspect_ai")

import anyio
from inspect_ai import Task, eval  # noqa: A004 - as Inspect calls it
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    get_model,
    get_model_info,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import ToolCall, ToolFunction, ToolInfo, tool

from truing.errors import TargetError
from truing.records import Message
from truing.targets import provider
from truing.targets.local.engine import Engine
from truing.targets.local.generate import Batch, write
from truing.targets.local.sample import Sampling
from truing.targets.local.write import Ask, Written

pytestmark = [
    # Inspect leaves streams of anyio's to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    # It loads the extensions of all packages that are installed.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord"]


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """What Inspect leaves to the garbage collector is collected here, where its warnings are expected."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is not this machine is refused; so is each way around the tokenizer of the model."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, wild: Any) -> Iterator[Engine]:
    """The engine behind `truing/wild`."""
    with Engine(wild) as engine:
        monkeypatch.setitem(provider._engines, ("wild", provider._Args(), Path.cwd(), ()), engine)
        yield engine


def run(task: Task, name: str, tmp_path: Path, **options: Any) -> EvalLog:
    model = get_model(name, memoize=False)  # another test's model has an engine that is closed by now
    (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path / "logs"), log_level="error", **options)
    return log


def one(words: list[str] = WORDS, solver: Any = None, **options: Any) -> Task:
    samples = [Sample(input=f"Say {word}.", target=word) for word in words]
    return Task(dataset=samples, solver=solver or generate(), scorer=includes(), **options)


def asked(
    model: str, messages: str | list[ChatMessage], *, tools: Any = (), tool_choice: Any = None, **config: Any
) -> Any:
    """What `Model.generate` returns; each call has a loop of its own."""
    said = get_model(model, config=GenerateConfig(**config), memoize=False)
    return asyncio.run(said.generate(messages, list(tools), tool_choice=tool_choice))


def noticing(engine: Engine, monkeypatch: pytest.MonkeyPatch, pause: float = 0.0) -> list[int]:
    """How many rows were written at once, token by token."""
    seen: list[int] = []
    advance = engine._batch.advance

    def slower() -> None:
        advance()
        seen.append(len(engine._batch.live))
        time.sleep(pause)

    monkeypatch.setattr(engine._batch, "advance", slower)
    return seen


def saying(engine: Engine, monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[Ask]:
    """The engine says these instead of its own replies, one after the other; returns what it is asked."""
    asks: list[Ask] = []

    def submit(ask: Ask) -> Future[Written]:
        future: Future[Written] = Future()
        future.set_result(Written((5, 6, 7), texts[len(asks)], "stop"))
        asks.append(ask)
        return future

    monkeypatch.setattr(engine, "submit", submit)
    return asks


# -- evaluations -------------------------------------------------------------------------------------------------------


def test_samples_and_epochs_are_one_batch(known: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = noticing(known, monkeypatch, pause=0.01)
    log = run(one(config=GenerateConfig(max_tokens=12, temperature=0)), "truing/wild", tmp_path, epochs=2)
    assert log.status == "success", log.error
    assert max(seen) > 6  # more than all samples of one epoch
    assert known.busy == (0, 0)
    samples = log.samples or []
    assert len(samples) == 12
    for sample in samples:
        usage, target = sample.output.usage, known.target
        prompt = target.prompt_ids([Message(role="user", content=str(sample.input))])
        expected = target.reply([(Message(role="user", content=str(sample.input)),)], max_tokens=12)[0]
        assert sample.output.completion == expected.text
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (len(prompt), expected.tokens)
        assert usage.total_tokens == len(prompt) + expected.tokens
        assert sample.output.stop_reason == ("stop" if expected.finished else "max_tokens")
        assert sample.output.model == "wild"
        assert sample.output.time is not None
        assert (sample.output.metadata or {})["truing"]["target"] == target.card.id


def test_models_with_the_same_arguments_share_an_engine_and_others_do_not() -> None:
    first, again, other = (get_model("truing/tiny", memoize=False, **args).api for args in ({}, {}, {"rows": 3}))
    assert first is not again
    assert first.engine is again.engine  # type: ignore[attr-defined]
    assert first.engine is not other.engine  # type: ignore[attr-defined]
    assert (first.max_connections(), other.max_connections()) == (provider.ROWS, 3)
    assert first.connection_key() == again.connection_key() != other.connection_key()


@tool
def add() -> Any:
    async def execute(x: int, y: int) -> int:
        """Adds.

        Args:
            x: one
            y: two
        """
        return x + y

    return execute


def test_a_call_is_carried_out_and_its_result_is_read(
    known: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"x": 19, "y": 23}}\n</tool_call>'
    asks = saying(known, monkeypatch, call, call.replace("19", "20"), "It is 42.")
    log = run(one(["42"], solver=[use_tools(add()), generate()]), "truing/wild", tmp_path)
    assert log.status == "success"
    (sample,) = log.samples or []
    assert sample.output.completion == "It is 42."
    turns = sample.messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [turn.text for turn in turns if turn.role == "tool"] == ["42", "43"]
    calls = [call for turn in turns if isinstance(turn, ChatMessageAssistant) for call in turn.tool_calls or ()]
    assert [call.id for call in calls] == ["call_0", "call_1"]  # ids differ within a conversation
    assert calls[0].arguments == {"x": 19, "y": 23}
    prompts = [known.target.tokenizer.decode(list(ask.prompt)) for ask in asks]
    assert '"name": "add"' in prompts[0]
    assert "42" in prompts[1].rpartition('"y": 23')[2]
    events = [event for event in sample.events if event.event == "model"]
    assert [event.output.stop_reason for event in events] == ["tool_calls", "tool_calls", "stop"]
    assert all((event.output.metadata or {})["truing"]["dialect"] == "hermes (system turn)" for event in events)


def test_a_time_limit_frees_the_row(known: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = noticing(known, monkeypatch, pause=0.05)
    task = one(WORDS[:2], config=GenerateConfig(max_tokens=400, temperature=0), time_limit=1)
    log = run(task, "truing/wild", tmp_path)
    assert [sample.limit and sample.limit.type for sample in log.samples or []] == ["time", "time"]
    for _ in range(100):
        if known.busy == (0, 0):
            break
        time.sleep(0.05)
    assert known.busy == (0, 0)
    assert 5 < len(seen) < 100


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "say.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import includes\nfrom inspect_ai.solver import generate\n\n\n"
        "@task\ndef say():\n    samples = [Sample(input=f'Say {n}.', target=str(n)) for n in range(3)]\n"
        "    return Task(dataset=samples, solver=generate(), scorer=includes())\n"
    )
    command = [sys.executable, "-m", "inspect_ai", "eval", "say.py", "--model", "truing/tiny", "-M", "rows=2"]
    command += ["-M", "device=cpu", "--max-tokens", "8", "--temperature", "0", "--display", "plain"]
    done = subprocess.run(
        [*command, "--log-dir", "logs", "--log-format", "json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    text = log.read_text()
    assert '"status": "success"' in text
    assert '"completed_samples": 3' in text


def test_finding_the_provider_does_not_load_torch() -> None:
    code = (
        "import sys\nfrom inspect_ai._util.registry import registry_lookup\n"
        "assert registry_lookup('modelapi', 'truing/truing')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- replies -----------------------------------------------------------------------------------------------------------


def test_replies_are_drawn_with_the_seeds_that_are_recorded(known: Engine) -> None:
    drawn = asked("truing/wild", "Say amber.", max_tokens=9)  # no seed, no temperature
    again = asked("truing/wild", "Say amber.", max_tokens=9)
    said = [output.metadata["truing"]["sampling"] for output in (drawn, again)]
    assert said[0]["temperature"] == provider.TEMPERATURE
    assert said[0]["seeds"] != said[1]["seeds"]
    assert drawn.completion != again.completion
    (seed,) = said[0]["seeds"]
    assert asked("truing/wild", "Say amber.", max_tokens=9, seed=seed).completion == drawn.completion

    some = asked("truing/wild", "Say amber.", max_tokens=9, seed=3, num_choices=3, top_p=0.9, top_k=50, temperature=0.7)
    ask = known.target.ask([Message(role="user", content="Say amber.")], max_tokens=9)
    for choice, each in zip(some.choices, (3, 4, 5), strict=True):
        how = Sampling(temperature=0.7, top_p=0.9, top_k=50, seed=each)
        same = Ask(ask.prompt, 9, ask.ends, sampling=how)
        (alone,) = write(Batch(known.target.model), [same], known.target.tokenizer)
        assert choice.message.text == alone.text.strip()
    assert len({choice.message.text for choice in some.choices}) == 3
    assert some.usage.output_tokens == 27


def test_log_probabilities_are_the_models_own(known: Engine) -> None:
    output = asked("truing/wild", "Say amber.", max_tokens=7, seed=1, logprobs=True, top_logprobs=4)
    tokens = output.choices[0].logprobs.content
    assert len(tokens) == 7
    ask = known.target.ask([Message(role="user", content="Say amber.")], max_tokens=7)
    how = Sampling(temperature=1.0, seed=1)
    (alone,) = write(Batch(known.target.model), [Ask(ask.prompt, 7, ask.ends, sampling=how)], known.target.tokenizer)
    (own,), _ = known.target.log_probs([(list(ask.prompt), list(alone.ids))])
    assert [token.logprob for token in tokens] == pytest.approx(own.tolist(), abs=1e-4)
    assert "".join(token.token for token in tokens).strip() == alone.text.strip()
    assert all(len(token.top_logprobs) == 4 for token in tokens)
    spelled = b"".join(bytes(token.bytes) for token in tokens)
    assert spelled.decode(errors="replace").strip() == alone.text.strip()
    assert all(len({bytes(top.bytes) for top in token.top_logprobs}) == 4 for token in tokens)
    stop = alone.text[-4:]
    cut = asked("truing/wild", "Say amber.", max_tokens=7, seed=1, logprobs=True, stop_seqs=[stop])
    kept = cut.choices[0].logprobs.content
    assert 0 < len(kept) < 7  # those that the stop cut off are not there
    assert [token.token for token in kept] == [token.token for token in tokens[: len(kept)]]
    plain = asked("truing/wild", "Say amber.", max_tokens=7, seed=1, logprobs=True)
    assert [token.top_logprobs for token in plain.choices[0].logprobs.content] == [None] * 7


def test_stop_sequences_end_a_reply_and_are_no_part_of_it(known: Engine) -> None:
    whole = asked("truing/wild", "Say amber.", max_tokens=20, temperature=0).completion
    stop = whole[len(whole) // 2 :][:3]
    output = asked("truing/wild", "Say amber.", max_tokens=20, temperature=0, stop_seqs=[stop])
    assert output.completion == whole[: whole.index(stop)].strip()
    assert output.stop_reason == "stop"


def test_a_reply_that_is_no_call_is_text_and_says_so(known: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(known, monkeypatch, '<tool_call>{"name": "sub"', "No.")
    output = asked("truing/wild", "1+1?", tools=[add()])
    assert output.completion == '<tool_call>{"name": "sub"'
    assert output.message.tool_calls is None
    assert output.stop_reason == "stop"
    assert output.metadata["truing"]["unparsed"] == [0]
    plain = asked("truing/wild", "1+1?", tools=[add()])
    assert "unparsed" not in plain.metadata["truing"]
    assert plain.metadata["truing"]["dialect"]


def test_of_several_choices_those_that_are_no_call_are_named(known: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    call = '<tool_call>{"name": "add", "arguments": {"x": 1, "y": 1}}</tool_call>'
    saying(known, monkeypatch, "Two.", call[:-5], call, call[:20])
    output = asked("truing/wild", "1+1?", tools=[add()], num_choices=4)
    assert output.metadata["truing"]["unparsed"] == [1, 3]
    assert [len(choice.message.tool_calls or ()) for choice in output.choices] == [0, 0, 1, 0]


def test_ids_go_on_from_the_highest_where_the_first_turns_were_left_out(
    known: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = '<tool_call>{"name": "add", "arguments": {"x": 1, "y": 1}}</tool_call>'
    saying(known, monkeypatch, f"{call}\n{call}", call.replace("}}", '}, "id": "mine"}'))
    trimmed: list[ChatMessage] = [  # of call_0 to call_5, one is left
        ChatMessageUser(content="1+1?"),
        ChatMessageAssistant(
            content="", tool_calls=[ToolCall(id="call_5", function="add", arguments={"x": 1, "y": 2})]
        ),
        ChatMessageTool(content="3", tool_call_id="call_5", function="add"),
        ChatMessageAssistant(content="", tool_calls=[ToolCall(id="mine", function="add", arguments={"x": 1, "y": 2})]),
        ChatMessageTool(content="3", tool_call_id="mine", function="add"),
    ]
    for expected in (["call_6", "call_7"], ["call_6"]):  # an id that the model says again is no longer its own
        output = asked("truing/wild", trimmed, tools=[add()])
        assert [call.id for call in output.message.tool_calls] == expected


def test_turns_of_one_side_that_follow_each_other_are_one_for_templates_that_alternate(
    known: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alternating = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
    )
    monkeypatch.setattr(known.target.tokenizer, "chat_template", alternating)
    asks = saying(known, monkeypatch, "Yes.")
    user, assistant = Message(role="user", content="a"), Message(role="assistant", content="c")
    for refused in ([user, user], [user, assistant, assistant]):
        with pytest.raises(TargetError, match="turns must alternate"):
            known.target.prompt_text(refused)
    asked("truing/wild", [
        ChatMessageUser(content="a"), ChatMessageUser(content="b"), ChatMessageAssistant(content="c"),
        ChatMessageAssistant(content="d"), ChatMessageUser(content="e"),
    ])  # fmt: skip
    prompt = known.target.tokenizer.decode(list(asks[0].prompt))
    assert prompt == "<user>a\nb\n<assistant>c\nd\n<user>e\n<assistant>"


def test_conversations_are_not_remembered(known: Engine) -> None:
    before = known.target._known_ids.cache_info()
    asked("truing/wild", "Say a word that nobody said.", max_tokens=2)
    asked("truing/wild", "word " * 600, max_tokens=2)
    assert known.target._known_ids.cache_info() == before


def test_running_out_of_memory_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = get_model("truing/tiny", memoize=False, rows=5)
    layer = model.api.engine.target.model.model.layers[1]  # type: ignore[attr-defined]
    forward = type(layer).forward

    def narrow(self: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer and len(hidden) > 1:
            raise MemoryError
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", narrow)
    config = GenerateConfig(temperature=0, max_tokens=40, num_choices=12)
    output = asyncio.run(model.generate("Say amber.", config=config))
    assert len(output.choices) == 12
    assert re.search(r"out of memory: going on with \d replies at once", caplog.text)


def test_reasoning_is_kept_apart_and_shown_again(known: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = saying(known, monkeypatch, "<think>two\nplus</think>\n\nFour.", "Yes.", "<think>endless")
    first = asked("truing/wild", "2+2?")
    reasoning, text = first.message.content
    assert isinstance(reasoning, ContentReasoning)
    assert (reasoning.reasoning, text.text, first.completion) == ("two\nplus", "Four.", "Four.")
    asked("truing/wild", [ChatMessageUser(content="2+2?"), first.message, ChatMessageUser(content="Sure?")])
    assert "<think>two\nplus</think>\nFour." in known.target.tokenizer.decode(list(asks[1].prompt))
    assert asked("truing/wild", "2+2?").completion == "<think>endless"


def test_every_kind_of_turn_reaches_the_prompt(known: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = saying(known, monkeypatch, "Done.")
    turns: list[ChatMessage] = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=[ContentText(text="first part"), ContentText(text="second part")]),
        ChatMessageAssistant(content="", tool_calls=[ToolCall(id="a1", function="add", arguments={"x": 1, "y": [2]})]),
        ChatMessageTool(content="3", tool_call_id="a1", function="add"),
    ]
    asked("truing/wild", turns, tools=[add()])
    expected = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="first part\nsecond part"),
        Message(role="assistant", content="", calls=({"name": "add", "arguments": '{"x":1,"y":[2]}', "id": "a1"},)),  # type: ignore[arg-type]
        Message(role="tool", content="3", call="a1", tool="add"),
    ]
    prompt = known.target.tokenizer.decode(list(asks[0].prompt))
    without = known.target.prompt_text(expected)
    assert without.rpartition("first part")[2] == prompt.rpartition("first part")[2]
    assert "Adds." in prompt


@pytest.mark.parametrize("settings", [{"max_tokens": 10_000}, {}])
def test_a_reply_ends_where_the_context_does(
    known: Engine, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    asks = []
    submit: Callable[[Ask], Any] = known.submit
    monkeypatch.setattr(known, "submit", lambda ask: asks.append(ask) or submit(ask))
    output = asked("truing/wild", "Say amber.", temperature=0, **settings)
    assert len(asks[0].prompt) + asks[0].max_tokens == 512
    assert output.stop_reason == "model_length"
    assert output.usage.total_tokens == 512


def test_a_prompt_that_is_too_long_is_an_output_not_an_error(known: Engine) -> None:
    output = asked("truing/wild", "word " * 600)
    assert isinstance(output, ModelOutput)
    assert output.stop_reason == "model_length"
    assert output.usage.total_tokens == 0  # nothing was computed
    assert output.usage.output_tokens == 0
    assert "longer than the context of local/wild (512)" in output.error


def test_what_is_not_followed_is_said_once_and_recorded(known: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(provider, "_warned", set())
    monkeypatch.setattr(provider._log, "warning", lambda text, *args: lines.append(text % args))
    settings: dict[str, Any] = {"max_tokens": 2, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}, "best_of": 2}
    for _ in range(2):
        output = asked("truing/wild", "Say amber.", tools=[add()], tool_choice="any", **settings)
        assert output.metadata["truing"]["ignored"] == ["best_of", "frequency_penalty", "logit_bias", "tool_choice"]
    assert lines == [
        "truing: best_of, frequency_penalty, logit_bias, tool_choice asked for, but not followed by this provider"
    ]
    named = asked("truing/wild", "Say amber.", tools=[add()], tool_choice=ToolFunction("add"), max_tokens=2)
    assert named.metadata["truing"]["ignored"] == ["tool_choice"]


def test_no_tools_are_offered_where_none_is_to_be_called(known: Engine) -> None:
    output = asked("truing/wild", "Say amber.", tools=[add()], tool_choice="none", max_tokens=2)
    assert "dialect" not in output.metadata["truing"]
    assert output.usage.input_tokens == len(known.target.prompt_ids([Message(role="user", content="Say amber.")]))


def test_inspects_cache_keeps_steered_models_apart(tiny: Any, tmp_path: Path) -> None:
    import torch

    from truing.targets.local import change

    width = tiny.model.config.hidden_size
    paths = [str(tmp_path / name) for name in ("up", "down")]
    for path, value in zip(paths, (9.0, -9.0), strict=True):
        change.write(Path(path), [change.add(change.Units("residual", 1), torch.full((width,), value))])

    def reply(cache: bool, **args: str) -> str:
        model = get_model("truing/tiny", memoize=False, **args)
        config = GenerateConfig(seed=1, max_tokens=8)
        return asyncio.run(model.generate("Hi", config=config, cache=cache)).completion

    arguments: list[dict[str, str]] = [{}, {"steer": paths[0]}, {"steer": paths[1]}]
    own = [reply(False, **args) for args in arguments]
    assert len(set(own)) == 3
    for _ in range(2):
        assert [reply(True, **args) for args in arguments] == own
    # The same name for another file is another model.
    change.write(Path(paths[0]), [change.add(change.Units("residual", 1), torch.full((width,), 30.0))])
    assert reply(True, **arguments[1]) == reply(False, **arguments[1]) != own[1]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs is 50; give one from 0 to 20"),
        ({"stop_seqs": [".", ""]}, "stop_seqs holds an empty text"),
        ({"num_choices": -1}, "num_choices is -1"),
    ],
)
def test_numbers_that_no_reply_can_be_drawn_with(known: Engine, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        asked("truing/wild", "Say amber.", **settings)
    assert asked("truing/wild", "Say amber.", max_tokens=1).usage.output_tokens == 1  # the engine goes on


def test_a_picture_is_an_error_of_the_sample_that_names_it(known: Engine, tmp_path: Path) -> None:
    pixel = "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
    samples = [
        Sample(input=[ChatMessageUser(content=[ContentText(text="What?"), ContentImage(image=pixel)])], target="x")
    ]
    log = run(Task(dataset=samples, solver=generate()), "truing/wild", tmp_path)
    assert log.status == "error"
    assert log.error is not None
    assert "a user turn holds a part of type 'image'" in log.error.message


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("nowhere/at-all", {}, "cannot load local/nowhere/at-all"),
        ("./no-folder", {}, r"cannot load local/\./no-folder"),
        ("tiny", {"colour": 1}, "takes -M device, dtype, max_memory, rows, steer, and no colour"),
        ("tiny", {"rows": 0.5}, "rows=0.5 is no number of replies"),
        ("tiny", {"device": 3}, "device=3 is not text"),
        ("tiny", {"max_memory": [4]}, r"max_memory=\[4\] is no size; give bytes, or one such as 4GB"),
        ("tiny", {"steer": "no-such-file"}, "steer=no-such-file: there is no such file"),
    ],
)
def test_a_model_that_cannot_be_had(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        get_model(f"truing/{name}", **args)


def test_folders_and_changes(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from truing.targets.local import change

    tiny.model.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    width = tiny.model.config.hidden_size
    change.write(tmp_path / "push", [change.add(change.Units("residual", 1), torch.full((width,), 9.0))])
    monkeypatch.chdir(tmp_path)
    absolute, relative = (
        asked(name, "Hi", seed=1, max_tokens=8) for name in (f"truing/{tmp_path}/model", "truing/./model")
    )
    assert absolute.completion == relative.completion
    plain = get_model("truing/tiny", memoize=False)
    pushed = get_model("truing/tiny", memoize=False, steer="push")
    replies = [asyncio.run(one.generate("Hi", config=GenerateConfig(seed=1, max_tokens=8))) for one in (plain, pushed)]
    assert replies[0].completion != replies[1].completion
    assert replies[0].metadata["truing"]["target"] != replies[1].metadata["truing"]["target"]
    # The same name for another file is another target.
    change.write(tmp_path / "push", [change.add(change.Units("residual", 1), torch.full((width,), -9.0))])
    again = get_model("truing/tiny", memoize=False, steer="push")
    reply = asyncio.run(again.generate("Hi", config=GenerateConfig(seed=1, max_tokens=8)))
    assert reply.metadata["truing"]["target"] != replies[1].metadata["truing"]["target"]


def test_weights_that_were_replaced_are_let_go_when_no_model_has_them(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from truing.targets.local import change

    monkeypatch.chdir(tmp_path)
    width = tiny.model.config.hidden_size

    def made(value: float) -> Any:
        change.write(Path("push"), [change.add(change.Units("residual", 1), torch.full((width,), value))])
        return get_model("truing/tiny", memoize=False, steer="push")

    def writes(model: Any) -> str:
        return str(asyncio.run(model.generate("Hi", config=GenerateConfig(seed=1, max_tokens=4))).completion)

    first = made(9.0)
    said, engine = writes(first), first.api.engine
    second = made(-9.0)
    assert second.api.engine is not engine
    assert writes(first) == said  # who has it goes on with it
    del first
    gc.collect()
    third = made(3.0)
    with pytest.raises(TargetError, match="is closed"):
        engine.run(int)
    assert engine not in provider._engines.values()
    assert writes(second) != said
    assert third.api.engine in provider._engines.values()


def test_an_adapter_is_part_of_the_model(tiny: Any, tmp_path: Path) -> None:
    from truing.audit import family, lay_out
    from truing.store import open_store
    from truing.targets import resolve
    from truing.train import Settings, export, fit, from_surfaces, gather

    carry = family("anchoring").carry
    pairs = from_surfaces(lay_out("anchoring", most=1).surfaces, fix=carry.fix, keep=carry.keep)[:4]
    with open_store(tmp_path / "store") as store:
        training = fit(tiny, gather("C6", pairs, parents=()), store, settings=Settings(most_steps=4, lr=0.05))
        folder = export(training, store, tmp_path / "adapter")
    plain, adapted = (get_model(name, memoize=False) for name in ("truing/tiny", f"truing/tiny@{folder}"))
    config = GenerateConfig(temperature=0, max_tokens=6, logprobs=True)
    outputs = [asyncio.run(model.generate("Hi", config=config)) for model in (plain, adapted)]
    target = resolve(f"local/tiny@{folder}")
    assert (outputs[1].metadata or {})["truing"]["target"] == target.card.id != tiny.card.id
    ask = target.ask([Message(role="user", content="Hi")], max_tokens=6)
    (alone,) = write(Batch(target.model), [replace(ask, top=0)], target.tokenizer)
    said = [[token.logprob for token in output.choices[0].logprobs.content] for output in outputs]  # type: ignore[union-attr]
    assert said[1] == pytest.approx([token.log_p for token in alone.tokens], abs=1e-4)
    assert said[1] != pytest.approx(said[0], abs=1e-3)


def test_an_engine_that_is_closed_is_an_error_that_is_not_tried_again(
    wild: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(wild) as engine:
        monkeypatch.setitem(provider._engines, ("wild", provider._Args(), Path.cwd(), ()), engine)
        model = get_model("truing/wild", memoize=False)
    assert model.api.should_retry(TargetError("x")) is False
    with pytest.raises(TargetError, match="is closed"):
        asyncio.run(model.generate("Say amber."))


def test_closing_the_engine_under_a_reply_is_an_error(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(wild)
    monkeypatch.setitem(provider._engines, ("wild", provider._Args(), Path.cwd(), ()), engine)
    noticing(engine, monkeypatch, pause=0.05)
    model = get_model("truing/wild", memoize=False, config=GenerateConfig(temperature=0))

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(model.generate, "Say amber.")
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(engine.close)

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(both())
    assert caught.group_contains(TargetError, match="closed while it wrote")


def test_leaving_one_of_several_replies_frees_them_all(known: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    noticing(known, monkeypatch, pause=0.05)
    model = get_model("truing/wild", memoize=False, config=GenerateConfig(temperature=0, num_choices=4))

    async def briefly() -> None:
        with anyio.move_on_after(0.5):
            await model.generate("Say amber.")

    asyncio.run(briefly())
    for _ in range(100):
        if known.busy == (0, 0):
            break
        time.sleep(0.02)
    assert known.busy == (0, 0)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_are_counted_by_the_models_own_tokenizer(known: Engine) -> None:
    model, target = get_model("truing/wild", memoize=False), known.target
    text = "Say amber, birch and cedar."
    ids = target.text_ids(text)
    assert asyncio.run(model.api.count_text_tokens(text)) == len(ids)
    assert asyncio.run(model.api.count_tokens(text)) == len(ids)
    assert asyncio.run(model.api.tokenize(text)) == ids
    turns: list[ChatMessage] = [ChatMessageUser(content=text)]
    assert asyncio.run(model.count_tokens(turns)) == len(target.prompt_ids([Message(role="user", content=text)]))
    picture: list[ChatMessage] = [ChatMessageUser(content=[ContentText(text=text), ContentImage(image="a.png")])]
    assert asyncio.run(model.api.count_tokens(picture)) > len(ids)
    info = ToolInfo(name="add", description="Adds.")
    assert asyncio.run(model.count_tool_tokens([info])) > 3
    known_info = get_model_info("truing/wild")
    assert known_info is not None
    assert known_info.context_length == 512


def test_waiting_under_trio(known: Engine) -> None:
    # Inspect's own limits on connections, made under asyncio by the tests above, are left out.
    api, config = get_model("truing/wild", memoize=False).api, GenerateConfig(temperature=0, max_tokens=5)
    answer: Any = anyio.run(api.generate, [ChatMessageUser(content="Say amber.")], [], "auto", config, backend="trio")
    output, _ = answer
    assert output.usage is not None
    assert output.usage.output_tokens == 5
