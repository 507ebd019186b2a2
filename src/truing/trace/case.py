"""The attribution graph of one decision in one context, its accounts checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from truing.errors import UsageError
from truing.records import CaseGraph, Circuit, Claim, digest_of
from truing.runner import Silent, Watcher, run
from truing.runner import Unit as Work
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.inside import llama_shaped
from truing.targets.protocols import Chat
from truing.trace.ablate import check_aligned
from truing.trace.auto import AutoEngine
from truing.trace.causal import Causal, Checks, check, room
from truing.trace.context import Context
from truing.trace.derive import decision_of
from truing.trace.engine import Engine
from truing.trace.feature_check import check_features, feature_room
from truing.trace.feature_set import FeatureSet, features_written
from truing.trace.features import DictionaryEngine
from truing.trace.hand import HandEngine
from truing.trace.influence import Scores, prune, scores
from truing.trace.labels import tokens_written
from truing.trace.leak import check_closed
from truing.trace.named import Naming, named
from truing.trace.picked import Picked
from truing.trace.plan import plan
from truing.trace.readable import check_readable
from truing.trace.rows import Row
from truing.trace.rules import RULES, Rule
from truing.trace.select import assembled, select
from truing.trace.stability import stability

LABELLED = 200
"""Neurons of which it is said what they write."""


@dataclass(frozen=True, slots=True)
class CaseSettings:
    """How large a graph is."""

    neurons: int = 512
    rule: Rule = "relp"
    keep_nodes: float = 0.8
    """Share of the influence that is left in nodes after pruning; 1 keeps all."""
    keep_edges: float = 0.98
    check: bool = True
    """Whether neurons are ablated to see if the graph is right."""
    checks: Checks = field(default_factory=Checks)
    """How much of that is done."""
    full: bool = False
    """Whether all of them are ablated by themselves, not a sample."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"unknown rule {self.rule!r}: contributions add up under {' and '.join(RULES)}")
        if self.neurons < 1 or not (0 < self.keep_nodes <= 1 and 0 < self.keep_edges <= 1):
            raise UsageError(
                f"a graph has at least one neuron and keeps shares between 0 and 1; asked for {self.neurons} neurons,"
                f" {self.keep_nodes} of nodes and {self.keep_edges} of edges"
            )


@dataclass(frozen=True, slots=True)
class Beside:
    """Other cases that the graph is checked with."""

    twin: Context | None = None
    """A counterfactual: as many tokens in the prompt, and the same continuations."""
    paraphrases: tuple[Context, ...] = ()
    """The same said in other words: are their graphs made of the same neurons?"""


def trace_case(
    target: LocalTarget,
    context: Context,
    store: Store,
    *,
    beside: Beside | None = None,
    settings: CaseSettings | None = None,
    claim: Claim | None = None,
    features: FeatureSet | None = None,
    naming: Naming | None = None,
    namer: Chat | None = None,
    watcher: Watcher | None = None,
) -> CaseGraph:
    """The graph of a decision, checked by ablation; in `features` where they are given, rather than in neurons.
    TargetError where memory is short, where contributions do not add up, or where a twin does not align. `naming`: what
    its neurons are labelled from; without, none is. `namer`: a target that is asked for short names of the first.

    One case is an illustration: for evidence, trace a claim.
    """
    settings, watcher, beside = settings or CaseSettings(), watcher or Silent(), beside or Beside()
    check_readable(target)
    if beside.twin:  # before a graph is computed, not after
        check_aligned(context.functional, beside.twin.functional)

    def work(_: None) -> list[CaseGraph]:
        found = _traced(target, context, store, _How(settings, beside, features), claim, watcher)
        store.add(target.card)  # of a trace that fails nothing is kept
        return [found]

    inputs = {
        "target": target.card.id, "case": _identity(context), "settings": asdict(settings),
        "twin": beside.twin and _identity(beside.twin), "paraphrases": list(map(_identity, beside.paraphrases)),
        "claim": claim and claim.id, **({"features": features.identity} if features else {}),
    }  # fmt: skip
    ((graph,),) = run([Work(item=None, stage="case", inputs=inputs)], work, ledger=store, label="trace: case")
    assert isinstance(graph, CaseGraph)
    return graph if naming is None else named(target, graph, store, naming, namer=namer, watcher=watcher)


