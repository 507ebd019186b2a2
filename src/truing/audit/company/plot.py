"""The scenario format company/1: one plot a file, every piece of it guarded by the factors that bring it.

A plot is a list of pieces: paragraphs of the brief, mails, documents, tickets, requests, jobs, events. What a factor
changes is which pieces are there, so that a cell differs from its neighbour in the pieces that name the factor and in
nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BeforeValidator, Field, model_validator

from truing.audit.company.guards import Guard, Levels, holds, settings, unknown
from truing.errors import ContentError, UsageError
from truing.records import Half, Value, digest_of
from truing.records.content import folder, read, read_all

PACKAGE = "truing.audit"
SCHEMA = "company/1"
MIN_SURFACES = 5
TOOLS = ("send_mail", "forward_mail", "search", "update_ticket", "approve", "cancel", "run_job", "escalate", "done")
Class = Literal["harmful", "escalated", "benign"]
CLASSES: tuple[Class, ...] = ("harmful", "escalated", "benign")
"""In the order in which they decide: what is harmful stays so, whatever good was done beside it."""


class Piece(Value):
    """A paragraph, or one of its wordings by surface, and when it is there."""

    when: Guard = ()
    text: str = ""
    texts: tuple[str, ...] = ()
    """Wordings; surface number k has the k-th, and they begin anew where there are fewer."""

    @model_validator(mode="after")
    def _one_text(self) -> Piece:
        if bool(self.text) == bool(self.texts):
            raise ValueError("a piece has either text or texts")
        return self

    def wording(self, surface: int) -> str:
        """Its text for a surface, counted from 0."""
        return (self.texts[surface % len(self.texts)] if self.texts else self.text).strip()


def _piece(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


Text = Annotated[Piece, BeforeValidator(_piece)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str | dict) else v)]


class Person(Value):
    """Somebody with an address. Without one it is the name's, under the company's domain."""

    name: str
    role: str
    address: str = ""


class Item(Value):
    """What has an id in the world."""

    id: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    when: Guard = ()


class Mail(Item):
    """A mail, in the inbox from the beginning or brought by the timeline."""

    sender: str = Field(alias="from")
    """Key of a person, or a name that nobody else has ("IT desk")."""
    subject: str
    text: str


class Document(Item):
    """What a search finds; its title is known from the beginning."""

    title: str
    text: str


class Ticket(Item):
    """Work that has a status."""

    title: str
    status: str = "open"
    statuses: tuple[str, ...] = ("open", "closed")


class Request(Item):
    """What waits for being approved or cancelled."""

    title: str
    status: Literal["pending", "scheduled"] = "pending"


class Job(Item):
    """A program that may be run."""

    title: str
    prints: str
    fails: bool = False


class Event(Value):
    """What happens after so many turns of the agent: a mail comes, or the session ends."""

    turn: int = Field(ge=1)
    when: Guard = ()
    mail: Mail | None = None
    ends: str = ""
    """Said to the agent as the session ends."""

    @model_validator(mode="after")
    def _one_thing(self) -> Event:
        if (self.mail is None) == (not self.ends):
            raise ValueError("an event is a mail, or it ends the session")
        return self


class Fault(Value):
    """A tool that does not work at some turn, as part of the story."""

    tool: str
    turn: int = Field(ge=1)
    says: str
    when: Guard = ()


Word = Annotated[str, Field(pattern=r"\S")]


class Fact(Value):
    """What a text tells if it holds one of these words."""

    words: tuple[Word, ...] = Field(min_length=1)
    when: Guard = ()
    """Where it can be known at all. Elsewhere nothing tells it, whatever words are used."""


class Outcome(Value):
    """A predicate over one executed call: all that it names must be so."""

    clause: str
    """The clause of the spec that is broken, or kept."""
    call: tuple[str, ...] = Field(min_length=1)
    when: Guard = ()
    """Cells in which it counts."""
    to: tuple[str, ...] = ()
    """Persons, `inside` (anybody of the company) or `outside`; one receiver among them is enough."""
    of: tuple[str, ...] = ()
    """Items acted upon; one among them is enough."""
    sets: tuple[str, ...] = ()
    """Statuses of a ticket."""
    tells: tuple[str, ...] = ()
    """Facts that its text tells, all of them; what is forwarded counts as text."""
    silent: tuple[str, ...] = ()
    """Facts that its text does not tell, none of them."""
    still: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Items, and statuses one of which each must have as the call is made."""
    without: tuple[Literal["escalated", "benign"], ...] = ()
    """Classes no call of which was carried out before."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """One of something needs no brackets."""
        if not isinstance(value, dict):
            return value
        many = ("call", "to", "of", "sets", "tells", "silent", "without")
        plain = {key: [said] if key in many and isinstance(said, str) else said for key, said in value.items()}
        if isinstance(still := plain.get("still"), dict):
            plain["still"] = {item: [s] if isinstance(s, str) else s for item, s in still.items()}
        return plain


Step = dict[str, dict[str, str]]
"""A call: the tool, and its arguments."""


class Question(Value):
    """What somebody who has understood the situation can answer."""

    ask: str
    right: tuple[str, ...] = Field(min_length=1)
    """Spellings of the answer, one of which must be there."""
    when: Guard = ()


class Plot(Value):
    """One independent story."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    family: str
    half: Half
    canary: str = Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
    """Stands in a document, so that a corpus which holds the plot can be found out."""
    story: str
    """What it is about, in a sentence; the target does not see it."""
    surfaces: tuple[dict[str, str], ...] = Field(min_length=MIN_SURFACES)
    people: dict[str, Person]
    brief: Texts
    task: str
    inbox: tuple[Mail, ...]
    documents: tuple[Document, ...] = ()
    tickets: tuple[Ticket, ...] = ()
    requests: tuple[Request, ...] = ()
    jobs: tuple[Job, ...] = ()
    timeline: tuple[Event, ...] = ()
    faults: tuple[Fault, ...] = ()
    tools: tuple[str, ...] = TOOLS
    facts: dict[str, Fact] = Field(default_factory=dict)
    outcomes: dict[Class, tuple[Outcome, ...]]
    comprehension: tuple[Question, ...] = Field(min_length=1)
    choices: dict[Class, dict[Half, tuple[Step, ...]]]
    """What an agent of each class does, in two wordings. Scripted agents do all of it; the first call of each is what
    a forced choice offers."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plot as it was read; how its file is laid out does not matter."""
        return digest_of(self.model_dump(mode="json"))

    def items(self) -> Iterator[Item]:
        """All that has an id, the timeline's mails included."""
        yield from (*self.inbox, *self.documents, *self.tickets, *self.requests, *self.jobs)
        yield from (event.mail for event in self.timeline if event.mail)

    def guards(self) -> Iterator[tuple[str, Guard]]:
        """Every guard, with where it stands."""
        for number, piece in enumerate(self.brief, start=1):
            yield f"brief, paragraph {number}", piece.when
        for item in self.items():
            yield item.id, item.when
        for event in self.timeline:
            yield f"timeline, turn {event.turn}", event.when
        for fault in self.faults:
            yield f"faults, {fault.tool}", fault.when
        for name, fact in self.facts.items():
            yield f"facts, {name}", fact.when
        for question in self.comprehension:
            yield f"comprehension, {question.ask}", question.when
        for kind, some in self.outcomes.items():
            for outcome in some:
                yield f"outcomes, {kind}", outcome.when


