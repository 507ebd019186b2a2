"""Families, plots and topics: content files turned into surfaces and a design."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field

from truing.errors import ContentError, DesignError, UsageError
from truing.records import (
    Case,
    Clause,
    Contrast,
    Decision,
    Design,
    Half,
    Message,
    Spec,
    Surface,
    Surfaces,
    Value,
    digest_of,
)
from truing.records.content import fill, folder, read, read_all
from truing.stats import MIN_CLUSTERS, agrees, has

FAMILIES = ("insider", "sycophancy", "anchoring")
PACKAGE = "truing.audit"
LEVEL = 0.95
WORDINGS: tuple[Half, ...] = ("develop", "held-out")
"""An action of a plot is worded once for each."""


class Fact(Value):
    """A subject with its right and a wrong answer, and other spellings of both."""

    subject: str
    answer: str
    wrong: str
    also: tuple[str, ...] = ()
    also_wrong: tuple[str, ...] = ()


class Topic(Value):
    """A cluster of facts."""

    id: str
    half: Half
    facts: tuple[Fact, ...] = Field(min_length=1)


class Plot(Value):
    """An independent story: one prompt template, factor levels, surfaces, actions."""

    id: str
    half: Half
    system: str
    user: str
    factors: dict[str, dict[str, str]]
    surfaces: tuple[dict[str, str], ...]
    actions: dict[str, tuple[str, ...]]
    secret: tuple[str, ...]


class Wording(Value):
    """How statement, question and answer are put."""

    name: str
    statements: dict[str, str]
    ask: str
    reply: str


class Contrasts(Value):
    """The estimand of a family beside what a naive reading would report."""

    naive: Contrast
    specific: Contrast
    controls: tuple[Contrast, ...]


class Replying(Value):
    """Which cells are answered freely, and how a reply is classed."""

    cells: tuple[str, ...]
    max_tokens: int = Field(ge=1)
    deviates: tuple[str, ...]
    undecided: tuple[str, ...]
    """Classes that may hide a deviation."""
    undecided_in_control: tuple[str, ...]
    """Those that may do so where the control stands."""
    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    right: tuple[str, ...] = ()
    """Classes of a right answer."""


class Carry(Value):
    """What trains and traces a supported claim of the family."""

    fix: str
    keep: tuple[str, ...]
    twins: tuple[str, str]
    guard: str = ""


class Bounds(Value):
    """Smallest effects of interest."""

    preference: float
    behaviour: float


class Family(Value):
    """One family of scenarios, as its file says."""

    id: str
    clause: str
    statement: str
    question: str
    kind: Literal["topics", "plots"]
    folder: str
    per_topic: int = 0
    known_in: str = ""
    wordings: dict[str, tuple[Wording, ...]] = Field(default_factory=dict)
    factor: str = ""
    factors: tuple[str, ...] = ()
    contrasts: Contrasts
    bounds: Bounds
    replies: Replying
    carry: Carry


class _Neutral(Value):
    messages: tuple[Message, ...]


class _SpecFile(Value):
    id: str
    title: str
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Battery:
    """A family laid out for one half and one set of wordings: groups of surfaces (a group is one unit of scoring)."""

    family: Family
    asked: Surfaces
    """What the design is over; the groups may hold fewer."""
    design: Design
    groups: tuple[tuple[Surface, ...], ...]

    @property
    def clause(self) -> str:
        """The clause of the spec that it is about."""
        return self.family.clause

    @property
    def designs(self) -> tuple[Design, ...]:
        """Its one design."""
        return (self.design,)

    @property
    def surfaces(self) -> tuple[Surface, ...]:
        """All surfaces, in order."""
        return tuple(surface for group in self.groups for surface in group)


def spec(path: Path | None = None) -> Spec:
    """The spec that ships, or a user's own."""
    said = read(path or folder(PACKAGE, "spec.yaml"), _SpecFile, schema="spec/1")
    ids = [clause.id for clause in said.clauses]
    if len(set(ids)) < len(ids):
        raise ContentError(
            f"the spec numbers a clause twice: {', '.join(sorted({i for i in ids if ids.count(i) > 1}))}"
        )
    return Spec(name=said.id, title=said.title, clauses=said.clauses)


def clause(rules: Spec, number: str) -> Clause:
    """One clause of a spec; UsageError for an unknown number."""
    for rule in rules.clauses:
        if rule.id == number:
            return rule
    raise UsageError(f"spec {rules.name} has no clause {number!r}; it has {', '.join(c.id for c in rules.clauses)}")


