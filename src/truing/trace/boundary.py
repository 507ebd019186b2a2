"""Replies as tokens: each begins where its prompt ends, and no two are the same."""

from __future__ import annotations

from collections.abc import Sequence

from truing.errors import UsageError
from truing.targets.local import LocalTarget


def check_boundary(target: LocalTarget, prompt: str, text: str) -> None:
    """UsageError where a reply joins with the end of a prompt, as it is rendered, into other tokens."""
    before, own = target.encoded(prompt), target.text_ids(text)
    if (joined := target.encoded(prompt + text)) != [*before, *own]:
        at = next((i for i, (a, b) in enumerate(zip(joined, [*before, *own], strict=False)) if a != b), len(before))
        seen = target.tokenizer.decode(joined[at : at + 1])
        raise UsageError(
            f"{text!r} does not begin where the prompt ends: together they have the token {seen!r} there, which is"
            " made of both. Move the beginning of the text to the prompt, or begin it with a space or a new word."
        )


def check_apart(target: LocalTarget, actions: Sequence[str], alternatives: Sequence[str]) -> None:
    """UsageError where two replies are the same tokens, on two sides of a decision or on one.

    On two sides there is nothing to decide between them, on one it would count twice. Texts that differ can be the same
    tokens, where a tokenizer drops blanks or the case of letters.
    """
    seen: dict[tuple[int, ...], tuple[str, bool]] = {}
    for text, acts in (*((text, True) for text in actions), *((text, False) for text in alternatives)):
        ids = tuple(target.text_ids(text))
        if ids not in seen:
            seen[ids] = (text, acts)
            continue
        first, acted = seen[ids]
        if acts == acted:
            raise UsageError(f"{_both(first, text)} given twice on one side of the decision; give each reply once")
        raise UsageError(
            f"{_both(first, text)} both the action and its alternative; there is nothing to decide between them"
        )


def _both(first: str, text: str) -> str:
    return f"{text!r} is" if first == text else f"{first!r} and {text!r}, which are the same tokens, are"
