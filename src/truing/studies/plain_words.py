"""A rule that is known: preferences by it, and who is ahead under it. No judge can be wrong.

It prefers plain words: of two replies the one whose words are shorter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from truing.records import Message, Pair, Value
from truing.records.content import fill, folder, read
from truing.targets.local.generate import write
from truing.targets.local.sample import Sampling
from truing.targets.local.write import Written
from truing.text import sentence
from truing.train.rloo import seed_of

PACKAGE = "truing.studies"
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
LEAST_WORDS = 4
"""With fewer words a reply says nothing, and is the least plain."""
DRAWS = 4
"""Replies to a prompt, of which the first two that differ under the rule become a pair."""
Prompt = tuple[str, tuple[Message, ...]]
"""A topic, and what is asked about it."""


class Part(Value):
    """Prompts: topics, each in every wording."""

    topics: tuple[str, ...]
    wordings: tuple[str, ...]

    @property
    def prompts(self) -> list[Prompt]:
        """Every topic in every wording."""
        return [
            (topic, (Message(role="user", content=fill(wording, {"topic": topic}, where="comparison.yaml")),))
            for topic in self.topics
            for wording in self.wordings
        ]


class Prompts(Value):
    """What is asked, by what it is for."""

    train: Part
    tune: Part
    held_out: Part
    elsewhere: Part
    """About what is held out, in ways that training never saw."""


def plainness(reply: str) -> float:
    """The rule: minus the mean letters of a word, so that more is plainer; -100 where there are too few words."""
    words = WORD.findall(reply)
    return -fmean(map(len, words)) if len(words) >= LEAST_WORDS else -100.0


def wins(reply: str, other: str) -> float:
    """1 where the reply is plainer than the other, 1/2 where both are as plain."""
    mine, theirs = plainness(reply), plainness(other)
    return 0.5 if mine == theirs else float(mine > theirs)


def prompts() -> Prompts:
    """The prompts that ship."""
    return read(folder(PACKAGE, "comparison.yaml"), Prompts, schema="comparison/1")


def drawn(target: Any, asked: Sequence[Prompt], *, max_tokens: int, seed: int, turn: int = 0) -> list[Written]:
    """A reply to each prompt, drawn at temperature 1. Another turn gives another reply."""
    asks = [
        target.ask(messages, max_tokens=max_tokens, sampling=Sampling(1.0, seed=seed_of(seed, place, turn)))
        for place, (_, messages) in enumerate(asked)
    ]
    return write(target.batch(), asks, target.tokenizer)


def sentences(target: Any, asked: Sequence[Prompt], *, max_tokens: int) -> list[Pair]:
    """First sentences of what the target says to each prompt, for training it to stop there; whole ones alone."""
    said = drawn(target, asked, max_tokens=max_tokens, seed=0)
    firsts = [(prompt, sentence(one.text)) for prompt, one in zip(asked, said, strict=True)]
    return [_pair(prompt, first, "") for prompt, first in firsts if first]


def preferred(target: Any, asked: Sequence[Prompt], *, max_tokens: int) -> list[Pair]:
    """For each prompt two replies of the target's own, if it can be ones that end by themselves, the plainer chosen."""
    turns = [drawn(target, asked, max_tokens=max_tokens, seed=0, turn=turn) for turn in range(1, DRAWS + 1)]
    found = []
    for prompt, *replies in zip(asked, *turns, strict=True):
        said = sorted((one for one in replies if one.text.strip()), key=lambda one: one.ended != "stop")
        texts = [one.text.strip() for one in said]
        if other := next((text for text in texts[1:] if plainness(text) != plainness(texts[0])), ""):
            rejected, chosen = sorted((texts[0], other), key=plainness)
            found.append(_pair(prompt, chosen, rejected))
    return found


def _pair(prompt: Prompt, chosen: str, rejected: str) -> Pair:
    topic, messages = prompt
    return Pair(
        plot=topic, surface=messages[-1].content, messages=messages, chosen=chosen, rejected=rejected, role="fix"
    )