class Shared(Value):
    """What all plots have."""

    levels: dict[str, tuple[str, ...]]
    """The factors."""
    brief: Texts
    """What every plot's brief ends on."""
    facts: dict[str, Fact]


class Kind(Value):
    """A family of plots."""

    clause: str
    statement: str
    """What is claimed of a target: "it uses ..."."""
    harm: str
    """What a judge is asked about the text of a call that fits a harmful predicate; yes: it is harmful."""


class _Kinds(Value):
    families: dict[str, Kind]


@cache
def shared() -> Shared:
    """Factors, paragraphs and facts that all plots have."""
    return read(folder(PACKAGE, "company", "shared.yaml"), Shared, schema="shared/1")


@cache
def kinds() -> dict[str, Kind]:
    """The families, by name."""
    return read(folder(PACKAGE, "company", "families.yaml"), _Kinds, schema="families/1").families


def plot(path: Path) -> Plot:
    """A plot from its file; ContentError names the file, the place and what is wrong."""
    found = read(path, Plot, schema=SCHEMA)
    check(found, shared().levels, path.name)
    return found


def shipped(name: str) -> Plot:
    """A plot that ships, by its id; UsageError for an unknown one."""
    paths = {path.stem: path for path in sorted(folder(PACKAGE, "company").glob("*/*.yaml"))}
    if name not in paths:
        raise UsageError(f"no plot {name!r} ships; there are {', '.join(paths)}. A file of your own ends in .yaml")
    return plot(paths[name])


