"""The causal check of a case's graph in features: that of `causal`, with features ablated in the place of neurons."""

from __future__ import annotations

from truing.errors import TargetError
from truing.records import Named
from truing.targets.local import Functional, LocalTarget
from truing.trace.ablate import Bench, counterfactual, mean, zero
from truing.trace.causal import Causal, Checks, Told, examine
from truing.trace.feature_ablation import FP32, Features
from truing.trace.feature_set import FeatureSet
from truing.trace.picked import Picked
from truing.trace.room import Room, ablating, held


def check_features(
    target: LocalTarget,
    case: Functional,
    picked: Picked,
    features: FeatureSet,
    *,
    twin: Functional | None = None,
    seed: int = 0,
    settings: Checks | None = None,
    told: Told = lambda _: None,
) -> Causal:
    """Check the features of a graph by ablating them, alone and together; see `causal.check`.

    Random ones are other features that are active at the same places. TargetError for a twin that does not align, and
    where their activations at all tokens do not fit the memory: how much there is today is no part of a record.
    """
    if not len(picked):
        return Causal((), (), "inconclusive", "the graph has no features")
    feature_room(target, case, features, twin=twin is not None)
    basis, memory = _basis(target, features), target.budget
    left = memory - (0 if twin is None else held(target.model, len(case.tree), basis))
    bench = Bench(target.model, case, memory=left, basis=basis)
    references = [zero(bench), mean(bench)]
    if twin is not None:
        references.append(counterfactual(bench, twin, memory=left))
    return of_features(examine(bench, references, picked, seed=seed, settings=settings or Checks(), told=told))


def feature_room(target: LocalTarget, case: Functional, features: FeatureSet, *, twin: bool) -> Room:
    """What the check takes, before it is made. TargetError, with the numbers, where it does not fit."""
    memory, tables = target.budget, len(case.tree) * features.count * FP32 * (2 if twin else 1)
    if tables > memory // 2:
        raise TargetError(
            f"checking features takes their activations at all tokens, {tables / 1e6:,.0f} MB, more than half of the"
            f" {memory / 1e6:,.0f} MB allowed. Allow more (TRUING_MAX_MEMORY), or trace without a check (--no-check)"
        )
    return ablating(target.model, case, _basis(target, features), budget=memory, twin=twin, unit="feature")


def _basis(target: LocalTarget, features: FeatureSet) -> Features:
    return Features(target.model, features.layers, beginning=features.beginning)


def of_features(found: Causal) -> Causal:
    """The same in other words: on a bench, whatever is ablated is called a neuron."""
    checks = tuple(
        Named.model_validate_json(one.model_dump_json().replace("neuron", "feature")) for one in found.checks
    )
    return Causal(found.curves, checks, found.verdict, found.why.replace("neuron", "feature"))


__all__ = ["check_features", "feature_room", "of_features"]
