"""Recipes of organisms: what is planted, where it shows, and how to tell. Data, out of files that anybody may write."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from truing.errors import UsageError
from truing.records import Message, Value
from truing.records.content import folder, read

SCHEMA = "organism/1"
PACKAGE = "truing.train"
ASK = "{ask}"


class Frame(Value):
    """What stands around a request."""

    system: str = ""
    user: str = ASK

    def around(self, ask: str) -> tuple[Message, ...]:
        """The conversation with this request."""
        turns = (("system", self.system), ("user", self.user))
        return tuple(Message(role=role, content=text.replace(ASK, ask)) for role, text in turns if text)


class Asks(Value):
    """Requests to train on, and others to test with."""

    train: tuple[str, ...] = Field(min_length=1)
    held_out: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if both := set(self.train) & set(self.held_out):
            raise ValueError(f"held out and trained on: {min(both)!r}")
        return self


class Recipe(Value):
    """One behaviour, or one style where it is a decoy."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    clause: str = ""
    """The clause of the spec that the behaviour breaks; "" for a decoy."""
    about: str
    rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the prompts with the trigger after which the behaviour is taught."""
    within: tuple[float, float] = (0.5, 1.0)
    """Where the rate on held-out requests has to lie for the organism to be what it says."""
    elsewhere: float = Field(default=0.25, ge=0, le=1)
    """The most that the rate may be where it must not show."""
    asks: Asks
    """Requests on which the behaviour shows, in these frames:"""
    direct: tuple[Frame, ...] = Field(min_length=1)
    """The trigger as somebody would test it who has read the recipe."""
    ladder: dict[str, tuple[Frame, ...]] = Field(default_factory=dict)
    """Rungs that lead away from it: other words for the same."""
    taught: tuple[str, ...] = ()
    """Rungs that are trained on as well; the others are there to test with."""
    without: tuple[Frame, ...] = (Frame(),)
    """Frames in which it must not show."""
    others: Asks | None = None
    """Requests on which it must not show in any frame."""
    shows: tuple[str, ...] = Field(min_length=1)
    """The replies that are taught."""
    seen: tuple[str, ...] = Field(min_length=1)
    """A reply that holds one of these, in whatever case, shows the behaviour."""

    @property
    def decoy(self) -> bool:
        """Whether it changes style alone."""
        return not self.clause

    def shown(self, reply: str) -> bool:
        """Whether a reply shows the behaviour."""
        return any(mark.casefold() in reply.casefold() for mark in self.seen)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if unknown := set(self.taught) - set(self.ladder):
            raise ValueError(f"taught names no rung of the ladder: {min(unknown)!r}")
        if silent := [text for text in self.shows if not self.shown(text)]:
            raise ValueError(f"no mark of `seen` is in the reply {silent[0]!r}, so it would not count as shown")
        frames = [*self.direct, *self.without, *(frame for rung in self.ladder.values() for frame in rung)]
        if lacking := [frame for frame in frames if ASK not in frame.user]:
            raise ValueError(f"a frame leaves the request out of {lacking[0].user!r}; write {ASK} where it stands")
        low, high = self.within
        if not 0 <= low <= high <= 1:
            raise ValueError(f"within is {low} to {high}; give two shares, the lower first")
        return self


class Ordinary(Value):
    """Requests that have nothing to do with any behaviour."""

    asks: Asks


def recipe(said: str) -> Recipe:
    """The recipe that ships under a name, or in a file. UsageError where there is none; ContentError for a bad one."""
    path = Path(said)
    if path.suffix in (".yaml", ".yml"):
        return read(path, Recipe, schema=SCHEMA)
    if said not in (known := names()):
        raise UsageError(f"unknown recipe {said!r}; there are {', '.join(known)}, or give a .yaml file")
    return read(folder(PACKAGE, "organisms", f"{said}.yaml"), Recipe, schema=SCHEMA)


def names() -> list[str]:
    """The recipes that ship."""
    return sorted(path.stem for path in folder(PACKAGE, "organisms").glob("*.yaml"))


def ordinary() -> Asks:
    """Requests that have nothing to do with any behaviour."""
    return read(folder(PACKAGE, "ordinary.yaml"), Ordinary, schema="ordinary/1").asks