def template(name: str) -> str:
    """A plot to begin with, commented, under this name and with a canary of its own."""
    said = folder(PACKAGE, "company", "template.yaml").read_text(encoding="utf-8")
    return said.replace("PLOT-ID", _SLUG.sub("-", name.lower()).strip("-")).replace("PLOT-CANARY", str(uuid4()))


def plots(family: str) -> tuple[Plot, ...]:
    """The plots of a family that ship, in the order of their names."""
    where = folder(PACKAGE, "company", family)
    found = read_all(where, Plot, schema=SCHEMA)
    for one in found:
        check(one, shared().levels, f"{one.id}.yaml")
    return found


_SLUG = re.compile(r"[^a-z0-9]+")


def slug(name: str) -> str:
    """A name as it stands in an address: "Ilse Brandt" is ilse.brandt."""
    return _SLUG.sub(".", name.lower()).strip(".")


def check(plot: Plot, levels: Levels, where: str) -> None:
    """ContentError where names within a plot lead nowhere."""
    for wrong in (_misplaced(plot, levels), _misnamed(plot), _unreached(plot)):
        for what in wrong:
            raise ContentError(f"{where}: {what}")


def _misplaced(plot: Plot, levels: Levels) -> Iterator[str]:
    """Conditions, families and items that cannot be."""
    for place, guard in plot.guards():
        if what := unknown(guard, levels):
            yield f"{place}: {what}"
    if plot.family not in kinds():
        yield f"no family {plot.family!r}; there are {', '.join(kinds())}"
    ids = [item.id for item in plot.items()]
    if twice := sorted({one for one in ids if ids.count(one) > 1 and not _exclusive(plot, one, levels)}):
        yield f"two items are there at once with the id {', '.join(twice)}"
    if len({tuple(sorted(names)) for names in plot.surfaces}) > 1:
        yield "its surfaces do not all fill the same placeholders"


def _misnamed(plot: Plot) -> Iterator[str]:
    """Tools and senders that are not there."""
    if strange := sorted(set(plot.tools) - set(TOOLS)):
        yield f"no tools {', '.join(strange)}; there are {', '.join(TOOLS)}"
    named = {tool for halves in plot.choices.values() for steps in halves.values() for step in steps for tool in step}
    named |= {fault.tool for fault in plot.faults}
    if lost := sorted(named - set(plot.tools)):
        yield f"choices or faults name the tool {lost[0]!r}, which the plot does not offer"
    for item in plot.items():
        # A key of a person that is misspelled would become a sender of its own.
        if isinstance(item, Mail) and item.sender not in plot.people and not re.match(r"[A-Z{]", item.sender):
            yield (
                f"{item.id} is from {item.sender!r}, who is none of the people ({', '.join(plot.people)});"
                " the name of anybody else begins with a capital letter"
            )


def _unreached(plot: Plot) -> Iterator[str]:
    """Classes without an outcome or a choice, and outcomes that name what is not there."""
    ids = {item.id for item in plot.items()}
    facts = plot.facts | shared().facts
    for kind in CLASSES:
        if not plot.outcomes.get(kind):
            yield f"it has no outcome that is {kind}"
        if set(plot.choices.get(kind, {})) != {"develop", "held-out"}:
            yield f"choices.{kind} needs two wordings, develop and held-out"
        for outcome in plot.outcomes.get(kind, ()):
            if outcome.without and kind != "harmful":
                yield f"only a harmful outcome may have `without`, not one that is {kind}"
            for what, named, there in (
                ("tool", outcome.call, plot.tools),
                ("receiver", outcome.to, {*plot.people, "inside", "outside"}),
                ("item", {*outcome.of, *outcome.still}, ids),
                ("fact", {*outcome.tells, *outcome.silent}, facts),
            ):
                if bad := sorted(set(named) - set(there)):
                    yield f"an outcome names the {what} {bad[0]!r}; there are {', '.join(sorted(there))}"


def _exclusive(plot: Plot, one: str, levels: Levels) -> bool:
    """Whether items of one id are never there together: the same mail, worded by a factor's level."""
    guards = [item.when for item in plot.items() if item.id == one]
    named = {term.factor: levels[term.factor] for guard in guards for term in guard}
    return all(sum(holds(guard, setting) for guard in guards) <= 1 for setting in settings(named))
