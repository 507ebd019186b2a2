"""Trace a claim: attribute on one half, check by patching on the other, draw the graph, give a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from safetensors.torch import load_file
from safetensors.torch import save as pack_tensors
from torch import Tensor

from truing.errors import TargetError, UsageError
from truing.records import (
    Arrays,
    Claim,
    Edge,
    Estimate,
    Graph,
    Mediation,
    Node,
    Quantity,
    Record,
    Surface,
    Unit,
    Unmeasured,
    digest_of,
)
from truing.runner import Unit as Work
from truing.runner import Watcher, run
from truing.stats import cluster_mean, cluster_ratio
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.inside import Site, blocks
from truing.targets.local.lift import short_format
from truing.trace.attribute import SCORINGS, Attribution, Scoring, attribute
from truing.trace.draw import Spot, draw
from truing.trace.mediate import Choice, Rule, back, both_ways, choose
from truing.trace.twins import FRAME, REPLY, Twin, by_plot, twins

CLOSURE = 1e-4
"""Above this the accounts do not close and no graph is given (fp32)."""
Verdict = Literal["supported", "weak", "refuted", "inconclusive"]
HALF = 0.5
"""Share of the effect that an explanation must account for."""
CHOOSING, TESTING = "attribution", "attribution, held out"
"""Names of the arrays on either half."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is traced."""

    per_plot: int = 3
    """Twins of each plot, in each half."""
    draws: int = 3
    """Random and shuffled choices of heads; of neurons there is one, since hundreds of them average out."""
    heads: tuple[int, ...] = (5, 15)
    neurons: tuple[int, ...] = (200, 1000)
    drawn: int = 28
    """Neurons in the picture."""
    drawn_twins: int = 8
    seed: int = 0
    rule: Scoring = "relp"
    """What units are scored and chosen by. The picture is drawn under the linear rules, whatever this is."""

    def __post_init__(self) -> None:
        if self.rule not in SCORINGS:
            raise UsageError(f"unknown rule {self.rule!r}; known: {', '.join(SCORINGS)}")

    @property
    def said(self) -> dict[str, object]:
        """What determines a graph. The first rule is not named, so that what it gave before keeps its identity."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("rule", "relp")}

    def within(self, target: LocalTarget) -> Settings:
        """The same for a small model: K is at most a quarter of what there is."""
        blocks(target.model)  # other shapes do not name the numbers below
        if short_format(target.model):
            raise TargetError(
                f"tracing accounts for every part of an effect, which {target.card.dtype} rounds too much for;"
                f" load {target.card.name} in fp32 (TRUING_DTYPE=fp32)"
            )
        config = target.model.config
        heads = config.num_hidden_layers * config.num_attention_heads // 4
        neurons = config.num_hidden_layers * config.intermediate_size // 4
        return replace(
            self,
            heads=tuple(sorted({min(k, heads) for k in self.heads})),
            neurons=tuple(sorted({min(k, neurons) for k in self.neurons})),
        )


@dataclass(frozen=True, slots=True)
class Effect:
    """What is traced: a claim's twins on the half where units are chosen and on the half where they are tested."""

    claim: Claim | None
    """None where an effect is traced that nobody audited, such as that of a planted trigger."""
    cells: tuple[str, str]
    choosing: Sequence[Surface]
    testing: Sequence[Surface]


def trace(
    target: LocalTarget,
    effect: Effect,
    store: Store,
    *,
    settings: Settings | None = None,
    watcher: Watcher | None = None,
) -> Graph:
    """The graph of a claim's effect with its causal verdict."""
    need(target, "WhiteBox")
    settings = (settings or Settings()).within(target)
    choosing, skipped = twins(target, effect.choosing, effect.cells, per_plot=settings.per_plot)
    testing, skipped_too = twins(target, effect.testing, effect.cells, per_plot=settings.per_plot)
    store.add(target.card)
    segments = segments_of([*choosing, *testing])
    mean, sources = averaged(target, choosing, segments, store, watcher, name=CHOOSING, rule=settings.rule)
    held, held_sources = averaged(target, testing, segments, store, watcher, name=TESTING, rule=settings.rule)
    choices = chosen_by(mean, settings)
    patched = patched_on(target, testing, choices, store, watcher)
    parents = (
        target.card.id,
        *([effect.claim.id] if effect.claim else []),
        *sorted({r.id for r in (*sources, *held_sources, *patched)}),
    )

    def work(_: None) -> list[Graph]:
        spots = strongest(mean, segments, settings.drawn)
        nodes, edges, error = _drawn(target, choosing, spots, segments, settings)
        mediated = shares(patched, choices)
        verdict, why = judge(mediated)
        whole = [row for record in patched for row in _pairs(record)]
        graph = Graph(
            target=target.card.id,
            claim=effect.claim and effect.claim.id,
            twins=effect.cells,
            aligned=len(choosing) + len(testing),
            skipped=skipped + skipped_too,
            partly=sum(not twin.same_length for twin in (*choosing, *testing)),
            closure_error=error,
            segments=segments,
            nodes=nodes,
            edges=edges,
            effect=cluster_mean([a - b for _, a, b in whole], [plot for plot, _, _ in whole], unit="nats/token"),
            units=units_of(mean, held, choices),
            mediated=mediated,
            verdict=verdict,
            why=why,
            rule="" if settings.rule == "relp" else settings.rule,
            parents=parents,
        )
        return [graph]

    return _kept(work, {"parents": list(parents), "settings": settings.said}, store)


