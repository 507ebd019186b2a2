"""Inspect's models as targets, and conversations to and from its logs.

Only this module, `provider` and the tasks in `studies` know Inspect. What a provider is asked goes through Inspect as
it is: its retries, its limit on connections, and, where it is wanted, its cache.
"""

from __future__ import annotations

import atexit
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalResults,
    EvalSample,
    EvalSpec,
    EvalStats,
    read_eval_log_async,
    write_eval_log_async,
)
from inspect_ai.model import (
    CachePolicy,
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
    StopReason,
    get_model,
)
from inspect_ai.tool import ToolCall as TheirCall
from inspect_ai.tool import ToolInfo, ToolParams

from truing.errors import DataError, RecordError, TargetError, UsageError
from truing.records import Message, Target, Tool, ToolCall, canonical, digest_of
from truing.targets.protocols import Reply
from truing.text import short

T = TypeVar("T")

RETRIES = 6
"""Retries of a request, where nothing else is said: about four minutes. Inspect's own default is to retry forever."""
ROUTES = frozenset({
    "adaptive_connections", "attempt_timeout", "batch", "cache", "extra_headers", "max_connections", "max_retries",
    "stream_idle_timeout", "timeout",
})  # fmt: skip
"""Settings of how a model is reached, which are no part of what it is."""
READ_LIMIT = 128 * 1024**2
"""Bytes that a log may have, packed or unpacked, where nothing else is said."""
MEMBERS = 100_000
"""Files that a log may hold."""


# -- messages ----------------------------------------------------------------------------------------------------------


def ours(message: ChatMessage) -> Message:
    """A turn of Inspect's as a record. TargetError where it holds what is neither text, nor reasoning, nor a call."""
    text = _text(message.content, message.role)
    if isinstance(message, ChatMessageTool):
        said = _with_error(message.error.message, text) if message.error else text
        return Message(role="tool", content=said, call=message.tool_call_id or "", tool=message.function or "")
    calls = message.tool_calls or () if isinstance(message, ChatMessageAssistant) else ()
    return Message(role=message.role, content=text, calls=tuple(map(_our_call, calls)))


def _with_error(error: str, output: str) -> str:
    """What a tool that failed has to say: why, and what it put out until then."""
    return f"Error: {error}" if output in {"", error} else f"Error: {error}\n{output}"


def _text(content: str | list[Content], role: str) -> str:
    """The parts of a turn, each on a line of its own. Reasoning stands between <think> and </think>, where it is told.

    So it does in the replies of local targets.
    """
    if isinstance(content, str):
        return content
    for part in content:
        if not isinstance(part, ContentText | ContentReasoning):
            raise TargetError(f"a {role} turn holds a part of type {part.type!r}; text alone can be read here")
    return "\n".join(
        part.text
        for part in content
        if isinstance(part, ContentText) or (isinstance(part, ContentReasoning) and (not part.redacted or part.summary))
    )


def _our_call(call: TheirCall) -> ToolCall:
    return ToolCall(name=call.function, arguments=canonical(call.arguments).decode(), id=call.id)


def theirs(message: Message, id: str | None = None) -> ChatMessage:  # noqa: A002 - as Inspect calls it
    """A record as a turn of Inspect's; it gets a random id where none is given."""
    match message.role:
        case "system":
            return ChatMessageSystem(content=message.content, id=id)
        case "user":
            return ChatMessageUser(content=message.content, id=id)
        case "tool":
            return ChatMessageTool(
                content=message.content, tool_call_id=message.call, function=message.tool or None, id=id
            )
        case "assistant":
            calls = [their_call(call) for call in message.calls]
            return ChatMessageAssistant(content=message.content, tool_calls=calls or None, id=id)


def their_call(call: ToolCall) -> TheirCall:
    """A call as Inspect has it."""
    return TheirCall(id=call.id, function=call.name, arguments=json.loads(call.arguments))


def our_tool(tool: ToolInfo) -> Tool:
    """A function that Inspect offers."""
    parameters = canonical(tool.parameters.model_dump(mode="json", exclude_none=True)).decode()
    return Tool(name=tool.name, description=tool.description, parameters=parameters)


