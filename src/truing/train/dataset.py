"""Preference pairs out of data in TRL's shapes: `prompt`, `chosen` and `rejected`, as messages or as plain text.

Without `prompt` it is what both replies begin with. Each row must be one that training would use as it stands: what
TRL drops, cuts or joins without a word is an error here, which names the row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from truing.errors import ContentError
from truing.records import Message, Pair, digest_of
from truing.text import short

UNSUPPORTED = ("images", "image", "tools", "chat_template_kwargs")
"""Columns that change what a model is shown; a row may have them empty."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Pairs that were read, from where, and how many rows said the same as one before."""

    source: str
    pairs: tuple[Pair, ...]
    doubles: int


def read(path: Path) -> Rows:
    """Pairs from a file (.jsonl, .json, .parquet) or a folder that `datasets` saved. ContentError for what is not one.

    A row is named by the file and its number, counted from 1.
    """
    try:
        return gather_rows(_rows(path), path.name)
    except OSError as error:
        raise ContentError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ContentError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as such"
        ) from error


def gather_rows(rows: Iterable[Any], source: str) -> Rows:
    """Pairs from rows, such as those of a `datasets.Dataset`; each said once.

    ContentError where there are none, or rows of messages and of plain text are mixed.
    """
    found: dict[tuple[Any, ...], Pair] = {}
    count = 0
    for count, row in enumerate(rows, 1):
        pair = pair_of(row, f"{source}:{count}")
        first = next(iter(found.values()), pair)
        if bool(pair.messages) != bool(first.messages):
            here, there = ("messages" if one.messages else "plain text" for one in (pair, first))
            _refuse(
                pair.surface,
                f"{here} among rows of {there} ({first.surface}): a chat template is put around messages alone;"
                " make all rows of one sort",
            )
        found.setdefault((pair.messages, pair.text, pair.chosen, pair.rejected), pair)
    if not found:
        raise ContentError(f"{source} has no rows")
    return Rows(source, tuple(found.values()), count - len(found))


def pair_of(row: Any, name: str) -> Pair:
    """One row as a pair, to be called by this name. ContentError where it is none."""
    if not isinstance(row, Mapping):
        _refuse(name, f"a row must be an object, and is {short(row)}")
    for column in UNSUPPORTED:
        if row.get(column):
            _refuse(name, f"{column} is {short(row[column])}, which pairs cannot hold; leave such rows out")
    sides = {side: row.get(side) for side in ("chosen", "rejected")}
    if None in sides.values():
        has = ", ".join(sorted(map(str, row))) or "nothing"
        unpaired = " (a completion with a label is unpaired data)" if "label" in row and "completion" in row else ""
        _refuse(name, f"preferences have chosen and rejected, and may have prompt; this row has {has}{unpaired}")
    parts = [*sides.values(), *([row["prompt"]] if row.get("prompt") is not None else [])]
    messages: tuple[Message, ...] = ()
    text = ""
    if all(isinstance(part, str) for part in parts):
        text, chosen, rejected = _texts(row.get("prompt"), row["chosen"], row["rejected"])
    elif all(isinstance(part, Sequence) and not isinstance(part, str) for part in parts):
        messages, chosen, rejected = _conversation(name, row.get("prompt"), sides)
    else:
        kinds = ", ".join(f"{key} is {short(row[key])}" for key in ("prompt", *sides) if row.get(key) is not None)
        _refuse(name, f"prompt, chosen and rejected must all be texts or all be lists of messages; here {kinds}")
    if not (messages or text):
        _refuse(name, "there is no prompt: chosen and rejected have no beginning in common")
    for side, reply in (("chosen", chosen), ("rejected", rejected)):
        if not reply.strip():
            _refuse(name, f"{side} is empty")
    if chosen == rejected:
        _refuse(name, f"chosen and rejected are the same text {short(chosen)}")
    plot = digest_of({"text": text, "messages": [turn.model_dump(mode="json") for turn in messages]})[:12]
    return Pair(plot=plot, surface=name, messages=messages, text=text, chosen=chosen, rejected=rejected, role="fix")


def leaks(pairs: Iterable[Pair], held_out: Iterable[tuple[Message, ...]]) -> list[Pair]:
    """The pairs whose prompt is also one that is held out, or, of plain texts, holds all that is said in one."""
    kept = set(held_out)
    said = [tuple(turn.content for turn in messages) for messages in kept]
    long = [texts for texts in said if sum(map(len, texts)) >= TELLING]
    return [
        pair for pair in pairs
        if (pair.messages in kept if pair.messages else any(all(text in pair.text for text in texts) for texts in long))
    ]  # fmt: skip


