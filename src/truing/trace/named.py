"""What the neurons of a case's graph stand for: labels of those with the most influence, and supernodes of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from truing.errors import UsageError
from truing.records import CaseGraph, Circuit, Labelled, Place, Record, Supernode, circuit_of, digest_of
from truing.records.neurons import AFTER, BEFORE, MOST_GROUPS, MOST_LABELS, MOST_PLACES, MOST_TOKENS, NAME, TOKEN
from truing.runner import Silent, Watcher, run
from truing.runner import Unit as Work
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.protocols import Chat
from truing.trace.contexts import Context, Neuron
from truing.trace.labels import NeuronLabel, label
from truing.trace.supernodes import supernodes
from truing.trace.wording import word

CALLED = 10
"""Neurons that a target is asked to name, those with the most influence: it is asked 17 times for each."""
GROUPED = 2000
"""Neurons of which every two are compared, at most."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What labels are made from, and how many."""

    texts: tuple[str, ...]
    """Labels are made from every other text and tested on those between."""
    neurons: int = 64
    """Those with the most influence, each counted once however many tokens it stands at."""
    words: int = 8
    """Tokens, and as many pairs of tokens, that a label is made of."""
    places: int = 4
    """Contexts that are kept, of the strongest and of the weakest."""
    groups: int = 12
    """Supernodes at most. The best silhouette is often that of two, which say little."""
    seed: int = 0
    """Draws the other neuron whose label is set beside."""

    def __post_init__(self) -> None:
        for what, value, most in (("neurons", self.neurons, MOST_LABELS), ("words", self.words, MOST_TOKENS),
                                  ("places", self.places, min(MOST_PLACES, self.words)),
                                  ("supernodes", self.groups, MOST_GROUPS)):  # fmt: skip
            if not 1 <= value <= most:
                raise UsageError(f"{value} {what} were asked for, to label a graph with; 1 to {most} can be had")


def named(
    target: LocalTarget,
    case: CaseGraph,
    store: Store,
    naming: Naming,
    *,
    namer: Chat | None = None,
    watcher: Watcher | None = None,
) -> CaseGraph:
    """The case with labels and supernodes: a record of its own, whose parents are those of the case, and the case.

    `namer`: a target that is asked what the first of the labels' places have in common; what it writes may be anything.
    TargetError where it cannot be asked.

    A unit of work of its own, so that other texts do not ablate neurons again.
    """
    watcher, texts = watcher or Silent(), digest_of(list(naming.texts))
    if namer:
        need(namer, "Chat")
        store.add(namer.card)

    def work(_: None) -> list[Record]:
        circuit = circuit_of(case, store.blob_bytes(case.graph))
        # Features are numbered as their dictionary has them: a label by such a number would be another neuron's.
        some = influential(circuit, naming.neurons) if case.unit == "neuron" else []
        found = label(target, some, naming.texts, top=naming.words, seed=naming.seed, watcher=watcher) if some else ()
        said: dict[str, object] = {
            "labels": tuple(labelled(one, naming.places) for one in found),
            "labelled_from": texts if found else None,
            "supernodes": grouped(case, circuit, naming.groups),
        }
        namers: tuple[str, ...] = ()
        if namer and found:
            watcher.start(f"trace: names by {namer.card.name}", 1)
            said |= {"names": word(namer, found[:CALLED]), "named_by": namer.card.id}
            namers = () if namer.card.id in case.parents else (namer.card.id,)
            watcher.step()
        return [case.model_copy(update={**said, "parents": (*case.parents, *namers, case.id)})]

    settings = asdict(naming) | {"texts": texts}
    inputs = {"case": case.id, "settings": settings} | ({"namer": namer.card.id} if namer else {})
    ((record,),) = run([Work(item=None, stage="case labels", inputs=inputs)], work, ledger=store)
    assert isinstance(record, CaseGraph)
    return record


def influential(circuit: Circuit, count: int) -> list[Neuron]:
    """The neurons of a graph with the most influence at any one token, the strongest first."""
    nodes = sorted(circuit.of("neuron").nonzero()[0].tolist(), key=lambda n: -float(circuit.influence_N[n]))
    return list(dict.fromkeys((int(circuit.layer_N[n]), int(circuit.index_N[n])) for n in nodes))[:count]


def labelled(one: NeuronLabel, places: int) -> Labelled:
    """A label as a case keeps it. What texts say may be anything: it is cut, and shown, and never acted upon."""
    return Labelled(
        layer=one.layer, index=one.index, tokens=_words(one.tokens), pairs=_words(one.pairs),
        strongest=tuple(_places(one.strongest[:places])), weakest=tuple(_places(one.weakest[:places])),
        score=one.score, shuffled=one.shuffled,
    )  # fmt: skip


def grouped(case: CaseGraph, circuit: Circuit, count: int) -> tuple[Supernode, ...]:
    """So many supernodes of a case's graph, named by its segments; fewer where they would have under four neurons on
    average, and none where there are too many neurons to compare.
    """
    neurons = int(circuit.of("neuron").sum())
    if neurons > GROUPED:
        return ()
    found = supernodes(circuit, case.segments, count=min(count, max(1, neurons // 4)))
    return tuple(Supernode(name=_cut(one.name, NAME), nodes=one.members) for one in found)


def _words(said: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    return tuple((_cut(token, TOKEN), value) for token, value in said)


def _places(some: Sequence[Context]) -> Iterator[Place]:
    for one in some:
        yield Place(before=one.before[-BEFORE:], token=_cut(one.token, TOKEN), after=one.after[:AFTER],
                    activation=one.activation)  # fmt: skip


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


__all__ = ["Naming", "grouped", "influential", "labelled", "named"]