def their_tool(tool: Tool) -> ToolInfo:
    """A function as Inspect offers it.

    TargetError where Inspect's form of JSON Schema lacks what the tool's parameters use.
    """
    said = json.loads(tool.parameters)
    try:
        parameters = ToolParams.model_validate(said)
    except ValueError as error:
        raise TargetError(f"the parameters of tool {tool.name} are no JSON Schema of an object: {error}") from error
    if parameters.model_dump(mode="json", exclude_unset=True) != said:
        raise TargetError(
            f"the parameters of tool {tool.name} use JSON Schema that Inspect has no form for, and would be offered"
            f" otherwise than they are written: {short(tool.parameters)}"
        )
    return ToolInfo(name=tool.name, description=tool.description, parameters=parameters)


# -- a target ----------------------------------------------------------------------------------------------------------


class InspectTarget:
    """A model that Inspect reaches. Close it where many are made, for it keeps connections open."""

    def __init__(self, card: Target, model: Model, cache: bool | CachePolicy) -> None:
        self.card = card
        self._model, self._cache = model, cache

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        """Replies at temperature 0 (unless loaded with another), one for each conversation, in order.

        They are asked for at once, as many as the connections allow. One that a filter stopped is a reply that says so
        (`refused`). TargetError for the first that fails after all retries: once the others are there, which come from
        the cache when asked for again, where there is one; at once where none has come so far.
        """
        offered = [their_tool(tool) for tool in tools]
        asked = [[theirs(message) for message in messages] for messages in conversations]
        outputs = _run(self._all, asked, offered, max_tokens)
        return [reply_in(output, tools) for output in outputs]

    @property
    def concurrency(self) -> int:
        """Calls that it takes at once."""
        return self._model.config.max_connections or self._model.api.max_connections()

    def close(self) -> None:
        """Let go of its connections."""
        _run(self._model.api.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _all(
        self, asked: Sequence[list[ChatMessage]], tools: Sequence[ToolInfo], max_tokens: int
    ) -> list[ModelOutput]:
        outputs: dict[int, ModelOutput] = {}
        failures: list[TargetError] = []

        async def ask(place: int) -> None:
            try:
                output = await self._model.generate(
                    asked[place], list(tools), config=GenerateConfig(max_tokens=max_tokens), cache=self._cache
                )
            except Exception as error:  # noqa: BLE001 - raised when the others are done
                failures.append(self._failed(cause(error)))
                failures[-1].__cause__ = error
                if not outputs:  # a wrong key, say, or no server: the others would wait for nothing
                    group.cancel_scope.cancel()
                return
            outputs[place] = output
            if why := _no_reply(output):
                failures.append(self._failed(why))

        async with anyio.create_task_group() as group:
            for place in range(len(asked)):
                group.start_soon(ask, place)
        if failures:
            raise failures[0]
        return [outputs[place] for place in range(len(asked))]

    def _failed(self, why: str) -> TargetError:
        return TargetError(f"{self.card.name} gave no reply: {short(without_key(why, self._model))}")


def without_key(why: str, model: Model) -> str:
    """What a provider says of a failure, which may hold the key that it was called with."""
    key = model.api.api_key
    return why.replace(key, "[key]") if key and len(key) > 3 else why


def reply_in(output: ModelOutput, tools: Sequence[Tool]) -> Reply:
    """The reply in an output, these tools having been offered.

    TargetError where there is none, or it holds what is neither text nor reasoning.
    """
    if why := _no_reply(output):
        raise TargetError(f"no reply: {short(why)}")
    return _reply(output.message, output, frozenset(tool.name for tool in tools))


def _no_reply(output: ModelOutput) -> str:
    """Why there is no reply in it, "" where there is. Some providers put their own message where it would stand."""
    if output.empty:
        return output.error or "it returned no reply"
    if output.stop_reason == "content_filter":
        return ""
    if output.stop_reason == "model_length" and not (output.usage and output.usage.output_tokens):
        return f"the conversation is too long for it: {output.error or output.completion}"
    return output.error or ""


def _reply(turn: ChatMessageAssistant, output: ModelOutput | None, names: frozenset[str] | None = None) -> Reply:
    """A turn that the model wrote, with the output that it came in, where that is known.

    `names`: the functions that were offered. TargetError where it holds what is neither text nor reasoning.
    """
    calls, unparsed = tuple[ToolCall, ...](), False
    try:
        calls = tuple(_checked_call(call, names) for call in turn.tool_calls or ())
    except (ValueError, RecordError):
        unparsed = True
    if len({call.id for call in calls}) < len(calls):  # a result could not be matched to its call
        calls, unparsed = (), True
    tokens = output.usage.output_tokens if output and output.usage else 0
    ended = output.stop_reason if output else "stop"
    return Reply(
        _text(turn.content, "assistant"), tokens, ended not in {"max_tokens", "model_length", "content_filter"},
        calls, unparsed, refused=ended == "content_filter", read=_read(output.usage) if output else None,
    )  # fmt: skip


def _read(usage: ModelUsage | None) -> int | None:
    """Tokens of a prompt, however the provider splits them up."""
    if usage is None:
        return None
    return usage.input_tokens + (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)


def _checked_call(call: TheirCall, names: frozenset[str] | None) -> ToolCall:
    """ValueError, RecordError where it is no call, or none of a function that was offered."""
    if call.parse_error or (names is not None and call.function not in names):
        raise ValueError("no call of a function that was offered")
    return _our_call(call)


def load(
    name: str,
    *,
    base_url: str | None = None,
    cache: bool | str = False,
    args: Mapping[str, Any] | None = None,
    **config: Any,
) -> InspectTarget:
    """A model by the name that Inspect has for it, such as `openai/gpt-4o`.

    Keys and addresses come from the environment, as the provider names them (OPENAI_API_KEY, OPENAI_BASE_URL).
    `cache`: True, or for how long, such as "1W". `args`: what `-M` gives to Inspect. `config`: fields of its
    GenerateConfig, such as max_connections, max_retries, timeout or reasoning_effort. TargetError where a key or a
    package is missing.
    """
    if wrong := sorted(config.keys() - (GenerateConfig.model_fields.keys() - {"max_tokens", "cache"})):
        raise TargetError(f"inspect/{name}: Inspect has no settings {', '.join(wrong)} for a reply")
    if (many := config.get("max_connections")) is not None and (not isinstance(many, int) or many < 1):
        raise TargetError(f"inspect/{name}: max_connections is {many!r}; give a whole number of 1 or more")
    policy = CachePolicy.from_string(cache) if isinstance(cache, str) else cache
    if policy is None:
        raise TargetError(f"inspect/{name}: cache {cache!r} is no length of time; give one such as '12h' or '1W'")
    said = {"temperature": 0.0, "max_retries": RETRIES, **config}
    try:
        # Not shared with evaluations in this process: its connections belong to our event loop.
        model = get_model(
            name, config=GenerateConfig(**said), base_url=base_url, memoize=False, **(args or {})
        )  # fmt: skip
    except Exception as error:
        raise TargetError(f"cannot reach inspect/{name}: {short(cause(error))}") from error
    return InspectTarget(_card(name, model, args or {}, said), model, policy)


def _card(name: str, model: Model, args: Mapping[str, Any], config: Mapping[str, Any]) -> Target:
    """What can be known of a model that is only reached: its name, where it is, and what it is told with every ask."""
    told = {key: value for key, value in config.items() if key not in ROUTES}
    given = {key: value for key, value in args.items() if key != "api_key"}
    known = {"inspect": name, "base_url": model.api.base_url or "", "args": _plain(given), "config": _plain(told)}
    return Target(
        name=f"inspect/{name}",
        weights=digest_of(known),
        template=digest_of("of the provider"),
        dtype="none",
        abilities=("Chat",),
    )


def _plain(values: Mapping[str, Any]) -> Any:
    """As JSON; what has no JSON is named by its type."""
    return json.loads(json.dumps(values, default=lambda value: type(value).__qualname__, sort_keys=True))


_MARKUP = re.compile(r"\[/?[a-z][a-z ]*\]")


def cause(error: BaseException) -> str:
    """What a failure says, without the layers around it."""
    while (last := getattr(error, "last_attempt", None)) is not None and last.exception() is not None:
        error = last.exception()  # what stood after the last retry
    said = getattr(error, "provider_message", None) or getattr(error, "message", None) or str(error)
    return f"{_MARKUP.sub('', str(said))} ({type(error).__name__})"


# -- the event loop ----------------------------------------------------------------------------------------------------

_starting = Lock()


@lru_cache(maxsize=1)
def _portal() -> BlockingPortal:
    """An event loop in a thread of its own, for the whole process: clients keep connections that belong to one loop."""
    manager = start_blocking_portal(name="truing and inspect")
    atexit.register(manager.__exit__, None, None, None)
    return manager.__enter__()


def _run(work: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Wait for it, whether or not an event loop runs in this thread."""
    with _starting:
        portal = _portal()
    # In a fresh context: the limits and the transcript of an evaluation that we may be part of are not these calls'.
    future = Context().run(portal.start_task_soon, work, *args)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C stops what was asked for, too
        raise


# -- logs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation, and the reply that ended it."""

    messages: tuple[Message, ...]
    reply: Reply | None
    """None where the conversation ends otherwise: it was broken off, or what stands at its end is no reply."""
    sample: str = ""
    """What it is called in the log."""
    epoch: int = 1
    error: str = ""
    """Why it was broken off, or cannot be read."""


def write_log(
    path: Path, card: Target, transcripts: Iterable[Transcript], *, task: str = "truing", at: datetime | None = None
) -> None:
    """A log that Inspect reads and shows; `.eval`, or `.json`. The same values at the same time say the same.

    A `.json` log is then the same to the byte; in an `.eval` one, which is a zip archive, its files are, and the times
    at which they were packed differ. UsageError for another ending, and where two transcripts have the same sample and
    epoch, of which Inspect would keep one; DataError where it cannot be written.
    """
    if path.suffix not in {".eval", ".json"}:
        raise UsageError(f"a log of Inspect's ends in .eval or .json, and {path.name} does not")
    time = (at or datetime.now(UTC)).isoformat(timespec="seconds")
    samples = [_sample(one, place, card.name) for place, one in enumerate(transcripts, 1)]
    _all_differ(samples)
    identity = digest_of([card.id, task, time, [sample.id for sample in samples]])[:22]
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=identity,
            task_id=identity,
            created=time,
            task=task,
            dataset=EvalDataset(samples=len(samples), sample_ids=list(dict.fromkeys(str(one.id) for one in samples))),
            model=card.name,
            config=EvalConfig(),
            metadata={"truing": {"target": card.id}},
        ),
        results=EvalResults(total_samples=len(samples), completed_samples=sum(not one.error for one in samples)),
        stats=EvalStats(started_at=time, completed_at=time),
        samples=samples,
    )
    try:
        _run(write_eval_log_async, log, path.absolute().as_posix())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {short(error)}") from error