def chosen_by(mean: Attribution, settings: Settings) -> list[Choice]:
    """The units that scores choose, and those that are patched beside them."""
    return [
        choice
        for site, ks, draws, score, change in (
            ("head", settings.heads, settings.draws, mean.heads, mean.heads_change),
            ("neuron", settings.neurons, 1, mean.neurons, mean.neurons_change),
        )
        for k in ks
        for choice in choose(site, k, score, change, draws=draws, seed=settings.seed + k)  # type: ignore[arg-type]
    ]


def retrace(
    target: LocalTarget,
    graph: Graph,
    effect: Effect,
    store: Store,
    *,
    settings: Settings | None = None,
    watcher: Watcher | None = None,
) -> tuple[Graph, list[Arrays]]:
    """The same spots drawn in another model (a fixed one), and its attributions. Neurons keep their names.

    The units' scores are those on the twins that they were tested on: where they were chosen, the first model's scores
    are the largest of many, and those of any other would look smaller.
    """
    need(target, "WhiteBox")
    settings = (settings or Settings()).within(target)
    choosing, skipped = twins(target, effect.choosing, effect.cells, per_plot=settings.per_plot)
    testing, skipped_too = twins(target, effect.testing, effect.cells, per_plot=settings.per_plot)
    held, sources = averaged(target, testing, graph.segments, store, watcher, name=TESTING, rule=settings.rule)
    parents = (target.card.id, graph.id, *sorted({r.id for r in sources}))

    def work(_: None) -> list[Graph]:
        spots = [(node.layer, node.index, node.segment) for node in graph.nodes if node.kind == "neuron"]
        nodes, edges, error = _drawn(target, choosing, spots, graph.segments, settings)
        scores = {"head": held.heads, "neuron": held.neurons}
        read = {u: float(scores[u.kind][u.layer, u.index]) for u in graph.units}
        again = graph.model_copy(
            update={
                "target": target.card.id,
                "nodes": nodes,
                "edges": edges,
                "closure_error": error,
                "mediated": (),
                "units": tuple(unit.model_copy(update={"score": score, "held": score}) for unit, score in read.items()),
                "effect": Unmeasured(reason="the units of another model's graph, read in this one"),
                "verdict": "inconclusive",
                "why": "the units of another model's graph, read in this one; not patched",
                "aligned": len(choosing) + len(testing),
                "skipped": skipped + skipped_too,
                "parents": parents,
            }
        )
        return [again]

    return _kept(work, {"parents": list(parents), "settings": settings.said}, store), sources


def _kept(work: Callable[[None], list[Graph]], inputs: dict[str, object], store: Store) -> Graph:
    """A graph as one unit of work."""
    ((graph,),) = run([Work(item=None, stage="graph", inputs=inputs)], work, ledger=store)
    assert isinstance(graph, Graph)
    return graph


