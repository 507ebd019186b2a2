"""Trace a claim: attribute on one half, check by patching on the other, draw the graph, give a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from truing.errors import TargetError, UsageError
from truing.records import Arrays, Claim, Edge, Graph, Node, Surface, Unit, Unmeasured
from truing.runner import Silent, Watcher, run
from truing.runner import Unit as Work
from truing.stats import cluster_mean
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.change import counts, layers
from truing.targets.local.inside import Site, llama_shaped
from truing.trace.accounts import TOGETHER, Spot
from truing.trace.attribute import SCORINGS, TRIVIAL, Attribution, Scoring
from truing.trace.averaging import averaged, segments_of
from truing.trace.closing import closed
from truing.trace.draw import draw
from truing.trace.judge import judge
from truing.trace.leak import lost_in
from truing.trace.mediate import Choice, choose
from truing.trace.ordinary import ordinary
from truing.trace.patching import decisions, patched_on, shares
from truing.trace.plan import Plan, plan
from truing.trace.readable import check_readable, check_units
from truing.trace.room import through_twins
from truing.trace.specific import compared
from truing.trace.twins import Twin, twins

CLOSURE = 1e-4
"""Above this the accounts do not close and no picture is given (fp32)."""
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

    @property
    def together(self) -> int:
        """Choices of units that are patched in one batch, at most: of this effect, or of all ordinary ones beside."""
        beside = 1 + len(TRIVIAL)  # by attribution, and by what is trivial; then random and shuffled ones
        own = len(self.heads) * (beside + 2 * self.draws) + len(self.neurons) * (beside + 2)
        return max(own, (len(self.heads) + len(self.neurons)) * (1 + len(ordinary())))

    def within(self, target: LocalTarget) -> Settings:
        """The same for a small model: K is at most a quarter of what there is."""
        check_readable(target)
        blocks, of_each = len(layers(target.model)), counts(target.model)
        heads, neurons = (blocks * of_each[site] // 4 for site in ("head", "neuron"))
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
    settings = (settings or Settings()).within(target)
    choosing, skipped = twins(target, effect.choosing, effect.cells, per_plot=settings.per_plot)
    testing, skipped_too = twins(target, effect.testing, effect.cells, per_plot=settings.per_plot)
    plan_twins(target, [*choosing, *testing], settings, watcher)
    closed(target, choosing[0], settings.rule)
    store.add(target.card)
    segments = segments_of([*choosing, *testing])
    mean, sources = averaged(target, choosing, segments, store, watcher, name=CHOOSING, rule=settings.rule)
    held, held_sources = averaged(target, testing, segments, store, watcher, name=TESTING, rule=settings.rule)
    choices = chosen_by(mean, settings)
    patched = patched_on(target, testing, choices, store, watcher)
    few, _ = twins(target, effect.testing, effect.cells, per_plot=1)
    mediated, beside = compared(target, few, choices, shares(patched, choices), store, watcher, rule=settings.rule)
    parents = (
        target.card.id,
        *([effect.claim.id] if effect.claim else []),
        *sorted({r.id for r in (*sources, *held_sources, *patched, *beside)}),
    )

    def work(_: None) -> list[Graph]:
        spots = strongest(mean, segments, settings.drawn)
        nodes, edges, error, note = _drawn(target, choosing, spots, segments, settings)
        verdict, why = judge(mediated)
        whole = [row for record in patched for row in decisions(record)]
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
            why=why + note,
            rule="" if settings.rule == "relp" else settings.rule,
            parents=parents,
        )
        return [graph]

    return _kept(work, {"parents": list(parents), "settings": settings.said}, store)


def chosen_by(mean: Attribution, settings: Settings) -> list[Choice]:
    """The units that scores choose, and those that are patched beside them."""
    sites: tuple[tuple[Site, tuple[int, ...], int], ...] = (
        ("head", settings.heads, settings.draws),
        ("neuron", settings.neurons, 1),
    )
    return [
        choice
        for site, ks, draws in sites
        for k in ks
        for choice in choose(site, k, mean.scores(site), mean.trivial(site), draws=draws, seed=settings.seed + k)
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
    are the largest of many, and those of any other would look smaller. TargetError where the model has no such units.
    """
    settings = (settings or Settings()).within(target)
    spots = [(node.layer, node.index, node.segment) for node in graph.nodes if node.kind == "neuron"]
    check_units(target.model, [(unit.kind, unit.layer, unit.index) for unit in graph.units])
    check_units(target.model, [("neuron", layer, index) for layer, index, _ in spots])
    choosing, skipped = twins(target, effect.choosing, effect.cells, per_plot=settings.per_plot)
    testing, skipped_too = twins(target, effect.testing, effect.cells, per_plot=settings.per_plot)
    plan_twins(target, [*choosing, *testing], settings, watcher, patched=False)
    held, sources = averaged(target, testing, graph.segments, store, watcher, name=TESTING, rule=settings.rule)
    parents = (target.card.id, graph.id, *sorted({r.id for r in sources}))

    def work(_: None) -> list[Graph]:
        nodes, edges, error, note = _drawn(target, choosing, spots, graph.segments, settings)
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
                "why": f"the units of another model's graph, read in this one; not patched{note}",
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
) -> tuple[tuple[Node, ...], tuple[Edge, ...], float, str]:
    """The picture over a few twins, its closure error, and what is to be said of it.

    Where the accounts do not close, there is no picture, which is said; TargetError, where blocks were gone through by
    hand or memory is short.
    """
    few, at_once = pairs[:: max(1, -(-len(pairs) // settings.drawn_twins))], _at_once(target, pairs, len(spots))
    nodes, edges, error = draw(target.model, few, spots, segments, at_once=at_once)
    closes = error <= CLOSURE  # which no NaN is
    lost = "" if closes else lost_in(target.model, few[0].first.functional, "relp")
    if not closes and not llama_shaped(target.model):
        note = (
            f"; no picture: the linear rules do not hold for a {type(target.model).__name__}, whose contributions do"
            f" not add up (relative error {error:.1e}, allowed {CLOSURE:.0e}{lost}), nor are its scores by them to be"
            " trusted"
        )
        return (), (), error, note
    if not closes:
        raise TargetError(
            f"the accounts of {target.card.name} ({type(target.model).__name__}) do not close: relative error"
            f" {error:.1e}, allowed {CLOSURE:.0e}{lost}."
            " Its blocks are not what the linear rules assume, so no graph is given."
        )
    return nodes, edges, error, ""


def plan_twins(
    target: LocalTarget,
    pairs: Sequence[Twin],
    settings: Settings,
    watcher: Watcher | None,
    *,
    patched: bool = True,
    drawn: bool = True,
) -> None:
    """Say what going through twins will take, before anything is computed. TargetError where it does not fit.

    `patched`, `drawn`: whether units are patched, and a picture is drawn.
    """
    spots, say = settings.drawn if drawn else 0, (watcher or Silent()).say
    rows = settings.together if patched else 0
    say(f"{target.card.name}: {through_twins(target.model, pairs, rows=rows, spots=spots, budget=target.budget)}")
    if not llama_shaped(target.model):
        say(f"{target.card.name}: {_of_a_pass(target, pairs, spots)}")


def _at_once(target: LocalTarget, pairs: Sequence[Twin], spots: int) -> int:
    """Targets of the picture that go back together. TargetError where memory does not hold the graph of a pass, which
    is kept where blocks are not gone through by hand.
    """
    if llama_shaped(target.model):
        return TOGETHER
    return min(TOGETHER, _of_a_pass(target, pairs, spots).batch)


def _of_a_pass(target: LocalTarget, pairs: Sequence[Twin], spots: int) -> Plan:
    """What the graph of a pass over the longest twin takes."""
    most = max(len(side.functional.tree) for twin in pairs for side in (twin.first, twin.second))
    return plan(target.model, most, spots, budget=target.budget, by_hand=False)


def strongest(mean: Attribution, segments: Sequence[str], count: int) -> list[Spot]:
    """The (layer, neuron, segment) spots with the largest mean attribution, either sign."""
    _, layers, neurons = mean.neurons_by_segment.shape
    order = mean.neurons_by_segment.abs().flatten().topk(count).indices.tolist()
    return [((i // neurons) % layers, i % neurons, segments[i // (neurons * layers)]) for i in order]


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