def _all_differ(samples: Sequence[EvalSample]) -> None:
    (most, count), *_ = Counter((one.id, one.epoch) for one in samples).most_common(1) or [((0, 0), 0)]
    if count > 1:
        raise UsageError(
            f"{count} transcripts are sample {most[0]} in epoch {most[1]}, of which a log holds one. Give each a"
            " `sample`, or an `epoch`, of its own; one without a `sample` is called by its place, from 1"
        )


def _sample(one: Transcript, place: int, model: str) -> EvalSample:
    name: str | int = one.sample or place
    if isinstance(name, str) and name.isdecimal() and str(int(name[:18])) == name:
        name = int(name)  # which Inspect sorts as numbers
    turns = [theirs(message, f"{place}.{turn}") for turn, message in enumerate(one.messages)]
    output = (
        _output(one.reply, f"{place}.{len(turns)}", model)
        if one.reply
        else ModelOutput(model=model, metadata={"truing": {"reply": False}})
    )
    return EvalSample(
        id=name,
        epoch=one.epoch,
        input=turns,
        target="",
        messages=[*turns, *(choice.message for choice in output.choices)],
        output=output,
        error=EvalError(message=one.error, traceback="", traceback_ansi="") if one.error else None,
        uuid=digest_of([place, name, one.epoch])[:22],
    )


