"""How often the verdict on the graph of a single case is fooled: shams of short cases in the bundled model.

Rows; alone, `python benchmarks/trace_cases.py [CASES]`.

A case is a plain question with a right and a wrong answer. It is judged by the tests of a trace (single neurons,
neurons together, neurons alone; under zero and mean ablation) with

    its own graph
    shuffled scores                 its graph, scores dealt out anew among neighbours by layer and token, several times
    the graph of another decision   of the same text: between the answers to another question

What fails the test of single neurons cannot be called supported, so that the costly one, neurons together, is made only
where that is passed. Shams of one case share its text and its neurons: they are not independent. Clusters are cases.
"""

# K places of a graph

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from common import Row, at_most

from truing.stats.agreement import binomial_limits
from truing.trace.ablate import Bench, Edit, Reference, mean, zero
from truing.trace.case import CaseSettings, account
from truing.trace.context import Context, between
from truing.trace.curves import curves, emptied, slight
from truing.trace.jointly import jointly
from truing.trace.picked import Picked, shuffled
from truing.trace.singly import singly
from truing.trace.verdict import ENOUGH, Evidence, verdict

CASES, NEURONS, SINGLY, TOGETHER, DRAWS, NULLS = 20, 32, 24, 32, 2, 39
"""Neurons of a graph; of these, patched alone and at most together; random sets; and shams of the joint test itself."""
SHUFFLES = 5
"""Of each case."""
OWN, DEALT, OTHER = "its own graph", "shuffled scores", "the graph of another decision"
CELL = "statement=none"
BAR = 0.05


@dataclass(frozen=True)
class Passed:
    """Which tests a graph passed, and whether it is called supported."""

    tells: bool
    """Its scores say what single neurons do."""
    both: bool
    """And the best of them together do what they say, more than shams."""
    alone: bool
    """Its neurons alone carry the decision."""
    supported: bool


class Remembering(Bench):
    """A bench that computes no edit twice: graphs of one text share many."""

    def values(self, edits: Sequence[Edit], told: Any = lambda _: None) -> list[float]:
        """The decision under each edit, nats per token."""
        known = self.__dict__.setdefault("known", {})
        keys = [_key(edit) for edit in edits]
        new = {key: edit for key, edit in zip(keys, edits, strict=True) if key not in known}
        known.update(zip(new, super().values(list(new.values()), told) if new else (), strict=True))
        return [known[key] for key in keys]


def _key(edit: Edit) -> tuple[Any, ...]:
    places = tuple(sorted(map(tuple, edit.places.tolist())))
    return places, edit.reference.name, edit.others, edit.factor


# -- cases -------------------------------------------------------------------------------------------------------------


