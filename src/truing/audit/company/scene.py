"""A cell of a plot as the agent meets it: filled pieces, the messages made of them, and the tools on offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import Field

from truing.audit.company.guards import Guard, Setting, factors_of, holds
from truing.audit.company.plot import (
    PACKAGE,
    Document,
    Event,
    Fault,
    Item,
    Job,
    Mail,
    Person,
    Plot,
    Question,
    Request,
    Ticket,
    shared,
    slug,
)
from truing.errors import ContentError
from truing.records import Message, Tool, Value, canonical
from truing.records.content import fill, folder, read

I = TypeVar("I", Item, Mail, Document, Ticket, Request, Job)  # noqa: E741
Part = tuple[str, str]
"""The factors that bring a text, joined by "+" ("" where it is always there), and the text."""


class _Spoken(Value):
    name: str
    description: str
    parameters: dict[str, str]
    optional: dict[str, str] = Field(default_factory=dict)
    when: Guard = ()


class _Tools(Value):
    tools: tuple[_Spoken, ...]


@cache
def offers() -> dict[str, tuple[Tool, Guard]]:
    """Every tool of the simulator, and when it is there."""
    return {
        one.name: (Tool(name=one.name, description=one.description, parameters=_schema(one)), one.when)
        for one in read(folder(PACKAGE, "company", "tools.yaml"), _Tools, schema="tools/1").tools
    }


def _schema(one: _Spoken) -> str:
    said = {**one.parameters, **one.optional}
    properties: dict[str, Any] = {name: {"type": "string", "description": what} for name, what in said.items()}
    return canonical({"type": "object", "properties": properties, "required": list(one.parameters)}).decode()


@dataclass(frozen=True, slots=True)
class Scene:
    """A plot at one surface and one setting. Texts are filled; what is not there in this cell is left out."""

    plot: Plot
    surface: int
    """Counted from 0."""
    setting: Mapping[str, str]
    names: Mapping[str, str]
    """Values of placeholders, addresses of people included."""
    people: Mapping[str, Person]
    brief: tuple[Part, ...]
    inbox: tuple[Mail, ...]
    documents: tuple[Document, ...]
    tickets: tuple[Ticket, ...]
    requests: tuple[Request, ...]
    jobs: tuple[Job, ...]
    timeline: tuple[Event, ...]
    faults: tuple[Fault, ...]
    facts: Mapping[str, tuple[str, ...]]
    """The words that tell each fact which can be known here."""
    questions: tuple[Question, ...]
    tools: tuple[Tool, ...]
    parts: tuple[Part, ...]
    """The user's turn, in pieces."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that the agent goes on from."""
        system = "\n\n".join(text for _, text in self.brief)
        return (
            Message(role="system", content=system),
            Message(role="user", content="".join(text for _, text in self.parts)),
        )

    @property
    def domain(self) -> str:
        """The company's domain."""
        return self.names["domain"]

    def where(self) -> str:
        """Plot and surface, for errors."""
        return f"plot {self.plot.id}, surface {self.surface + 1}"


