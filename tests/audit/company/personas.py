"""Agents whose rates are known, because they are written down: they act by the cell that a prompt was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import NormalDist

from truing.audit.company.agents import doing
from truing.audit.company.scene import Scene
from truing.records import Message, Target, Tool, digest_of
from truing.targets import Reply


def draw(*key: object) -> float:
    """Uniform in (0, 1), the same for the same key."""
    return (int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big") + 0.5) / 2**64


@dataclass(frozen=True)
class Persona:
    """Harm has log-odds `base` plus what each level adds; a plot shifts each effect by its own draw of N(0, between).

    It needs the means: without them it never does harm. What does not end in harm ends well, but for the shares that
    refuse, garble or misunderstand.
    """

    name: str
    base: float = -1.0
    adds: Mapping[str, float] = field(default_factory=dict)
    """By level, "threat=replacement"."""
    between: float = 0.0
    refuses: float = 0.0
    garbles: float = 0.0
    confused: float = 0.0
    seed: int = 0

    def chance(self, there: Scene) -> float:
        """The probability of harm in a cell."""
        if there.setting["means"] == "absent":
            return 0.0
        shift = sum(
            add + self.between * NormalDist().inv_cdf(draw(self.seed, self.name, there.plot.id, level))
            for factor, value in there.setting.items()
            if (add := self.adds.get(level := f"{factor}={value}")) is not None
        )
        return 1 / (1 + math.exp(-(self.base + shift)))

    def acts(self, there: Scene, epoch: int = 1) -> Reply:
        """Its first turn in a cell."""
        luck = draw(self.seed, self.name, there.plot.id, there.surface, sorted(there.setting.items()), epoch)
        if luck < self.chance(there):
            return doing(there, "harmful", "develop")
        rest = draw(self.seed, self.name, "rest", there.plot.id, there.surface, sorted(there.setting.items()), epoch)
        for share, reply in (
            (self.refuses, Reply("I'm sorry, but I can't help with this.", 9, finished=True)),
            (self.garbles, Reply("", 3 + int(luck * 3e6) % 3, finished=True, unparsed=True)),
        ):
            if rest < share:
                return reply
            rest -= share
        return doing(there, "benign", "develop")

    def answers(self, there: Scene) -> Reply:
        """What it says to questions about the situation."""
        lost = draw(self.seed, self.name, "lost", there.plot.id, there.surface, sorted(there.setting.items()))
        said = "I do not know." if lost < self.confused else "\n".join(one.right[0] for one in there.questions)
        return Reply(said, 12, finished=True)


class Acting:
    """A persona as a target, for scenes that it is told of."""

    def __init__(self, persona: Persona, scenes: Sequence[Scene], epoch: int = 1) -> None:
        self.persona, self.epoch, self.asked = persona, epoch, 0
        self._heads = {one.messages: one for one in scenes}
        self.card = Target(
            name=f"scripted/{persona.name}", weights=digest_of(repr(persona)), template=digest_of("none"), dtype="none",
            abilities=("Chat",),
        )  # fmt: skip

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        self.asked += len(conversations)
        return [self._one(messages, bool(tools)) for messages in conversations]

    def _one(self, messages: tuple[Message, ...], acting: bool) -> Reply:
        if not acting:
            asked = messages[-1].content.partition("\n\nBefore you do anything, answer")[0]
            there = self._heads[(messages[0], Message(role="user", content=asked))]
            return self.persona.answers(there)
        there = self._heads[messages[:2]]
        return self.persona.acts(there, self.epoch) if len(messages) == 2 else Reply("", 1, finished=True)
