"""The attribution graph of one decision in one context, its accounts checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from truing.errors import TargetError, UsageError
from truing.records import CaseGraph, Circuit, Claim, digest_of
from truing.runner import Silent, Watcher, run
from truing.runner import Unit as Work
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.inside import llama_shaped
from truing.targets.local.lift import short_format
from truing.targets.local.tree import takes_trees
from truing.trace.auto import AutoEngine
from truing.trace.context import Context
from truing.trace.derive import decision_of
from truing.trace.engine import Engine
from truing.trace.hand import HandEngine
from truing.trace.influence import Scores, prune, scores
from truing.trace.leak import leaking
from truing.trace.plan import plan
from truing.trace.rows import Row
from truing.trace.rules import RULES, Rule
from truing.trace.select import assembled, select

LEAK = 1e-3
"""Relative closure error above which no graph is given."""


@dataclass(frozen=True, slots=True)
class CaseSettings:
    """How large a graph is."""

    neurons: int = 512
    rule: Rule = "relp"
    keep_nodes: float = 0.8
    """Share of the influence that is left in nodes after pruning; 1 keeps all."""
    keep_edges: float = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"unknown rule {self.rule!r}: contributions add up under {' and '.join(RULES)}")
        if self.neurons < 1 or not (0 < self.keep_nodes <= 1 and 0 < self.keep_edges <= 1):
            raise UsageError(
                f"a graph has at least one neuron and keeps shares between 0 and 1; asked for {self.neurons} neurons,"
                f" {self.keep_nodes} of nodes and {self.keep_edges} of edges"
            )


def trace_case(
    target: LocalTarget,
    context: Context,
    store: Store,
    *,
    settings: CaseSettings | None = None,
    claim: Claim | None = None,
    watcher: Watcher | None = None,
) -> CaseGraph:
    """The graph of a decision. TargetError where memory is short, or where contributions do not add up.

    One case is an illustration: for evidence, trace a claim.
    """
    settings, watcher = settings or CaseSettings(), watcher or Silent()
    _check(target)
    store.add(target.card)

    def work(_: None) -> list[CaseGraph]:
        return [_traced(target, context, store, settings, claim, watcher)]

    inputs = {
        "target": target.card.id, "case": _identity(context), "settings": asdict(settings),
        "claim": claim and claim.id,
    }  # fmt: skip
    ((graph,),) = run([Work(item=None, stage="case", inputs=inputs)], work, ledger=store, label="trace: case")
    assert isinstance(graph, CaseGraph)
    return graph


def circuit_of(
    target: LocalTarget, context: Context, settings: CaseSettings, watcher: Watcher | None = None
) -> tuple[Circuit, Engine, float]:
    """The whole graph before pruning, the engine that it came from, and the closure error of its worst node."""
    watcher = watcher or Silent()
    model, tree = target.model, context.functional.tree
    by_hand = llama_shaped(model)
    planned = plan(model, len(tree), settings.neurons, budget=target.budget, by_hand=by_hand)
    watcher.say(f"{target.card.name}: {planned}")
    engine: Engine = (HandEngine if by_hand else AutoEngine)(model, context.functional, settings.rule)
    watcher.start("trace: neurons", settings.neurons)
    rows = select(engine, settings.neurons, batch=planned.batch, told=_steps(watcher))
    error = _closed(target, context, rows, settings.rule)
    return assembled(rows, engine, tree.ids_N.tolist()), engine, error


def _traced(
    target: LocalTarget, context: Context, store: Store, settings: CaseSettings, claim: Claim | None, watcher: Watcher
) -> CaseGraph:
    whole, engine, error = circuit_of(target, context, settings, watcher)
    found: Scores = scores(whole)
    pruned = prune(whole, nodes=settings.keep_nodes, edges=settings.keep_edges)
    functional = context.functional
    return CaseGraph(
        target=target.card.id, claim=claim and claim.id, tokens=_texts(target, functional.tree.ids_N.tolist()),
        before=tuple(functional.tree.parent_N.tolist()), segments=context.segment_T, prompt=functional.prompt,
        actions=context.actions, alternatives=context.alternatives, value=_value(target, context),
        accounted=engine.value(None), inputs=tuple(engine.inputs().embeddings_BT[0].tolist()), rule=settings.rule,
        basis="neurons", layers=engine.layers, selected=int(whole.of("neuron").sum()),
        candidates=engine.layers * engine.nodes * engine.width, closure_error=error, replacement=found.replacement,
        completeness=found.completeness, kept=(settings.keep_nodes, settings.keep_edges),
        graph=store.put_blob(pruned.packed(), "safetensors"), verdict="inconclusive", why="no causal check was made",
        parents=(target.card.id, *([claim.id] if claim else [])),
    )  # fmt: skip


def _check(target: LocalTarget) -> None:
    need(target, "Scored")
    name = target.card.name
    if short_format(target.model):
        raise TargetError(
            f"tracing accounts for every part of a decision, which {target.card.dtype} rounds too much for;"
            f" load {name} in fp32 (TRUING_DTYPE=fp32)"
        )
    if getattr(target.model, "is_quantized", False):
        raise TargetError(f"{name} is quantised, and its derivatives are not those of its products; load it in fp32")
    if not takes_trees(target.model):
        raise TargetError(
            f"{name} ({type(target.model).__name__}) takes no trees of texts, which a decision is laid out along;"
            " trace a transformer"
        )


def _closed(target: LocalTarget, context: Context, rows: Sequence[Row], rule: Rule) -> float:
    """The largest closure error. TargetError, which names the module that leaks, where it is too large."""
    error = max(row.error for row in rows)
    if error > LEAK:
        module = leaking(target.model, context.functional, rule)
        raise TargetError(
            f"the accounts of {target.card.name} ({type(target.model).__name__}) do not close: relative error"
            f" {error:.1e}, allowed {LEAK:.0e}. {f'What is lost is lost in {module}. ' * bool(module)}"
            "The linear rules do not hold for it, so no graph is given."
        )
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
