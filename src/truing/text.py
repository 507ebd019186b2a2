"""Text from outside, fit for a terminal: it may not steer it, nor pass for a line of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)


def one_line(text: str) -> str:
    """Text on one line: line ends become spaces; controls, direction marks and other unseen signs become U+FFFD."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.splitlines()))


def short(error: object, *, length: int = 240) -> str:
    """A message on one line, cut to a length."""
    text = one_line(" ".join(str(error).split()))
    return text if len(text) <= length else text[:length] + "..."


def begun(text: str, marks: Iterable[str]) -> int:
    """How many last letters of a text may be the beginning of one of the marks."""
    return max(
        (size for mark in marks for size in range(1, min(len(mark), len(text)) + 1) if text.endswith(mark[:size])),
        default=0,
    )


def sentence(text: str) -> str:
    """The first sentence of a text; "" where none ends in it."""
    found = _SENTENCE.match(text)
    return found[0].strip() if found else ""


def escaped(json: str) -> str:
    """JSON of the same value, on the same lines, with unseen signs escaped."""
    return "\n".join(line if line.isprintable() else "".join(map(_escape, line)) for line in json.split("\n"))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