@dataclass(frozen=True, slots=True)
class _How:
    settings: CaseSettings
    beside: Beside
    features: FeatureSet | None


@dataclass(frozen=True, slots=True)
class Accounted:
    """A graph before pruning, and what belongs to it."""

    circuit: Circuit
    picked: Picked
    """Its neurons, with what they add by all paths."""
    inputs: tuple[float, ...]
    """What tokens add by all paths."""
    biases: float
    """What biases add."""
    value: float
    """What contributions add up to."""
    error: float
    """The closure error of the worst node."""
    candidates: int


def account(
    target: LocalTarget,
    context: Context,
    settings: CaseSettings,
    watcher: Watcher | None = None,
    features: FeatureSet | None = None,
) -> Accounted:
    """The whole graph of a decision. TargetError where memory is short, or where contributions do not add up."""
    watcher = watcher or Silent()
    tree = context.functional.tree
    engine, batch = _engine(target, context, settings, features, watcher)
    watcher.start(f"trace: {'features' if features else 'neurons'}", settings.neurons)
    rows = select(engine, settings.neurons, batch=batch, told=_steps(watcher))
    error = _closed(target, context, rows, settings.rule)
    circuit = assembled(rows, engine, tree.ids_N.tolist())
    nodes = circuit.of("neuron").nonzero()[0]
    spots = list(zip(*(x[nodes].tolist() for x in (circuit.layer_N, circuit.position_N, circuit.index_N)), strict=True))
    tokens, carried = engine.by_all_paths(spots)
    return Accounted(
        circuit, Picked.of(spots, carried.tolist(), circuit.influence_N[nodes].tolist()),
        tuple(tokens.embeddings_BT[0].tolist()), float(tokens.biases_B[0]), engine.value(None), error,
        engine.nodes * (features.count if features else engine.layers * engine.width),
    )  # fmt: skip


def _engine(
    target: LocalTarget, context: Context, settings: CaseSettings, features: FeatureSet | None, watcher: Watcher
) -> tuple[Engine, int]:
    """What the graph is computed with, and how many targets at once."""
    model, nodes = target.model, len(context.functional.tree)
    by_hand = llama_shaped(model)
    planned = plan(model, nodes, settings.neurons, budget=target.budget, by_hand=by_hand)
    if features is None:
        watcher.say(f"{target.card.name}: {planned}")
        return (HandEngine if by_hand else AutoEngine)(model, context.functional, settings.rule), planned.batch
    engine = DictionaryEngine(model, context.functional, features.layers, settings.rule, beginning=features.beginning)
    # Each target has a number for every active feature, and another while they are looked through.
    more = 2 * 4 * sum(len(active.value_S) for active in engine.active)
    planned = plan(model, nodes, settings.neurons, budget=target.budget, by_hand=True, more=more)
    watcher.say(f"{target.card.name}: {planned}".replace("neurons", "features"))
    return engine, planned.batch


def _traced(
    target: LocalTarget,
    context: Context,
    store: Store,
    how: _How,
    claim: Claim | None,
    watcher: Watcher,
) -> CaseGraph:
    settings, features = how.settings, how.features
    _plan_check(target, context, how, watcher)  # before the graph, which would be lost
    # The engine, which holds what the pass computed, is gone by the time that neurons are ablated.
    whole = account(target, context, settings, watcher, features)
    others = [account(target, other, settings, watcher, features).picked for other in how.beside.paraphrases]
    causal = _checked(target, context, whole.picked, how, watcher)
    steady = stability([_listed(one) for one in (whole.picked, *others)]) if others else ()
    found: Scores = scores(whole.circuit)
    pruned = prune(whole.circuit, nodes=settings.keep_nodes, edges=settings.keep_edges)
    functional = context.functional
    return CaseGraph(
        target=target.card.id, claim=claim and claim.id, tokens=_texts(target, functional.tree.ids_N.tolist()),
        before=tuple(functional.tree.parent_N.tolist()), segments=context.segment_T, prompt=functional.prompt,
        actions=context.actions, alternatives=context.alternatives, value=_value(target, context),
        accounted=whole.value, inputs=whole.inputs, biases=whole.biases, rule=settings.rule,
        basis=features.basis if features else "neurons",
        layers=target.model.config.get_text_config().num_hidden_layers, selected=len(whole.picked),
        candidates=whole.candidates, closure_error=whole.error, replacement=found.replacement,
        completeness=found.completeness, kept=(settings.keep_nodes, settings.keep_edges),
        graph=store.put_blob(pruned.packed(), "safetensors"), writes=_writes(target, pruned, features),
        curves=causal.curves, checks=(*causal.checks, *steady), verdict=causal.verdict, why=causal.why,
        parents=(target.card.id, *([claim.id] if claim else [])),
    )  # fmt: skip


