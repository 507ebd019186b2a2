"""Targets as models of Inspect's: `inspect eval TASK --model truing/smollm2-135m`.

After `truing/` stands what stands after `local/` in Truing's own names. Inspect finds this module by its entry point;
torch is loaded when a model is named.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import re
import secrets
from collections.abc import Callable, Sequence, Set
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from itertools import count
from logging import getLogger
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelCall,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
    modelapi,
    set_model_info,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from truing.errors import TargetError
from truing.records import Message, Tool, ToolCall
from truing.targets.inspect import our_tool, ours, their_call
from truing.targets.protocols import Reply
from truing.targets.resolve import resolve

if TYPE_CHECKING:
    from truing.targets.local import LocalTarget
    from truing.targets.local.engine import Engine
    from truing.targets.local.pieces import Pieces
    from truing.targets.local.sample import Sampling
    from truing.targets.local.write import Ask, Token, Written

ROWS = 256
"""Replies that are written at once, where nothing else is said; the engine takes fewer where memory is short."""
MAX_TOKENS = 2048
"""Of a reply, where nothing else is said; fewer where the context leaves fewer."""
TEMPERATURE = 1.0
"""Where nothing else is said: what the model's own distribution is, neither sharpened nor flattened."""
TOP = 20
"""Log-probabilities that Inspect asks for at most, beside that of the token itself."""
IGNORED = (
    "best_of", "effort", "extra_body", "fallback_models", "frequency_penalty", "logit_bias", "modalities",
    "presence_penalty", "prompt_logprobs", "reasoning_effort", "reasoning_mode", "reasoning_tokens", "response_schema",
    "verbosity",
)  # fmt: skip
"""Settings that would change a reply, and that nothing here can follow."""

_log = getLogger(__name__)
_warned: set[tuple[str, ...]] = set()


@modelapi(name="truing")
def truing() -> type[ModelAPI]:
    """Inspect calls this when the first model is named."""
    return Provider


# -- engines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Args:
    """What `-M` gives."""

    device: str = ""
    """"cpu", "cuda", "cuda:1"; "" leaves it to the target."""
    dtype: str = ""
    """"fp32" or "bf16"."""
    max_memory: str | int = ""
    """"4GB", or bytes, for work beyond the weights; "" leaves it to the target."""
    rows: int = 0
    """Replies that are written at once, at most; 0: ROWS."""
    steer: str = ""
    """A file with changes to be made inside the model."""

    def __post_init__(self) -> None:
        if not isinstance(self.rows, int) or isinstance(self.rows, bool) or self.rows < 0:
            raise TargetError(f"-M rows={self.rows!r} is no number of replies; give 1 or more")
        for name in ("device", "dtype", "steer"):
            if not isinstance(value := getattr(self, name), str):
                raise TargetError(f"-M {name}={value!r} is not text")
        if not isinstance(self.max_memory, str | int) or isinstance(self.max_memory, bool):
            raise TargetError(f"-M max_memory={self.max_memory!r} is no size; give bytes, or one such as 4GB")


_Key = tuple[str, _Args, Path, tuple[Any, ...]]
_engines: dict[_Key, Engine] = {}
_providers: WeakSet[Provider] = WeakSet()
"""Those that someone may still ask; each has its engine."""
_loading = Lock()
"""Held while an engine is found and until its provider has it."""


def _engine(name: str, args: _Args) -> Engine:
    """The one engine of this process for a target with these arguments. TargetError where it cannot be loaded."""
    key = (name, args, Path.cwd(), _stamps(name, args))  # names may be relative paths
    if key not in _engines:
        _drop_older(key)
        if args.steer and not Path(args.steer).is_file():
            raise TargetError(f"-M steer={args.steer}: there is no such file")
        whole = f"local/{name}+{args.steer}" if args.steer else f"local/{name}"
        target = resolve(whole, device=args.device, dtype=args.dtype, max_memory=args.max_memory)
        from truing.targets.local.engine import Engine  # torch, which is there by now

        _engines[key] = Engine(target, rows=args.rows or ROWS)
    return _engines[key]


