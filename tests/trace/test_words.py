"""Which words of a prompt add to a reply: the tiny model copies, so that what is said is what stands there."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from truing.errors import UsageError
from truing.records import Message
from truing.targets.local import LocalTarget
from truing.trace import between
from truing.trace.auto import AutoEngine
from truing.trace.words import by_word

COLOURS = ("red", "blue")


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_the_word_that_is_copied_adds_to_what_is_said(tiny: LocalTarget) -> None:
    """And takes away where the decision is against it; all other words add about the same either way."""
    red, blue = (by_word(tiny, asked(f"The box is {word} and the door is shut."), " red", " blue") for word in COLOURS)
    assert set(red) == {"the", "box", "is", "red", "and", "door", "shut"}
    assert red["red"] > 0 > blue["blue"]
    others = [abs(red[word] - blue[word]) for word in set(red) & set(blue)]
    assert max(others) < 0.5 * (red["red"] - blue["blue"])


def test_words_add_what_their_tokens_add(tiny: LocalTarget) -> None:
    """By the other engine, token by token; of a word that stands there twice, the larger."""
    messages, said = asked("red red door"), COLOURS
    context = between(tiny, messages, said[:1], said[1:])
    tokens, _ = AutoEngine(tiny.model, context.functional).by_all_paths([])
    text = tiny.prompt_text(messages)
    start = text.index("red red door")
    parts = {0: 0.0, 4: 0.0, 8: 0.0}
    for value, (_, (a, b)) in zip(tokens.embeddings_BT[0].tolist(), tiny.offsets(text), strict=False):
        for at, word in ((0, "red"), (4, "red"), (8, "door")):
            if a < start + at + len(word) and b > start + at:
                parts[at] += value
    found = by_word(tiny, messages, *said)
    assert found["red"] == pytest.approx(max(parts[0], parts[4]), abs=1e-5)
    assert found["door"] == pytest.approx(parts[8], abs=1e-5)
    assert parts[0] != pytest.approx(parts[4], abs=1e-3)


def test_what_cannot_be_decided_is_refused(tiny: LocalTarget) -> None:
    with pytest.raises(UsageError, match="nothing to decide"):
        by_word(tiny, asked("red door"), "red", "red")