def family(name: str) -> Family:
    """A family by name; UsageError for an unknown one."""
    if name not in FAMILIES:
        raise UsageError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return read(folder(PACKAGE, "families", f"{name}.yaml"), Family, schema="family/1")


def lay_out(
    name: str,
    *,
    half: Half = "develop",
    wordings: Half = "develop",
    items: str = "",
    most: int = 0,
    cells: Sequence[str] = (),
) -> Battery:
    """The surfaces of a family and the design over them, checked.

    `items` names another folder of topics (guards use the family's wordings on other facts); `most` limits the facts
    of each topic, `cells` the cells to those that agree with one of these terms.
    """
    rules = family(name)
    prior = read(folder(PACKAGE, "neutral.yaml"), _Neutral, schema="neutral/1").messages
    if rules.kind == "plots":
        groups = tuple(_plot_groups(rules, half, wordings, prior))
    else:
        groups = tuple(_topic_groups(rules, half, wordings, prior, items or rules.folder, most or rules.per_topic))
    if cells:
        groups = tuple(tuple(narrowed(surface, cells) for surface in group) for group in groups)
    surfaces = tuple(surface for group in groups for surface in group)
    check(surfaces)
    if (plots := len({s.plot for s in surfaces})) < MIN_CLUSTERS:
        raise DesignError(f"family {name}, half {half}: {plots} plots; an interval needs at least {MIN_CLUSTERS}")
    asked = Surfaces(family=name, half=half, wordings=wordings, surfaces=surfaces)
    design = Design(
        family=name,
        clause=rules.clause,
        question=rules.question,
        half=half,
        wordings=wordings,
        naive=rules.contrasts.naive,
        specific=rules.contrasts.specific,
        controls=tuple(rule for rule in rules.contrasts.controls if _observed(rule, surfaces[0])),
        bound_preference=rules.bounds.preference,
        bound_behaviour=rules.bounds.behaviour,
        level=LEVEL,
        surfaces=tuple(s.digest for s in surfaces),
        parents=(asked.id,),
    )
    return Battery(rules, asked, design, groups)


def narrowed(surface: Surface, cells: Sequence[str]) -> Surface:
    """A surface in the cells that agree with one of the terms; DesignError where a term agrees with none."""
    for term in cells:
        if not any(agrees(case.cell, term) for case in surface.cases):
            raise DesignError(f"{surface.name}: no cell agrees with {term!r}; it has {[c.cell for c in surface.cases]}")
    kept = tuple(case for case in surface.cases if any(agrees(case.cell, term) for term in cells))
    return surface.model_copy(update={"cases": kept})


def _observed(rule: Contrast, surface: Surface) -> bool:
    return has({case.cell: 0.0 for case in surface.cases}, rule)


def check(surfaces: Sequence[Surface]) -> None:
    """ContentError where two surfaces or prompts are the same, or an address is not under .example."""
    seen: dict[str, str] = {}
    names: set[str] = set()
    for surface in surfaces:
        if surface.name in names:
            raise ContentError(f"two surfaces are named {surface.name}: the id of a plot or topic must be its own")
        names.add(surface.name)
        for case in surface.cases:
            where = f"{surface.name} {case.cell}"
            text = "\n".join(message.content for message in case.messages)
            actions = "\n".join((*surface.decision.actions, *surface.decision.alternatives))
            key = digest_of([text, actions])
            if key in seen:
                raise ContentError(f"{where} gives the same prompt and actions as {seen[key]}")
            seen[key] = where
            for address in (word for word in f"{text}\n{actions}".split() if "@" in word):
                if not address.strip(".,;:<>()\"'").endswith(".example"):
                    raise ContentError(f"{where}: address {address!r} is not under .example")


def _plot_groups(
    rules: Family, half: Half, wordings: Half, prior: tuple[Message, ...]
) -> Iterator[tuple[Surface, ...]]:
    for plot in read_all(folder(PACKAGE, rules.folder), Plot, schema="plot/1"):
        if plot.half != half:
            continue
        if set(plot.factors) != set(rules.factors):
            raise ContentError(
                f"plot {plot.id} has factors {sorted(plot.factors)}; its family has {sorted(rules.factors)}"
            )
        for number, names in enumerate(plot.surfaces, start=1):
            yield (_plot_surface(rules, plot, f"{plot.id}/{number}", names, wordings, prior),)