def _output(reply: Reply, id: str, model: str) -> ModelOutput:  # noqa: A002 - as Inspect calls it
    said = ChatMessageAssistant(
        content=reply.text,
        tool_calls=[their_call(call) for call in reply.calls] or None,
        model=model,
        source="generate",
        id=id,
    )
    ended: StopReason = "tool_calls" if reply.calls else "stop" if reply.finished else "max_tokens"
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=said, stop_reason="content_filter" if reply.refused else ended)],
        usage=ModelUsage(output_tokens=reply.tokens, total_tokens=reply.tokens),
        metadata={"truing": {"finished": reply.finished} | ({"unparsed": [0]} if reply.unparsed else {})},
    )


def read_log(path: Path, *, limit: int = READ_LIMIT) -> list[Transcript]:
    """The conversations in a log, in its order. DataError where it is damaged, or larger than `limit` bytes.

    What a log says is not trusted: no file that it names is opened, and what it holds in packed form counts unpacked.
    A sample that holds more than text (images, say) comes with no messages and an `error` that says so. One that met a
    limit, was marked invalid, or whose last output holds no reply comes without a reply, and its `error` says why.
    """
    try:
        with path.open("rb") as file:
            whole = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(whole) > limit:
        raise DataError(f"{path} is larger than {limit} bytes; read it with a higher limit")
    try:
        plain = _unpacked(io.BytesIO(whole), limit) if whole.startswith(b"PK") else json.loads(whole)
        log = _run(read_eval_log_async, io.BytesIO(_slim(plain)), False, False, "json")
        budget = _Budget(limit)
        return [_transcript(sample, budget) for sample in log.samples or ()]
    except DataError:
        raise
    except Exception as error:  # parsers of zip, JSON and the log's values each raise errors of their own
        raise DataError(f"{path} is no log of Inspect's, or is damaged: {short(error)}") from error


