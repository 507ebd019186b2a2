"""What clients may ask for: the bodies of requests, checked, with what would be ignored to their harm refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import from_json

from truing.targets.serve.refusal import Refusal
from truing.text import short

B = TypeVar("B", bound="Asked")

CHOICES = 1024
"""Replies that one request may ask for."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "ebnf": ("",),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": ([],),
    "guided_decoding": ({},),
    "guided_grammar": ("",),
    "guided_json": (),
    "guided_regex": ("",),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "lora": ([],),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "n_predict": (-1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "regex": ("",),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structural_tag": (),
    "structured_outputs": ({},),
    "suffix": ("",),
    "tfs_z": (1,),
    "thinking_budget_tokens": (-1,),
    "top_a": (0,),
    "top_k": (0, -1),
    "top_n_sigma": (0, -1),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
    "xtc_probability": (0,),
}
"""Fields that are not supported, and the values (beside null) at which they would change nothing. Some are
OpenAI's, others those of servers that clients are written for as well (vLLM, SGLang, llama.cpp)."""


class Body(BaseModel):
    """A part of a request. What is null counts as not given; fields that are not known are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, said: Any) -> Any:
        return {key: value for key, value in said.items() if value is not None} if isinstance(said, dict) else said


def _joined(said: Any, turn: ValidationInfo) -> Any:
    """The text of a list of text parts, an assistant's refusals among them; nothing is put between them."""
    if not isinstance(said, list):
        return said
    kinds = ("text", "refusal") if turn.data.get("role") == "assistant" else ("text",)
    texts = [
        part.get(part.get("type")) if isinstance(part, dict) and part.get("type") in kinds else None for part in said
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('only parts {"type": "text", "text": "..."} are supported')
    return "".join(texts)  # type: ignore[arg-type]


def _listed(said: Any) -> Any:
    return [said] if isinstance(said, str) else said


def _prompts(said: Any) -> list[str | list[int]]:
    one = [said] if isinstance(said, str) or _tokens(said) else said
    if isinstance(one, list) and one and (all(isinstance(text, str) for text in one) or all(map(_tokens, one))):
        return one
    raise ValueError("give a string, a list of strings, a list of token ids, or a list of such lists; none empty")


def _tokens(said: Any) -> bool:
    return isinstance(said, list) and bool(said) and all(type(token) is int for token in said)


class SaidFunction(Body):
    """The function of a call that an assistant turn made."""

    name: str
    arguments: str
    """JSON of an object."""


class SaidCall(Body):
    """A call that an assistant turn made."""

    id: str
    type: Literal["function"] = "function"
    function: SaidFunction


class Turn(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_joined)] = None
    refusal: str = ""
    """What an assistant said instead of content."""
    tool_calls: Annotated[list[SaidCall], FailFast()] = []
    tool_call_id: str | None = None
    function_call: None = None
    """The form of calls that came before `tool_calls`."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.role != "assistant" and self.content is None:
            raise ValueError(f"a {self.role} message needs content")
        if self.role != "assistant" and self.tool_calls:
            raise ValueError(f"a {self.role} message makes no tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool message needs tool_call_id, the id of the call that it answers")
        return self


class Function(Body):
    """A function that is offered."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    parameters: dict[str, Any] = {"type": "object", "properties": {}}


class Offer(Body):
    """A tool that is offered."""

    type: Literal["function"]
    function: Function


class StreamOptions(Body):
    """What else is in a stream."""

    include_usage: bool = False


class Asked(Body):
    """What both kinds of request have."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(_listed)] = []
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


class ChatBody(Asked):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Turn], FailFast(), Field(min_length=1)]
    tools: Annotated[list[Offer], FailFast()] = []
    tool_choice: Any = "auto"
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.tool_choice not in ("auto", "none"):
            raise ValueError(
                'tool_choice may be "auto" or "none": a model cannot be made to call a tool here,'
                " since what it writes is not constrained"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class CompletionBody(Asked):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts)]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    echo: bool = False

    @model_validator(mode="after")
    def _few(self) -> Self:
        if len(self.prompt) * self.n > CHOICES:
            raise ValueError(f"prompts times n is {len(self.prompt) * self.n}; ask for at most {CHOICES} at once")
        return self


def parsed(raw: bytes, kind: type[B]) -> B:
    """The body of a request. Refusal 400 that names the field and the value seen."""
    try:
        said = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {short(error)}. Send a JSON object.") from error
    if not isinstance(said, dict):
        raise Refusal(400, f"the body is {_seen(said)}; send a JSON object")
    for name, neutral in NEUTRAL.items():
        value = said.get(name)
        if value is not None and not any(_same(value, one) for one in neutral):
            raise Refusal(
                400, f"{name} is not supported here (seen: {_seen(value)}); leave it out", param=name,
                code="unsupported_parameter",
            )  # fmt: skip
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise _refusal(error) from error


def _same(value: Any, other: Any) -> bool:
    """Whether JSON says the same; to Python, true is 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _refusal(error: ValidationError) -> Refusal:
    """The first fault: where, what, and the value seen."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return Refusal(400, f"{place}: this field is missing", param=place)
    if place and not (isinstance(first["input"], dict) and first["type"] == "value_error"):
        return Refusal(400, f"{place}: {what} (seen: {_seen(first['input'])})", param=place)
    return Refusal(400, f"{place}: {what}" if place else what, param=place or what.split()[0])


def _seen(value: Any) -> str:
    return short(repr(value), length=80)