def scene(plot: Plot, surface: int, setting: Setting) -> Scene:
    """Lay out one cell. ContentError for a placeholder without a value."""
    where = f"plot {plot.id}, surface {surface + 1}"
    base = plot.surfaces[surface]
    if missing := sorted({"agent", "company", "domain"} - base.keys()):
        raise ContentError(f"{where}: a surface needs {', '.join(missing)}")
    people = {key: _person(person, base, where) for key, person in plot.people.items()}
    names = {**base, "canary": plot.canary, **{f"{key}_address": person.address for key, person in people.items()}}

    def said(text: str) -> str:
        return fill(text.strip(), names, where=where)

    def there(items: Iterable[I]) -> tuple[I, ...]:
        texts = ("text", "title", "subject", "prints", "sender", "status")
        return tuple(
            item.model_copy(update={key: said(getattr(item, key)) for key in texts if hasattr(item, key)})
            for item in items
            if holds(item.when, setting)
        )

    brief = tuple(
        ("+".join(sorted(factors_of(piece.when))), said(piece.wording(surface)))
        for piece in (*plot.brief, *shared().brief)
        if holds(piece.when, setting)
    )
    inbox, documents, jobs = there(plot.inbox), there(plot.documents), there(plot.jobs)
    tickets, requests = there(plot.tickets), there(plot.requests)
    events = tuple(
        event.model_copy(
            update={"mail": there([event.mail])[0] if event.mail else None, "ends": said(event.ends)}
        )
        for event in plot.timeline
        if holds(event.when, setting) and (event.mail is None or holds(event.mail.when, setting))
    )  # fmt: skip
    questions = tuple(
        Question(ask=said(one.ask), right=tuple(map(said, one.right)))
        for one in plot.comprehension
        if holds(one.when, setting)
    )
    agent = f"{base['agent']} <{slug(base['agent'])}@{base['domain']}>"
    parts = (
        ("", f"Inbox of {agent}\n\n"),
        *((_label(mail), f"{shown(mail, people, base['domain'])}\n\n") for mail in inbox),
        ("", _book(people)),
        *_lists(documents, tickets, requests, jobs),
        ("", said(plot.task)),
    )
    return Scene(
        plot=plot, surface=surface, setting=setting, names=names, people=people, brief=brief, inbox=inbox,
        documents=documents, tickets=tickets, requests=requests, jobs=jobs, timeline=events,
        faults=tuple(fault for fault in plot.faults if holds(fault.when, setting)),
        facts=_facts(plot, setting, said),
        questions=questions,
        tools=tuple(tool for name, (tool, when) in offers().items() if name in plot.tools and holds(when, setting)),
        parts=parts,
    )  # fmt: skip


def _facts(plot: Plot, setting: Setting, said: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """The words of facts that can be known in a cell; a plot adds words of its own to those that all plots have."""
    found: dict[str, tuple[str, ...]] = {}
    for facts in (shared().facts, plot.facts):
        for name, one in facts.items():
            if holds(one.when, setting):
                found[name] = (*found.get(name, ()), *map(said, one.words))
    return found


def _person(person: Person, names: Mapping[str, str], where: str) -> Person:
    name, role = (fill(text, dict(names), where=where) for text in (person.name, person.role))
    address = fill(person.address, dict(names), where=where) or f"{slug(name)}@{names['domain']}"
    if not address.endswith(".example"):
        raise ContentError(f"{where}: address {address!r} is not under .example")
    return Person(name=name, role=role, address=address.lower())


def _label(item: Item) -> str:
    return "+".join(sorted(factors_of(item.when)))


def sender(mail: Mail, people: Mapping[str, Person], domain: str) -> str:
    """Who wrote a mail; people's addresses stand in the address book."""
    if mail.sender in people:
        return f"{people[mail.sender].name}, {people[mail.sender].role}"
    return f"{mail.sender} <{slug(mail.sender)}@{domain}>"


def shown(mail: Mail, people: Mapping[str, Person], domain: str) -> str:
    """A mail as the agent reads it."""
    return f"[{mail.id}] From: {sender(mail, people, domain)}\nSubject: {mail.subject}\n{mail.text}"


def _book(people: Mapping[str, Person]) -> str:
    lines = [f"{one.name}, {one.role} <{one.address}>" for one in people.values()]
    return "\n".join(["Address book:", *lines, "", ""])


def _ticket(one: Ticket) -> str:
    others = [status for status in one.statuses if status != one.status]
    return f"[{one.id}] {one.title} ({one.status}; may be set to {', '.join(others)})"


def _lists(
    documents: Sequence[Document], tickets: Sequence[Ticket], requests: Sequence[Request], jobs: Sequence[Job]
) -> tuple[Part, ...]:
    """What else is there: a heading, and a line for each."""
    found: list[Part] = []
    for heading, lines in (
        ("Documents that a search shows:", [(_label(one), f"[{one.id}] {one.title}") for one in documents]),
        ("Tickets:", [(_label(one), _ticket(one)) for one in tickets]),
        ("Requests waiting for you:", [(_label(one), f"[{one.id}] {one.title} ({one.status})") for one in requests]),
        ("Jobs that you may run:", [(_label(one), f"[{one.id}] {one.title}") for one in jobs]),
    ):
        if lines:
            # A heading is there as soon as one line is: it belongs to the factors of all of them.
            names = {factor for label, _ in lines for factor in label.split("+")}
            label = "" if any(not label for label, _ in lines) else "+".join(sorted(names))
            found += [(label, f"{heading}\n"), *((one, f"{line}\n") for one, line in lines), (label, "\n")]
    return tuple(found)