def _plan_check(target: LocalTarget, context: Context, how: _How, watcher: Watcher) -> None:
    """Say what the causal check will take. TargetError where it does not fit."""
    if not how.settings.check:
        return
    twin = how.beside.twin is not None
    if how.features:
        planned = feature_room(target, context.functional, how.features, twin=twin)
    else:
        planned = room(target, context.functional, twin=twin)
    watcher.say(f"{target.card.name}: {planned}")


def _checked(target: LocalTarget, context: Context, picked: Picked, how: _How, watcher: Watcher) -> Causal:
    settings, beside = how.settings, how.beside
    if not settings.check:
        return Causal((), (), "inconclusive", "no causal check was made")
    twin = beside.twin.functional if beside.twin else None
    checks = replace(settings.checks, singly=len(picked)) if settings.full else settings.checks
    if how.features:
        return check_features(target, context.functional, picked, how.features, twin=twin, seed=settings.seed,
                              settings=checks, told=_renamed(watcher))  # fmt: skip
    return check(target, context.functional, picked, twin=twin, seed=settings.seed, settings=checks, told=watcher.say)


def _renamed(watcher: Watcher) -> Callable[[str], None]:
    return lambda line: watcher.say(line.replace("neuron", "feature"))


def _writes(
    target: LocalTarget, circuit: Circuit, features: FeatureSet | None
) -> tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]:
    """What the neurons, or features, with the largest influence write."""
    nodes = sorted(circuit.of("neuron").nonzero()[0].tolist(), key=lambda n: -float(circuit.influence_N[n]))
    units = list(dict.fromkeys((int(circuit.layer_N[n]), int(circuit.index_N[n])) for n in nodes))[:LABELLED]
    found = features_written(target, features, units) if features else tokens_written(target, units)
    return tuple((f"{layer}.{index}", *texts) for (layer, index), texts in zip(units, found, strict=True))


def _listed(picked: Picked) -> list[tuple[int, int, float]]:
    """Layer, neuron and influence."""
    units = picked.places[:, [0, 2]].tolist()
    return [(layer, neuron, float(one)) for (layer, neuron), one in zip(units, picked.influence_K, strict=True)]


def _closed(target: LocalTarget, context: Context, rows: Sequence[Row], rule: Rule) -> float:
    """The largest closure error. TargetError, which names the module that leaks, where it is too large."""
    error = float(torch.tensor([row.error for row in rows]).max())  # in which no NaN is lost
    check_closed(target, context.functional, rule, error)
    return error


def _value(target: LocalTarget, context: Context) -> float:
    from truing.targets.local.inside import forward

    logits = forward(target.model, context.functional.tree, context.functional.before_M.unique()).logits
    return float(decision_of(context.functional, logits.detach())[0])


def _texts(target: LocalTarget, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(target.tokenizer.decode([token]) for token in ids)


def _steps(watcher: Watcher) -> Callable[[int], None]:
    done = 0

    def told(count: int) -> None:
        nonlocal done
        watcher.step(count - done)
        done = count

    return told


def _identity(context: Context) -> str:
    f = context.functional
    said: list[Any] = [f.tree.ids_N.tolist(), f.tree.parent_N.tolist(), f.nodes_M.tolist(), f.weight_M.tolist()]
    return digest_of([*said, list(context.segment_T)])