def _plot_surface(
    rules: Family, plot: Plot, name: str, names: dict[str, str], wordings: Half, prior: tuple[Message, ...]
) -> Surface:
    cases = []
    for levels in product(*(plot.factors[factor].items() for factor in rules.factors)):
        cell = " ".join(f"{factor}={level}" for factor, (level, _) in zip(rules.factors, levels, strict=True))
        texts = {factor: text.strip() for factor, (_, text) in zip(rules.factors, levels, strict=True)}
        segments = tuple(_segments(plot.user.strip(), texts, names, where=f"plot {plot.id} {cell}"))
        system = fill(plot.system.strip(), names, where=f"plot {plot.id} system")
        user = "".join(text for _, text in segments)
        messages = (Message(role="system", content=system), Message(role="user", content=user))
        cases.append(Case(cell=cell, messages=messages, segments=segments))

    def actions(kind: str) -> tuple[str, ...]:
        if len(said := plot.actions.get(kind, ())) != len(WORDINGS):
            raise ContentError(f"plot {plot.id}: actions.{kind} has {len(said)} wordings; it needs {len(WORDINGS)}")
        return (fill(said[WORDINGS.index(wordings)], names, where=f"plot {plot.id} actions.{kind}"),)

    labels = {"secret": plot.secret, **rules.replies.labels}
    return Surface(
        plot=plot.id,
        name=name,
        half=plot.half,
        cases=tuple(cases),
        says=tuple(labels.items()),
        decision=Decision(actions=actions("coerce"), alternatives=actions("comply"), prior=prior),
    )


def _segments(template: str, texts: dict[str, str], names: dict[str, str], *, where: str) -> Iterator[tuple[str, str]]:
    """Cut a user template at its factor placeholders, so that every part keeps its label."""
    rest, label = template, "mail"
    while rest:
        at = {factor: rest.find("{" + factor + "}") for factor in texts if "{" + factor + "}" in rest}
        if not at:
            yield label, fill(rest, names, where=where)
            return
        factor = min(at, key=lambda name: at[name])
        if at[factor]:
            yield label, fill(rest[: at[factor]], names, where=where)
        yield factor, fill(texts[factor], names, where=where)
        rest = rest[at[factor] + len(factor) + 2 :]
        label = "ask" if not any("{" + name + "}" in rest for name in texts) else "mail"


def _topic_groups(
    rules: Family, half: Half, wordings: Half, prior: tuple[Message, ...], items: str, most: int
) -> Iterator[tuple[Surface, ...]]:
    topics = [t for t in read_all(folder(PACKAGE, items), Topic, schema="topic/1") if t.half == half]
    for number, topic in enumerate(topics):
        # A statement about something else is taken from the next topic, so that it tells nothing about this one.
        others = topics[(number + 1) % len(topics)].facts
        for index, fact in enumerate(topic.facts[:most]):
            other = others[index % len(others)]
            yield tuple(_fact_surface(rules, topic, index, w, fact, other, prior) for w in rules.wordings[wordings])


def _fact_surface(
    rules: Family, topic: Topic, index: int, wording: Wording, fact: Fact, other: Fact, prior: tuple[Message, ...]
) -> Surface:
    where = f"family {rules.id}, topic {topic.id}, wording {wording.name}"
    names = {
        "subject": fact.subject,
        "Subject": _sentence(fact.subject),
        "answer": fact.answer,
        "wrong": fact.wrong,
        "other_subject": other.subject,
        "other_answer": other.answer,
    }
    cases = []
    for level, template in wording.statements.items():
        said = fill(template, names, where=where)
        segments = ((("statement", f"{said} "),) if said else ()) + (("ask", fill(wording.ask, names, where=where)),)
        message = Message(role="user", content="".join(text for _, text in segments))
        cases.append(Case(cell=f"{rules.factor}={level}", messages=(message,), segments=segments))

    def reply(answer: str) -> tuple[str, ...]:
        return (fill(wording.reply, {**names, "said": answer}, where=where),)

    says = (("right", (fact.answer, *fact.also)), ("wrong", (fact.wrong, *fact.also_wrong)))
    return Surface(
        plot=topic.id,
        name=f"{topic.id}/{index:02d}/{wording.name}",
        half=topic.half,
        cases=tuple(cases),
        says=says,
        decision=Decision(actions=reply(fact.wrong), alternatives=reply(fact.answer), prior=prior),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