def contexts(target: Any, count: int = CASES) -> list[tuple[Context, Context]]:
    """Questions, one a topic while there are any, each between its answers; and between those to the next question."""
    from truing.audit import lay_out
    from truing.trace.twins import by_plot, case_of

    laid = [*lay_out("anchoring").surfaces, *lay_out("anchoring", half="held-out", wordings="held-out").surfaces]
    topics = list(by_plot(laid).values())
    some = [topic[2 * place] for place in range(min(map(len, topics)) // 2) for topic in topics][:count]
    asked = [case_of(surface, CELL).messages for surface in some]
    answers = [tuple(_sentence(dict(surface.says)[kind][0]) for kind in ("right", "wrong")) for surface in some]
    others = [*answers[1:], answers[0]]
    return [
        (between(target, messages, own[:1], own[1:]), between(target, messages, other[:1], other[1:]))
        for messages, own, other in zip(asked, answers, others, strict=True)
    ]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def moved(picked: Picked, nodes: int) -> Picked:
    """The graph of another decision of the same text: what stands in a reply longer than the case's is left out."""
    fits = picked.places[:, 1] < nodes
    keep = fits.numpy()
    return Picked(picked.places[fits], picked.score_K[keep], picked.influence_K[keep])


def dealt(picked: Picked, seed: int) -> Picked:
    """Scores dealt out anew, as the null hypothesis of both tests says."""
    return replace(picked, score_K=picked.score_K[shuffled(picked.places, np.random.default_rng(seed))])


# -- judged ------------------------------------------------------------------------------------------------------------


def judged(bench: Bench, references: Sequence[Reference], picked: Picked, *, seed: int = 0) -> Passed:
    """The tests of a trace. Neurons are tested together only where each tells what it does by itself."""
    found = [_evidence(bench, reference, picked, seed) for reference in references]
    tells = all(one.tells for one in found)
    alone = sum(one.holds for one in found) >= ENOUGH
    if not tells:
        return Passed(tells, both=False, alone=alone, supported=False)
    whole = []
    for one, reference in zip(found, references, strict=True):
        joint = jointly(bench, reference, picked, most=TOGETHER, shams=NULLS, seed=seed + 1000)
        whole.append(replace(one, moved=joint.effect, moved_p=joint.p, foretold=joint.predicted))
    both = all(one.moves and one.sized for one in whole)
    return Passed(tells, both, alone, verdict(whole)[0] == "supported")


def _evidence(bench: Bench, reference: Reference, picked: Picked, seed: int) -> Evidence:
    """All but neurons together."""
    single = singly(bench, reference, picked, count=SINGLY, seed=seed)
    (empty,) = emptied(bench, [reference])
    told = Evidence(reference.name, single.told, single.told_p, moved=0.0, moved_p=1.0)
    if slight(bench.value, empty):
        return told
    rng, best = np.random.default_rng(seed), picked.by(np.abs(picked.score_K))
    orders = {"attribution": [best], "random": [bench.basis.matched(bench.neurons, best, rng) for _ in range(DRAWS)]}
    drawn = curves(bench, reference, empty, orders, (len(picked),))
    shares = {one.curve.choice: one for one in drawn if one.curve.name == "faithfulness"}
    return replace(told, carried=shares["attribution"].share, random=shares["random"].ends)


def verdicts(target: Any, own: Context, other: Context) -> Iterator[tuple[str, Passed]]:
    """Of one case, by what its neurons were chosen and scored by."""
    settings = CaseSettings(neurons=NEURONS)
    graph = account(target, own, settings).picked
    foreign = account(target, other, settings).picked
    bench = Remembering(target.model, own.functional, memory=target.budget)
    references = [zero(bench), mean(bench)]
    yield OWN, judged(bench, references, graph)
    for seed in range(SHUFFLES):
        yield DEALT, judged(bench, references, dealt(graph, seed))
    yield OTHER, judged(bench, references, moved(foreign, len(own.functional.tree)))


# -- rows --------------------------------------------------------------------------------------------------------------


def rows(target: Any, count: int = CASES) -> list[Row]:
    """How often each is called supported, and passes the tests."""
    began, found = time.perf_counter(), []
    laid = contexts(target, count)
    for number, (own, other) in enumerate(laid):
        some = list(verdicts(target, own, other))
        found.append(some)
        print(f"case {number + 1}: {time.perf_counter() - began:.0f} s", *some, file=sys.stderr, flush=True)
    nodes = float(np.mean([len(own.functional.tree) for own, _ in laid]))
    return [
        Row("one case: tokens, on average", nodes, f"tokens, {NEURONS} neurons"),
        *counted(found),
        Row("one case: seconds", time.perf_counter() - began, "s"),
    ]


def counted(found: Sequence[Sequence[tuple[str, Passed]]]) -> list[Row]:
    """Shares of graphs, and of cases."""
    every = [(kind, one) for some in found for kind, one in some]
    made = []
    for kind in (OWN, DEALT, OTHER):
        of = [one for name, one in every if name == kind]
        made += [
            _share(
                f"one case, {kind}: called supported", [one.supported for one in of], len(found), barred=kind != OWN
            ),
            _share(f"one case, {kind}: scores say what single neurons do", [one.tells for one in of], len(found)),
            _share(f"one case, {kind}: both tests of scores are passed", [one.both for one in of], len(found)),
            _share(f"one case, {kind}: its neurons alone carry the decision", [one.alone for one in of], len(found)),
        ]
    shams = [one for name, one in every if name != OWN]
    any_of = [any(one.supported for kind, one in some if kind != OWN) for some in found]
    return [
        *made,
        _share("one case, all shams: called supported", [one.supported for one in shams], len(found), barred=True),
        _share("one case, all shams: both tests of scores are passed", [one.both for one in shams], len(found)),
        _share("one case, cases with a sham: called supported", any_of, len(found)),
    ]


def _share(name: str, hits: Sequence[bool], cases: int, *, barred: bool = False) -> Row:
    """With exact limits as if all were independent, which graphs of one case are not."""
    share, unit = sum(hits) / len(hits), f"share of {len(hits)} in {cases} cases"
    low, high = binomial_limits(sum(hits), len(hits))
    if barred:
        return at_most(name, share, BAR, unit, low=low, high=high)
    return Row(name, share, unit, low, high)


if __name__ == "__main__":
    from truing.targets import resolve

    for row in rows(resolve("local/smollm2-135m"), *map(int, sys.argv[1:2])):
        ends = f"[{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""
        print(f"{row.name:70} {row.value:>8.3f} {ends:16} {row.unit} {row.bar or ''} {row.holds}")