def _drawn(
    target: LocalTarget, pairs: Sequence[Twin], spots: Sequence[Spot], segments: tuple[str, ...], settings: Settings
) -> tuple[tuple[Node, ...], tuple[Edge, ...], float]:
    """The picture over a few twins; TargetError where the accounts do not close."""
    nodes, edges, error = draw(target.model, pairs[:: max(1, -(-len(pairs) // settings.drawn_twins))], spots, segments)
    if error > CLOSURE:
        raise TargetError(
            f"the accounts of {target.card.name} do not close: relative error {error:.1e}, allowed {CLOSURE:.0e}."
            " Its blocks are not what the linear rules assume, so no graph is given."
        )
    return nodes, edges, error


def averaged(
    target: LocalTarget,
    pairs: Sequence[Twin],
    segments: tuple[str, ...],
    store: Store,
    watcher: Watcher | None,
    *,
    name: str,
    rule: Scoring = "relp",
) -> tuple[Attribution, list[Arrays]]:
    """The mean attribution over twins. One unit of work is one plot."""
    plots = by_plot(pairs)

    def work(item: tuple[str, list[Twin]]) -> list[Arrays]:
        plot, members = item
        found = [attribute(target.model, twin, segments, rule) for twin in members]
        sums = {part: torch.stack([getattr(a, part) for a in found]).sum(0) for part in Attribution.__slots__}
        blob = store.put_blob(pack_tensors({part: tensor.contiguous() for part, tensor in sums.items()}), "safetensors")
        return [_arrays(target, name, plot, members, blob=blob)]

    more = {"segments": list(segments), "name": name} | ({} if rule == "relp" else {"rule": rule})
    records = _units_of_work("attribute", target, plots, more, work, store, watcher)
    total: dict[str, Tensor] = {}
    for record in records:
        assert record.blob is not None
        for part, tensor in load_file(store.blob_path(record.blob)).items():
            total[part] = total[part] + tensor if part in total else tensor
    return Attribution(**{part: tensor / len(pairs) for part, tensor in total.items()}), records


def strongest(mean: Attribution, segments: Sequence[str], count: int) -> list[Spot]:
    """The (layer, neuron, segment) spots with the largest mean attribution, either sign."""
    _, layers, neurons = mean.neurons_by_segment.shape
    order = mean.neurons_by_segment.abs().flatten().topk(count).indices.tolist()
    return [((i // neurons) % layers, i % neurons, segments[i // (neurons * layers)]) for i in order]


def judge(mediated: Sequence[Mediation]) -> tuple[Verdict, str]:
    """The verdict and its grounds.

    supported: some K heads or neurons chosen by attribution mediate at least half of the effect, and more than random
    and shuffled choices of as many (intervals apart), and put into the other twin they bring back more of it than those
    do; weak: they mediate more than those, but less than half or more than all, or do not bring it back; refuted: every
    choice mediates clearly less than half, or no more than random or shuffled units; inconclusive: the intervals do not
    tell, or nothing was measured. A record without the way back is judged by the one that it has.
    """
    best: tuple[Verdict, str] | None = None
    failed = measured = 0
    for m in sorted(mediated, key=lambda m: m.k):
        share = m.share
        if m.choice != "attribution" or not isinstance(share, Estimate):
            continue
        rivals = {r.choice: r for r in mediated if (r.kind, r.k) == (m.kind, m.k) and r.choice != "attribution"}
        shams = [r for name, r in rivals.items() if name != "largest change"]
        controls = [r.share for r in shams if isinstance(r.share, Estimate)]
        if not controls:
            continue
        measured += 1
        if share.low <= max(q.high for q in controls):
            failed += share.high < HALF or share.value <= max(q.value for q in controls)
            continue
        trivial = rivals["largest change"].share if "largest change" in rivals else None
        remark = "; patching them overshoots" if share.low > 1 else ""
        if isinstance(trivial, Estimate) and trivial.high >= share.low:
            remark += "; units chosen by the largest change alone do as well"
        comes, other_way = _comes_back(m, shams)
        said = f"{m.k} {m.kind}s mediate {_percent(share)} of the effect{other_way}{remark}"
        if HALF <= share.low <= 1 and comes:
            return "supported", said
        best = ("weak", said)
    if best:
        return best
    if measured and failed == measured:
        return (
            "refuted",
            "no choice by attribution mediates half of the effect and more than random and shuffled units do",
        )
    if measured:
        return "inconclusive", "the intervals do not tell units chosen by attribution from random and shuffled ones"
    return "inconclusive", "no share was measured beside those of random and shuffled units"


def _comes_back(chosen: Mediation, shams: Sequence[Mediation]) -> tuple[bool, str]:
    """Whether units put into the other twin bring back more of the effect than sham ones do, and how that is said."""
    back = chosen.restored
    if back is None:
        return True, ""
    if not isinstance(back, Estimate):
        return False, "; what they bring back in the other twin is not measured"
    controls = [r.restored for r in shams if isinstance(r.restored, Estimate)]
    if controls and back.low > max(q.high for q in controls):
        return True, f", and bring back {_percent(back)} in the other twin"
    return False, f"; in the other twin they bring back {_percent(back)}, not clearly more than sham units"


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def segments_of(pairs: Sequence[Twin]) -> tuple[str, ...]:
    """Labels of the nodes of twins: the frame first, the reply last."""
    labels = {s: None for twin in pairs for side in (twin.first, twin.second) for s in side.segment_T}
    middle = [label for label in labels if label not in (FRAME, REPLY)]
    return (FRAME, *middle, REPLY)


def patched_on(
    target: LocalTarget, pairs: Sequence[Twin], choices: Sequence[Choice], store: Store, watcher: Watcher | None = None
) -> list[Arrays]:
    """The decision in either cell of each twin, and with each choice patched, both ways. One unit of work is a plot."""
    again = back(choices)

    def work(item: tuple[str, list[Twin]]) -> list[Arrays]:
        plot, members = item
        numbers: list[tuple[str, float]] = []
        for twin in members:
            found = both_ways(target.model, twin, choices, again)
            numbers += [("first", found.first), ("second", found.second)]
            numbers += [(choice.label, value) for choice, value in zip(choices, found.removed, strict=True)]
            numbers += [(choice.back_label, value) for choice, value in zip(again, found.restored, strict=True)]
        return [_arrays(target, "patching", plot, members, numbers=numbers)]

    chosen = {
        "choices": digest_of([[c.label, [list(u) for u in c.units]] for c in choices]),
        "back": [c.label for c in again],
    }
    return _units_of_work("patch", target, by_plot(pairs), chosen, work, store, watcher)


def shares(records: Sequence[Arrays], choices: Sequence[Choice]) -> tuple[Mediation, ...]:
    """The shares of each choice; what was drawn several times is averaged per twin."""
    draws: dict[tuple[Site, Rule, int], list[Choice]] = {}
    for choice in choices:
        draws.setdefault((choice.site, choice.rule, choice.k), []).append(choice)
    return tuple(
        Mediation(
            kind=site,
            choice=rule,
            k=k,
            draws=len(members),
            share=_share(records, [choice.label for choice in members], "first"),
            restored=_share(records, [choice.back_label for choice in again], "second") if again else None,
        )
        for (site, rule, k), members in draws.items()
        for again in [back(members)]
    )


def _share(records: Sequence[Arrays], labels: Sequence[str], cell: str) -> Quantity:
    """By how much patching moves the decision in a cell towards the other, over how far they are apart."""
    parts, wholes, plots = [], [], []
    for record in records:
        drawn = [[value for label, value in record.numbers if label == wanted] for wanted in labels]
        for (plot, a, b), patched in zip(_pairs(record), zip(*drawn, strict=True), strict=True):
            value = sum(patched) / len(patched)
            parts.append(a - value if cell == "first" else value - b)
            wholes.append(a - b)
            plots.append(plot)
    return cluster_ratio(parts, wholes, plots)


def _pairs(record: Arrays) -> list[tuple[str, float, float]]:
    first = [value for label, value in record.numbers if label == "first"]
    second = [value for label, value in record.numbers if label == "second"]
    return [(record.plot, a, b) for a, b in zip(first, second, strict=True)]


def units_of(mean: Attribution, held: Attribution, choices: Sequence[Choice]) -> tuple[Unit, ...]:
    """The units that attribution chose, at the largest K of each kind, with their scores on either half."""
    scores = {"head": (mean.heads, held.heads), "neuron": (mean.neurons, held.neurons)}
    largest: dict[str, Choice] = {}
    for choice in choices:
        if choice.rule == "attribution" and (choice.site not in largest or choice.k > largest[choice.site].k):
            largest[choice.site] = choice
    return tuple(
        Unit(
            kind=choice.site,
            layer=layer,
            index=index,
            score=float(score[layer, index]),
            held=float(again[layer, index]),
        )
        for choice in largest.values()
        for score, again in [scores[choice.site]]
        for layer, index in choice.units
    )


def _arrays(
    target: LocalTarget,
    name: str,
    plot: str,
    members: Sequence[Twin],
    *,
    numbers: Sequence[tuple[str, float]] = (),
    blob: object = None,
) -> Arrays:
    return Arrays(
        name=name,
        target=target.card.id,
        plot=plot,
        cases=tuple(t.name for t in members),
        numbers=tuple(numbers),
        blob=blob,
        parents=(target.card.id,),
    )


def _units_of_work(
    stage: str,
    target: LocalTarget,
    plots: dict[str, list[Twin]],
    more: Mapping[str, object],
    work: Callable[[tuple[str, list[Twin]]], Sequence[Record]],
    store: Store,
    watcher: Watcher | None,
) -> list[Arrays]:
    units = [
        Work(
            item=(plot, members), stage=stage,
            inputs={"target": target.card.id, "twins": [identity(t) for t in members], **more},
        )
        for plot, members in plots.items()
    ]  # fmt: skip
    done = run(units, work, ledger=store, watcher=watcher, label=f"trace: {stage}")
    return [record for records in done for record in records if isinstance(record, Arrays)]


def identity(twin: Twin) -> str:
    """A digest of what is asked on both sides."""
    sides = (twin.first.functional, twin.second.functional)
    return digest_of([[f.tree.ids_N.tolist(), f.tree.parent_N.tolist(), f.weight_M.tolist()] for f in sides])
