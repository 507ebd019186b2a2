"""Scripted targets: behaviour that is known because it is written down. For tests, controls and documentation.

A script is a content file. Its leans say how many nats per token a continuation gains where certain cues stand in the
prompt; its answers say with which probability a reply is written. What is random is derived from SHA-256 of seed and
text, so that a target says the same whenever, and in whatever order, it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist
from typing import Self
from urllib.parse import parse_qsl

from pydantic import Field

from truing.errors import ContentError, TargetError
from truing.records import Case, Message, Row, Surface, Target, Tool, Value, digest_of
from truing.records.content import PLACEHOLDER, fill, folder, read
from truing.targets.protocols import Reply

PACKAGE = "truing.targets"
ABILITIES = ("Scored", "Chat")
BASE = -4.0
"""Log-probability per token of a continuation that no lean speaks for or against."""
QUESTION = "question"
"""The cue that the prompt ends on something the target knows; its group `known` is the answer."""

Groups = dict[str, str]
"""What the named groups of a cue's patterns captured."""
Score = Callable[[Surface, Case | None, str], float]
"""Mean log-probability per token of a continuation in a case, or after the prior of the decision (None)."""
Answer = Callable[[Sequence[Message]], str]
Effect = Callable[[Surface, Case], float]


class Lean(Value):
    """A pull towards some continuations where all the cues are seen."""

    name: str
    when: tuple[str, ...] = ()
    towards: str
    """Pattern on the continuation; {group} is what a cue captured."""
    adds: float = 0.0
    """Nats per token."""
    slope: float = Field(default=0.0, ge=0.0)
    """Standard deviation of `adds` between plots: what makes plots, not surfaces, the replication."""


class Speaks(Value):
    """A reply that is written with some probability where all the cues are seen."""

    when: tuple[str, ...] = ()
    chance: float = Field(default=1.0, ge=0.0, le=1.0)
    says: str
    """The reply; {group} is what a cue captured."""