def _drop_older(key: _Key) -> None:
    """Let go of the weights that a name stood for before its files changed, unless a model still has them."""
    used = {id(provider.engine) for provider in _providers}
    for older in [known for known in _engines if known[:3] == key[:3] and id(_engines[known]) not in used]:
        _engines.pop(older).close()


def _stamps(name: str, args: _Args) -> tuple[Any, ...]:
    """When the files behind a name were last written: the same name may stand for other weights by now."""
    places = [Path(part) for part in (*re.split("[@+]", name), name, args.steer) if part]
    files = [file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    return tuple((str(file), (said := file.stat()).st_mtime_ns, said.st_size) for file in files if file.is_file())


@atexit.register
def _close() -> None:
    """No thread may still be inside torch when the interpreter goes."""
    while _engines:
        _engines.popitem()[1].close()


# -- the provider ------------------------------------------------------------------------------------------------------


class Provider(ModelAPI):
    """A local target. All models of one process with the same name and arguments share one engine, and its batch."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if wrong := sorted(args.keys() - set(_Args.__slots__)):
            raise TargetError(f"truing/{model_name} takes -M {', '.join(_Args.__slots__)}, and no {', '.join(wrong)}")
        self._args = _Args(**args)
        with _loading:
            self.engine = _engine(model_name, self._args)
            _providers.add(self)
        # Inspect's cache knows a model by its name and this, and not by -M: a steered one is another.
        self.base_url = f"truing:{self._target.card.id}"
        # Else Inspect would take a context of 128,000 tokens for granted when it decides what to leave out.
        set_model_info(f"truing/{model_name}", ModelInfo(context_length=self._target.room((), 2**24)))

    @property
    def _target(self) -> LocalTarget:
        return self.engine.target

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002 - as Inspect calls it
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput | tuple[ModelOutput | Exception, ModelCall]:
        """Replies, sampled as asked. TargetError for what cannot be read, offered or sampled."""
        messages = [ours(message) for message in input]
        offered = () if tool_choice == "none" else tuple(map(our_tool, tools))
        ignored = _ignored(tool_choice, config)
        seeds = _seeds(config)
        how = _sampling(config, seeds[0])
        first = self._first(messages, offered, how, config)
        if isinstance(first, ModelOutput):
            return first
        asks = [replace(first, sampling=replace(how, seed=seed)) for seed in seeds]
        written = await _answers([self.engine.submit(ask) for ask in asks])
        replies = [self._target.reply_of(one, offered) for one in written]
        said: dict[str, Any] = {
            "target": self._target.card.id,
            "sampling": {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "seeds": seeds},
        }
        if offered:
            said["dialect"] = self._target.dialect.said
        if unparsed := [place for place, reply in enumerate(replies) if reply.unparsed]:
            said["unparsed"] = unparsed
        if ignored:
            said["ignored"] = list(ignored)
        cut: StopReason = "model_length" if first.max_tokens < (config.max_tokens or MAX_TOKENS) else "max_tokens"
        taken = {name for message in messages for name in (message.call, *(call.id for call in message.calls))}
        choices = [
            self._choice(first, one, reply, cut, taken) for one, reply in zip(written, replies, strict=True)
        ]  # fmt: skip
        output = ModelOutput(
            model=self.model_name,
            choices=choices,
            usage=_usage(len(first.prompt), sum(len(one.ids) for one in written)),
            metadata={"truing": said},
        )
        return output, self._call(first, said, written)

    def _first(
        self, messages: Sequence[Message], tools: Sequence[Tool], how: Sampling, config: GenerateConfig
    ) -> Ask | ModelOutput:
        """The ask, as long as the context lets it be; or the output that says that there is no room for a reply."""
        from truing.targets.local.write import Ask

        top = None
        if config.logprobs or config.top_logprobs:
            top = _within("top_logprobs", config.top_logprobs or 0, 0, TOP)
        asked = int(_within("max_tokens", config.max_tokens or MAX_TOKENS, 1, 2**31))
        target = self._target
        # Not by `target.ask`, which remembers what it is asked: conversations of agents are long, and no two the same.
        prompt = target.encoded(target.prompt_text(messages, tools))
        room = target.room(prompt, asked)
        try:
            target.fits(prompt, more=1)
        except TargetError as error:
            if room:
                raise
            output = ModelOutput.from_content(self.model_name, str(error), "model_length", str(error))
            output.usage = _usage(0, 0)  # nothing was computed
            output.metadata = {"truing": {"target": target.card.id}}
            return output
        return Ask(
            tuple(prompt), room, target.stop_ids, _stops(config), how, top,
            special=bool(tools) and target.dialect.native,
        )  # fmt: skip

    def _choice(
        self, ask: Ask, written: Written, reply: Reply, cut: StopReason, taken: Set[str]
    ) -> ChatCompletionChoice:
        calls = [their_call(call) for call in _with_own_ids(reply.calls, taken)]
        said = ChatMessageAssistant(
            content=_content(reply.text), tool_calls=calls or None, model=self.model_name, source="generate"
        )
        ended: StopReason = "tool_calls" if calls else "stop" if reply.finished else cut
        shown = self._pieces.shown(ask, written)
        tokens = Logprobs(content=[self._logprob(token) for token, _ in shown]) if written.tokens else None
        return ChatCompletionChoice(message=said, stop_reason=ended, logprobs=tokens)

    def _logprob(self, token: Token) -> Logprob:
        """In nats, at temperature 1, the token that ended the reply among them."""
        top = [TopLogprob(**self._token(id_, log_p)) for id_, log_p in token.top]
        return Logprob(**self._token(token.id, token.log_p), top_logprobs=top or None)

    def _token(self, token: int, log_p: float) -> dict[str, Any]:
        return {"token": self._pieces.name(token), "logprob": log_p, "bytes": list(self._pieces.bytes(token))}

    @cached_property
    def _pieces(self) -> Pieces:
        from truing.targets.local.pieces import Pieces  # torch comes along

        return Pieces(self._target.tokenizer)

    def _call(self, ask: Ask, said: dict[str, Any], written: Sequence[Written]) -> ModelCall:
        """What went into the model, word for word, and what came out."""
        prompt = self._target.tokenizer.decode(list(ask.prompt))
        request = {"prompt": prompt, "max_tokens": ask.max_tokens, "stop": list(ask.stop), **said}
        return ModelCall.create(request, {"replies": [{"text": one.text, "ended": one.ended} for one in written]})

    # -- what Inspect wants to know

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer."""
        return len(self._target.encoded(text))

    async def count_tokens(self, input: str | list[ChatMessage], config: GenerateConfig | None = None) -> int:  # noqa: A002 - as Inspect calls it
        """Of the prompt, template and all; of the texts alone where no template takes them, say a tool's result."""
        if not isinstance(input, str):
            with suppress(TargetError):
                return len(self._target.encoded(self._target.prompt_text([ours(message) for message in input])))
        return await super().count_tokens(input, config)

    async def tokenize(self, text: str) -> list[int]:
        """By the model's own tokenizer."""
        return self._target.encoded(text)

    def max_tokens(self) -> int:
        """Where nothing else is said."""
        return MAX_TOKENS

    def max_connections(self) -> int:
        """As many as the engine writes at once."""
        return self._args.rows or ROWS

    def connection_key(self) -> str:
        """One limit for each engine."""
        return f"{self.model_name} {self._args}"

    def collapse_user_messages(self) -> bool:
        """Many templates want turns to alternate."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """The same."""
        return True

    def should_retry(self, ex: Exception) -> bool:
        """Nothing that fails here fails otherwise the next time."""
        del ex
        return False


# -- waiting -----------------------------------------------------------------------------------------------------------


async def _answers(futures: Sequence[Future[Written]]) -> list[Written]:
    """All of them, under asyncio or trio. Whoever stops waiting, or fails, cancels the rest, and frees their rows."""
    try:
        for future in futures:
            await _done(future)
        return [future.result() for future in futures]
    except CancelledError as error:
        raise TargetError("the engine was closed while it wrote") from error
    finally:
        for future in futures:
            future.cancel()


async def _done(future: Future[Written]) -> None:
    done = anyio.Event()
    soon = _from_thread()
    future.add_done_callback(lambda _: soon(done.set))
    await done.wait()


def _from_thread() -> Callable[[Callable[[], None]], object]:
    """What runs a function in this event loop, called from another thread, without waiting for it.

    anyio's own way waits; the engine would stand still until the loop has time.
    """
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        trio: Any = import_module("trio.lowlevel")  # no dependency of ours: who runs under trio has it
        soon: Callable[[Callable[[], None]], object] = trio.current_trio_token().run_sync_soon
        return soon


# -- settings ----------------------------------------------------------------------------------------------------------


def _sampling(config: GenerateConfig, seed: int) -> Sampling:
    """TargetError for numbers that no reply can be drawn with."""
    from truing.targets.local.sample import Sampling

    return Sampling(
        temperature=_within("temperature", _or(config.temperature, TEMPERATURE), 0.0, 100.0),
        top_p=_within("top_p", _or(config.top_p, 1.0), math.ulp(0.0), 1.0),
        top_k=int(_within("top_k", _or(config.top_k, 0), 0, 2**31)),
        seed=seed,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _within(name: str, value: float, low: float, high: float) -> Any:
    if not low <= value <= high:  # so neither is NaN
        raise TargetError(f"{name} is {value}; give one from {low} to {high}")
    return value


def _seeds(config: GenerateConfig) -> list[int]:
    """One for each reply: the seed that was given and those after it, or as many random ones."""
    count = int(_within("num_choices", config.num_choices or 1, 1, 2**16))
    if config.seed is None:
        return [secrets.randbits(48) for _ in range(count)]
    return [config.seed + place for place in range(count)]


def _stops(config: GenerateConfig) -> tuple[str, ...]:
    if not all(stops := tuple(config.stop_seqs or ())):
        raise TargetError("stop_seqs holds an empty text, which every reply begins with; leave it out")
    return stops


def _ignored(tool_choice: ToolChoice, config: GenerateConfig) -> tuple[str, ...]:
    """What was asked for and is not followed; said once."""
    found = [name for name in IGNORED if getattr(config, name) not in (None, [], {})]
    if config.parallel_tool_calls is False:
        found.append("parallel_tool_calls")
    if tool_choice not in ("auto", "none"):
        found.append("tool_choice")  # a reply cannot be made to hold a call; it is left to the model, as with "auto"
    ignored = tuple(found)
    if ignored and ignored not in _warned:
        _warned.add(ignored)
        _log.warning("truing: %s asked for, but not followed by this provider", ", ".join(ignored))
    return ignored


# -- replies -----------------------------------------------------------------------------------------------------------


def _usage(read: int, wrote: int) -> ModelUsage:
    return ModelUsage(input_tokens=read, output_tokens=wrote, total_tokens=read + wrote)


_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


def _content(text: str) -> str | list[Content]:
    """A reply, its reasoning apart where it begins with some between <think> and </think>."""
    if not (found := _THOUGHT.fullmatch(text)):
        return text
    return [ContentReasoning(reasoning=found[1].strip()), ContentText(text=found[2])]


_PLACE = re.compile(r"call_([0-9]{1,18})")


def _with_own_ids(calls: Sequence[ToolCall], taken: Set[str]) -> list[ToolCall]:
    """Calls with ids that their conversation does not have yet: Inspect matches results by id.

    Those that are numbered within their reply are numbered on from the highest number in the conversation, of which
    the first turns may have been left out.
    """
    numbers = count(1 + max((int(found[1]) for name in taken if (found := _PLACE.fullmatch(name))), default=-1))
    return [
        call.model_copy(update={"id": f"call_{next(numbers)}"})
        if call.id in taken or _PLACE.fullmatch(call.id)
        else call
        for call in calls
    ]
