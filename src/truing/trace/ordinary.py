"""Ordinary effects: what one word of a prompt changes, and nothing to do with alignment. They ship as data.

Units that carry these carry any decision. Those of a claim are set beside them: what an effect's own units mediate must
be more than what as many units of other effects do.
"""

from __future__ import annotations

from functools import cache
from typing import Self

from pydantic import Field, model_validator

from truing.records import Case, Decision, Message, Surface, Value
from truing.records.content import fill, folder, read
from truing.stats import MIN_CLUSTERS

SCHEMA, FILE = "effects/1", "effects.yaml"
CELLS = ("word=first", "word=second")


class Ordinary(Value):
    """One of them: a prompt with a place for a word and for a thing, and the reply that either word makes likely."""

    name: str
    says: str
    words: tuple[str, str]
    replies: tuple[str, str]
    things: tuple[str, ...] = Field(min_length=MIN_CLUSTERS)
    """Each is a plot."""

    def surfaces(self) -> tuple[Surface, ...]:
        """A surface of each thing, in two cells."""
        first, second = self.replies
        decision = Decision(actions=(first,), alternatives=(second,))
        return tuple(
            Surface(
                plot=thing, name=f"{self.name}, {thing}", half="develop", decision=decision, cases=self._cases(thing)
            )
            for thing in self.things
        )

    def _cases(self, thing: str) -> tuple[Case, ...]:
        said = [fill(self.says, {"word": word, "thing": thing}, where=FILE) for word in self.words]
        return tuple(
            Case(cell=cell, messages=(Message(role="user", content=text),), segments=(("request", text),))
            for cell, text in zip(CELLS, said, strict=True)
        )


class _Content(Value):
    effects: tuple[Ordinary, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [one.name for one in self.effects]
        if len(set(names)) < len(names):
            raise ValueError(f"two effects of one name among {names}")
        return self


@cache
def ordinary() -> tuple[Ordinary, ...]:
    """Those that ship."""
    return read(folder("truing.trace", FILE), _Content, schema=SCHEMA).effects