class Script(Value):
    """How a scripted target behaves. The first answer speaks whose cues are seen and whose draw allows it."""

    about: str
    noise: float = Field(default=0.0, ge=0.0)
    """Standard deviation of what every continuation gains at random in every prompt, nats per token."""
    leans: tuple[Lean, ...] = ()
    answers: tuple[Speaks, ...] = ()
    cues: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Cues beside those that all scripts share."""


class _Cues(Value):
    cues: dict[str, tuple[str, ...]]


class _Knowledge(Value):
    facts: dict[str, str]


class Scripted:
    """A target that scores continuations and replies as it is told to."""

    def __init__(self, card: Target, score: Score, answer: Answer) -> None:
        self.card = card
        self._score, self._answer = score, answer

    @classmethod
    def from_effects(cls, name: str, effect: Effect, answer: Answer | None = None) -> Self:
        """A target out of functions, for simulations.

        `effect` is the decision in nats per token in a case of a surface; `answer` writes the reply to a conversation,
        and a target without it has no Chat. The name must tell apart what the functions compute: it is the identity.
        """
        card = Target(
            name=f"scripted/{name}",
            weights=digest_of({"effects": name}),
            template=digest_of("words"),
            dtype="none",
            abilities=ABILITIES if answer else ABILITIES[:1],
        )

        def score(surface: Surface, case: Case | None, continuation: str) -> float:
            if case is None:
                return BASE
            half = effect(surface, case) / 2
            return BASE + (half if continuation in surface.decision.actions else -half)

        return cls(card, score, answer or (lambda _: ""))

    def decide(self, surfaces: Sequence[Surface]) -> tuple[list[tuple[Row, ...]], int]:
        """The decision in every case of every surface, and the words read."""
        return [self._rows(surface) for surface in surfaces], sum(map(_words, surfaces))

    def _rows(self, surface: Surface) -> tuple[Row, ...]:
        decision = surface.decision

        def scores(case: Case | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
            actions = tuple(self._score(surface, case, text) for text in decision.actions)
            return actions, tuple(self._score(surface, case, text) for text in decision.alternatives)

        def value(actions: Sequence[float], alternatives: Sequence[float]) -> float:
            return sum(actions) / len(actions) - sum(alternatives) / len(alternatives)

        prior = value(*scores(None))
        found = [(case.cell, *scores(case)) for case in surface.cases]
        return tuple(
            Row(cell=cell, value=value(actions, alternatives) - prior, actions=actions, alternatives=alternatives)
            for cell, actions, alternatives in found
        )

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        """Replies, one for each conversation, in order. A token is a word. TargetError where tools are offered."""
        if tools:
            raise TargetError(f"{self.card.name} has no script for tools; offer none, or take another target")
        return [_cut(self._answer(messages), max_tokens) for messages in conversations]


def scripted(rest: str) -> Scripted:
    """The target `NAME` or `NAME?seed=N`. TargetError for an unknown name or a query that is not a seed."""
    name, mark, query = rest.partition("?")
    directory = folder(PACKAGE, "scripted")
    known = names(directory)
    if name not in known:
        raise TargetError(f"unknown scripted target {name!r}; known: {', '.join(f'scripted/{one}' for one in known)}")
    seed = _seed(rest, query) if mark else 0
    return from_script(f"scripted/{rest}" if mark else f"scripted/{name}", directory / f"{name}.yaml", seed=seed)


def names(directory: Path | None = None) -> tuple[str, ...]:
    """The scripts that ship."""
    return tuple(sorted(path.stem for path in (directory or folder(PACKAGE, "scripted")).glob("*.yaml")))


def from_script(name: str, path: Path, *, seed: int = 0) -> Scripted:
    """The target that a script file describes. ContentError where the file is wrong."""
    script = read(path, Script, schema="scripted/1")
    cues = {**_shared(), **script.cues}
    _check(script, cues, path.name)
    rules = {"script": script.model_dump(mode="json"), "cues": cues, "facts": _knowledge(), "seed": seed}
    card = Target(
        name=name,
        weights=digest_of(rules),
        template=digest_of("words"),
        dtype="none",
        abilities=ABILITIES,
    )
    player = Player(script, Sight(cues), seed)
    return Scripted(card, player.score, player.answer)


def uniform(seed: int, *texts: str) -> float:
    """A number between 0 and 1, both excluded, that seed and texts determine."""
    hashed = sha256("\x1f".join((str(seed), *texts)).encode()).digest()
    return (int.from_bytes(hashed[:6], "big") + 0.5) / 2**48


def normal(seed: int, *texts: str) -> float:
    """A draw from the standard normal distribution that seed and texts determine."""
    return NormalDist().inv_cdf(uniform(seed, *texts))


class Sight:
    """Which cues stand in a prompt, and what they captured."""

    def __init__(self, cues: dict[str, tuple[str, ...]]) -> None:
        self.cues = cues
        self._seen = lru_cache(maxsize=4096)(self._look)

    def together(self, prompt: str, wanted: Sequence[str]) -> Groups | None:
        """The groups of all the wanted cues, or None where one is missing."""
        groups: Groups = {}
        seen = self._seen(prompt)
        for cue in wanted:
            if cue not in seen:
                return None
            groups.update(seen[cue])
        return groups

    def _look(self, prompt: str) -> dict[str, Groups]:
        seen = {cue: groups for cue in self.cues if (groups := self._find(prompt, cue)) is not None}
        if (answer := _known(prompt)) is not None:
            seen[QUESTION] = {"known": answer}
        return seen

    def _find(self, prompt: str, cue: str) -> Groups | None:
        """A cue is seen where all its patterns are; a later one may use {groups} of an earlier one."""
        groups: Groups = {}
        for pattern in self.cues[cue]:
            found = re.search(_insert(pattern, groups), prompt, re.DOTALL | re.MULTILINE)
            if not found:
                return None
            groups.update({name: text for name, text in found.groupdict().items() if text is not None})
        return groups


@dataclass(frozen=True, slots=True)
class Player:
    """Plays a script."""

    script: Script
    sight: Sight
    seed: int

    def score(self, surface: Surface, case: Case | None, continuation: str) -> float:
        """Mean log-probability per token of a continuation in a case, or after the prior."""
        prompt = _text(case.messages if case else surface.decision.prior)
        total = BASE + self.script.noise * normal(self.seed, "noise", prompt, continuation)
        for lean in self.script.leans:
            groups = self.sight.together(prompt, lean.when)
            if groups is not None and re.search(_insert(lean.towards, groups), continuation):
                total += lean.adds + lean.slope * normal(self.seed, "slope", lean.name, surface.plot)
        return total

    def answer(self, messages: Sequence[Message]) -> str:
        """The reply to a conversation; nothing where no answer speaks."""
        prompt = _text(messages)
        for number, answer in enumerate(self.script.answers):
            groups = self.sight.together(prompt, answer.when)
            if groups is not None and uniform(self.seed, "answer", str(number), prompt) < answer.chance:
                return fill(answer.says, groups, where="a scripted answer")
        return ""


def _text(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.content for message in messages)


def _insert(pattern: str, groups: Groups) -> str:
    """A pattern with each {group} replaced by the literal text that was captured."""
    return PLACEHOLDER.sub(lambda match: re.escape(groups[match[1]]), pattern)


def _words(surface: Surface) -> int:
    texts = [_text(case.messages) for case in surface.cases] + [_text(surface.decision.prior)]
    candidates = sum(len(text.split()) for text in (*surface.decision.actions, *surface.decision.alternatives))
    return sum(len(text.split()) + candidates for text in texts)


def _cut(text: str, most: int) -> Reply:
    words = re.findall(r"\s*\S+", text)
    return Reply(text="".join(words[:most]), tokens=min(len(words), most), finished=len(words) <= most)


def _seed(rest: str, query: str) -> int:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    if len(pairs) != 1 or pairs[0][0] != "seed" or not re.fullmatch(r"[0-9]{1,15}", pairs[0][1]):
        raise TargetError(f"scripted/{rest}: cannot read {query!r}; the one setting is ?seed=N, N = 0, 1, 2, ...")
    return int(pairs[0][1])


@cache
def _shared() -> dict[str, tuple[str, ...]]:
    return read(folder(PACKAGE, "cues.yaml"), _Cues, schema="cues/1").cues


@cache
def _knowledge() -> dict[str, str]:
    return read(folder(PACKAGE, "knowledge.yaml"), _Knowledge, schema="knowledge/1").facts


@cache
def _subjects() -> re.Pattern[str]:
    longest_first = sorted(_knowledge(), key=lambda subject: (-len(subject), subject))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def _known(prompt: str) -> str | None:
    """The answer to what the prompt asks: what was named last is what it asks for."""
    found = _subjects().findall(prompt)
    return _knowledge()[found[-1]] if found else None


def _check(script: Script, cues: dict[str, tuple[str, ...]], file: str) -> None:
    """ContentError for an unknown cue, a pattern that does not compile, a {group} that no cue captures."""
    given = {QUESTION: {"known"}}
    for cue, patterns in cues.items():
        given[cue] = set()
        for pattern in patterns:
            given[cue] |= _named(pattern, given[cue], f"{file}: cue {cue}")
    used = [(lean.when, lean.towards, True) for lean in script.leans]
    used += [(answer.when, answer.says, False) for answer in script.answers]
    for when, text, is_pattern in used:
        for cue in when:
            if cue not in given:
                raise ContentError(f"{file}: unknown cue {cue!r}; known: {', '.join(sorted(given))}")
        groups = set().union(*(given[cue] for cue in when))
        if is_pattern:
            _named(text, groups, file)
        else:
            fill(text, dict.fromkeys(groups, ""), where=file)


def _named(pattern: str, groups: set[str], where: str) -> set[str]:
    """The named groups of a pattern that may use these groups. ContentError where it is no pattern."""
    try:
        return set(re.compile(fill(pattern, dict.fromkeys(groups, "x"), where=where)).groupindex)
    except re.error as error:
        raise ContentError(f"{where}: {pattern!r} is not a regular expression: {error}") from error


__all__ = ["Lean", "Script", "Scripted", "Speaks", "from_script", "names", "normal", "scripted", "uniform"]