def _unpacked(file: IO[bytes], limit: int) -> dict[str, Any]:
    """A .eval file as the value that a .json one holds."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}  # the last of a name counts
        if len(members) > MEMBERS:
            raise DataError(f"a log holds {len(members)} files, more than {MEMBERS}")
        wanted = {name for name in members if name.startswith("samples/") and name.endswith(".json")}
        header = "header.json" if "header.json" in members else "_journal/start.json"  # of one that still runs
        for info in members.values():  # each is also named where it begins, and zipfile compares the two
            archive.open(info).close()
        # A member is never unpacked further than it is said to be large.
        if (size := sum(members[name].file_size for name in wanted | ({header} & members.keys()))) > limit:
            raise DataError(f"a log unpacks to {size} bytes, more than {limit}; read it with a higher limit")
        log: dict[str, Any] = json.loads(archive.read(header))
        return {**log, "samples": [json.loads(archive.read(name)) for name in members if name in wanted]}


def _slim(log: Any) -> bytes:
    """The log without what is not looked at here, such as events: a few bytes of them can stand for very much."""
    if not isinstance(log, dict) or not all(isinstance(sample, dict) for sample in log.get("samples") or ()):
        raise ValueError("it does not hold a log")
    left = {"events", "events_data", "timelines", "transcript", "store", "metadata", "scores"}
    samples = [
        {key: value for key, value in sample.items() if key not in left} for sample in log.get("samples") or ()
    ]  # fmt: skip
    kept = {key: log[key] for key in ("version", "status", "eval") if key in log}
    return json.dumps({**kept, "samples": sorted(samples, key=_order)}).encode()


def _order(sample: Mapping[str, Any]) -> tuple[int, bool, int, str]:
    """By epoch, then by id; numbers in their own order, also where they are text."""
    name, epoch = str(sample.get("id")), sample.get("epoch")
    number = name.isdecimal() and len(name) < 19
    return epoch if isinstance(epoch, int) else 0, not number, int(name) if number else 0, name


class _Budget:
    """How much text may still come out of a log: long texts are kept once, and may be named many times."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, text: str) -> str:
        self.left -= len(text)
        if self.left < 0:
            raise DataError("the texts of a log are larger than the limit; read it with a higher limit")
        return text