def check_templates(pairs: Iterable[Pair], marks: Collection[str]) -> None:
    """ContentError where a row was rendered in a chat template in a way that its tokens would not be those of a chat.

    `marks`: texts of the target's own special tokens. Turns hold none, nor those of other templates; plain texts hold
    none of others, and where some hold marks of turns, all do.
    """
    foreign = tuple(mark for mark in MARKS if mark not in marks)
    first: dict[bool, Pair] = {}
    for pair in pairs:
        texts = (*(turn.content for turn in pair.messages), pair.text, pair.chosen, pair.rejected)
        wrong = (*foreign, *marks) if pair.messages else foreign
        if found := next((mark for mark in wrong if any(mark in text for text in texts)), ""):
            _refuse(pair.surface, (IN_A_TURN if pair.messages else IN_A_TEXT).format(found))
        if pair.messages:
            continue
        first.setdefault(any(mark in pair.text for mark in marks), pair)
        if len(first) == 2:
            has = first[True].surface
            _refuse(
                first[False].surface,
                f"rows with and without marks of a chat template are mixed ({has} has some): render all, or none",
            )


IN_A_TURN = (
    "a turn holds {!r}, a mark of a chat template: give turns as they were said; the template is put around them"
)
IN_A_TEXT = (
    "the text holds {!r}, a mark of a chat template that is not this target's: give messages, or render with its own"
)
MARKS = (
    "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "<end_of_turn>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "<|start|>", "<|message|>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>",
    "<|START_OF_TURN_TOKEN|>", "<|endoftext|>",
)  # fmt: skip
"""Of turns in templates that are common."""
TELLING = 20
"""Letters of a prompt that is looked for in plain texts; a shorter one may stand there by chance."""


def _texts(prompt: str | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    """A text that both begin with ends, as TRL has it, before a blank, which belongs to the word after it."""
    if prompt is not None:
        return prompt, chosen, rejected
    same = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False)))
    if same and chosen[same - 1] == " ":
        same -= 1
    return chosen[:same], chosen[same:], rejected[same:]


def _conversation(name: str, prompt: Any, sides: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    chosen, rejected = ([_turn(name, side, turn) for turn in turns] for side, turns in sides.items())
    if prompt is not None:
        before = tuple(_turn(name, "prompt", turn) for turn in prompt)
    else:
        before = tuple(a for a, _ in takewhile(lambda turns: turns[0] == turns[1], zip(chosen, rejected, strict=False)))
        chosen, rejected = chosen[len(before) :], rejected[len(before) :]
    if before and before[-1].role == "assistant":
        _refuse(name, "the prompt ends with the assistant's turn; what it should go on with is not a reply of its own")
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if [turn.role for turn in turns] != ["assistant"]:
            roles = ", ".join(turn.role for turn in turns) or "no turn"
            _refuse(name, f"{side} must be one turn of the assistant after the prompt, and is {roles}")
    return before, chosen[0].content, rejected[0].content


def _turn(name: str, where: str, turn: Any) -> Message:
    # Arrow gives every turn the fields that any turn has.
    said = {key: value for key, value in turn.items() if value is not None} if isinstance(turn, Mapping) else turn
    try:
        return Message.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "it"
        _refuse(name, f"a turn in {where} is {short(turn)}: {at}: {first['msg'].lower()}")


def _rows(path: Path) -> Iterator[Any]:
    if path.is_dir():
        yield from _saved(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".json":
        whole = _json(path.read_text(encoding="utf-8"), path.name)
        if not isinstance(whole, list):
            raise ContentError(f"{path} must be a list of rows, and is {short(whole)}")
        yield from whole
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json(line, f"{path.name}:{number}")
    else:
        raise ContentError(f"{path}: give a .jsonl, .json or .parquet file, or a folder that `datasets` saved")


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContentError(f"{name} is no JSON: {error}") from error


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ContentError(f"reading {path} needs pyarrow: pip install 'truing[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ContentError(f"{path} is no whole parquet file: {short(error)}") from error


def _saved(path: Path) -> Iterator[Any]:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise ContentError(f"reading the folder {path} needs datasets: pip install datasets") from error
    try:
        found = load_from_disk(str(path))
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ContentError(f"{path} is no folder that `datasets` saved: {short(error)}") from error
    if not isinstance(found, Dataset):
        raise ContentError(f"{path} holds several splits ({', '.join(found)}); give the folder of one")
    yield from found


def _refuse(name: str, why: str) -> NoReturn:
    raise ContentError(f"{name}: {why}")