_KEPT = "attachment://"


def _transcript(sample: EvalSample, budget: _Budget) -> Transcript:
    why = _broken(sample)
    error = sample.error.message if sample.error else why
    try:
        turns = [_attached(message, sample.attachments, budget) for message in sample.messages]
        reply = None if why else _last(sample.output, turns)
        messages = tuple(map(ours, turns[:-1] if reply else turns))
    except (TargetError, RecordError) as wrong:
        return Transcript((), None, str(sample.id), sample.epoch, f"cannot be read: {wrong}")
    return Transcript(messages, reply, str(sample.id), sample.epoch, error)


def _broken(sample: EvalSample) -> str:
    """Why what stands at the end of a sample is no reply that ended it; "" where nothing says so."""
    if (said := sample.invalidation) is not None:
        return f"marked invalid by {said.author}" + (f": {said.reason}" if said.reason else "")
    if (limit := sample.limit) is not None:
        return f"met a limit: {limit.reason or f'{limit.type} {limit.limit:.15g}'}"
    if sample.output.empty:
        return sample.output.error or ""
    return _no_reply(sample.output) if _came_in(sample.output, sample.messages) else ""


def _came_in(output: ModelOutput, turns: Sequence[ChatMessage]) -> bool:
    """Whether the last turn is the output's."""
    return not output.empty and bool(turns) and output.message.id in {None, turns[-1].id}


def _attached(message: ChatMessage, kept: Mapping[str, str], budget: _Budget) -> ChatMessage:
    """The turn with the texts that stand elsewhere in the log."""

    def found(text: str) -> str:
        if text.startswith(_KEPT):
            text = kept.get(text.removeprefix(_KEPT), text)
        return budget.spend(text)

    def deep(value: Any) -> Any:
        if isinstance(value, str):
            return found(value)
        if isinstance(value, dict):
            return {key: deep(inner) for key, inner in value.items()}
        return [deep(inner) for inner in value] if isinstance(value, list) else value

    if isinstance(message.content, str):
        changed: dict[str, Any] = {"content": found(message.content)}
    else:
        changed = {"content": [_found_part(part, found) for part in message.content]}
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        changed["tool_calls"] = [
            TheirCall(call.id, call.function, deep(call.arguments), call.parse_error) for call in message.tool_calls
        ]
    return message.model_copy(update=changed)


def _found_part(part: Content, found: Callable[[str], str]) -> Content:
    if isinstance(part, ContentText):
        return part.model_copy(update={"text": found(part.text)})
    if isinstance(part, ContentReasoning):
        return part.model_copy(
            update={"reasoning": found(part.reasoning), "summary": part.summary and found(part.summary)}
        )
    return part


def _last(output: ModelOutput, turns: Sequence[ChatMessage]) -> Reply | None:
    """The turn that ended a conversation as a reply, where the model wrote it."""
    if not turns or not isinstance(turn := turns[-1], ChatMessageAssistant) or turn.source == "input":
        return None
    own = _came_in(output, turns)
    said = (output.metadata or {}).get("truing") if own or output.empty else None
    said = said if isinstance(said, dict) else {}
    if said.get("reply") is False:
        return None
    reply, unparsed = _reply(turn, output if own else None), said.get("unparsed")
    return replace(
        reply,
        finished=bool(said.get("finished", reply.finished)),
        unparsed=reply.unparsed or (isinstance(unparsed, list) and 0 in unparsed),
    )


__all__ = [
    "READ_LIMIT", "RETRIES", "InspectTarget", "Transcript", "load", "our_tool", "ours", "read_log", "their_call",
    "theirs", "write_log",
]  # fmt: skip
