"""The causal check of a case's graph: does the model do what the graph says when its neurons are changed?

Attention is free to follow. Every number stands beside that of activation size and of random neurons.
"""

# K places of the graph

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from truing.records import Curve, Estimate, Named, Quantity, Unmeasured
from truing.targets.local import Functional, LocalTarget
from truing.trace.ablate import Bench, Neurons, Reference, counterfactual, mean, zero
from truing.trace.curves import Drawn, Orders, curves, emptied, enough, gap, sizes, slight
from truing.trace.jointly import Doses, Jointly, doses, jointly
from truing.trace.picked import Picked, most_active
from truing.trace.room import Room, ablating, held
from truing.trace.singly import Singly, between, pearson, singly, spearman
from truing.trace.verdict import Evidence, Verdict, verdict

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checks:
    """How much is checked."""

    sizes: int = 8
    """Numbers of neurons on a curve."""
    draws: int = 2
    """Random sets of each size."""
    singly: int = 64
    """Neurons that are ablated alone."""
    shams: int = 39
    """Graphs with scores dealt out anew: the best of 40 is the graph itself with p = 1 in 40."""
    jointly: int = 32
    """Neurons that are ablated, and turned up and down, together."""
    resamples: int = 999


@dataclass(frozen=True, slots=True)
class Causal:
    """What a check found, as the fields of a CaseGraph."""

    curves: tuple[Curve, ...]
    checks: tuple[Named, ...]
    verdict: Verdict
    why: str


def check(
    target: LocalTarget,
    case: Functional,
    picked: Picked,
    *,
    twin: Functional | None = None,
    given: Sequence[Tensor] | None = None,
    seed: int = 0,
    settings: Checks | None = None,
    told: Told = lambda _: None,
) -> Causal:
    """Check the neurons of a graph by ablating them, alone and together.

    `twin`: a case of equal length, for counterfactual ablation. `given`: activations by layer, shape (N, F), whose
    means neurons are set to; without them, those at the case's own prompt. `told`: is told what is done next.
    TargetError for a model whose neurons cannot be ablated, for a twin that does not align, and where memory is short.
    """
    if not len(picked):
        return Causal((), (), "inconclusive", "the graph has no neurons")
    room(target, case, twin=twin is not None)
    memory = target.budget - (0 if twin is None else held(target.model, len(case.tree), Neurons(target.model)))
    bench = Bench(target.model, case, memory=memory)
    references = [zero(bench), mean(bench, given)]
    if twin is not None:
        references.append(counterfactual(bench, twin, memory=memory))
    return examine(bench, references, picked, seed=seed, settings=settings or Checks(), told=told)


def room(target: LocalTarget, case: Functional, *, twin: bool) -> Room:
    """What the check takes, before it is made. TargetError, with the numbers, where it does not fit."""
    return ablating(target.model, case, Neurons(target.model), budget=target.budget, twin=twin)


def examine(
    bench: Bench, references: Sequence[Reference], picked: Picked, *, seed: int, settings: Checks, told: Told
) -> Causal:
    """The same on a bench. Neurons are counted, and moved one by one, by all references; the verdict's tests are those
    of the first two, which its rule was calibrated with.
    """
    told("curves of faithfulness and completeness")
    drawn, empty = _curves(bench, references, picked, settings, seed)
    told("single neurons")
    alone = [
        singly(bench, reference, picked, count=settings.singly, seed=seed, resamples=settings.resamples)
        for reference in references
    ]
    told("neurons together")
    together = [
        jointly(bench, reference, picked, most=settings.jointly, shams=settings.shams, seed=seed)
        for reference in references[:2]
    ]
    turned = doses(bench, references[0], picked, most=settings.jointly)
    decided, why = verdict([_evidence(ablation, some, alone[:2], together) for ablation, some in drawn.items()])
    checks = (
        *_of_curves(bench, drawn, empty),
        *(named for one in alone for named in _of_singles(one, seed, settings.resamples)),
        *(named for one in together for named in _of_sets(one)),
        *_of_doses(turned, together[0].places),
    )
    return Causal(tuple(one.curve for some in drawn.values() for one in some), checks, decided, why)


def _curves(
    bench: Bench, references: Sequence[Reference], picked: Picked, settings: Checks, seed: int
) -> tuple[dict[str, list[Drawn]], dict[str, float]]:
    """By ablation; none where neurons carry hardly any of the decision."""
    rng = np.random.default_rng(seed)
    best = picked.by(np.abs(picked.score_K))
    orders: Orders = {
        "attribution": [best],
        "influence": [picked.by(picked.influence_K)],
        "activation": [most_active(bench.neurons, len(picked))],
        "random": [bench.basis.matched(bench.neurons, best, rng) for _ in range(settings.draws)],
    }
    empty = {r.name: value for r, value in zip(references, emptied(bench, references), strict=True)}
    ks = sizes(len(picked), settings.sizes)
    return {
        str(r.name): [] if slight(bench.value, empty[r.name]) else curves(bench, r, empty[r.name], orders, ks)
        for r in references
    }, {str(name): value for name, value in empty.items()}  # fmt: skip


def _evidence(name: str, drawn: Sequence[Drawn], alone: Sequence[Singly], together: Sequence[Jointly]) -> Evidence:
    shares = {d.curve.choice: d for d in drawn if d.curve.name == "faithfulness"}
    single = next((one for one in alone if one.ablation == name), None)
    joint = next((one for one in together if one.ablation == name), None)
    return Evidence(
        ablation=name,
        told=single.told if single else None,
        told_p=single.told_p if single else 1.0,
        moved=joint.effect if joint else 0.0,
        moved_p=joint.p if joint else 1.0,
        foretold=joint.predicted if joint else 0.0,
        carried=shares["attribution"].share if shares else None,
        active=shares["activation"].share if shares else None,
        random=shares["random"].ends if shares else (),
        ranked=_ranked(np.abs(single.predicted), single) if single else 0.0,
        ranked_by_activation=_ranked(single.activation, single) if single else 0.0,
    )


def _ranked(size: np.ndarray, one: Singly) -> float:
    return spearman(size, np.abs(one.effect))


# -- as numbers of a record --------------------------------------------------------------------------------------------


def _of_curves(bench: Bench, drawn: Mapping[str, Sequence[Drawn]], empty: Mapping[str, float]) -> list[Named]:
    found = []
    for ablation, some in drawn.items():
        name, unit = f"decision with all neurons ablated ({ablation})", "nats/token"
        found.append(Named(name=name, quantity=_exact(empty[ablation], unit, 1)))
        if not some:
            none = Unmeasured(reason="neurons carry hardly any of the decision, so there is no share of it to give")
            found.append(Named(name=f"faithfulness ({ablation})", quantity=none))
        for one in some:
            what = f"{ablation}, by {one.curve.choice}"
            if one.curve.name == "faithfulness":
                found += _of_curve(one, what, bench)
            else:
                note = f"what is left without these {one.most} neurons; 0 is best"
                found.append(Named(name=f"completeness ({what})", quantity=_exact(one.share, "share", 1), note=note))
    return found


def _of_curve(one: Drawn, what: str, bench: Bench) -> list[Named]:
    reached = enough(one)
    highest = max(value for k, value in one.curve.points if k <= one.most)
    n80: Quantity = Unmeasured(reason=f"at no size up to {one.most}; the highest share is {highest:.2f}")
    if reached is not None:
        n80 = _exact(reached, "neurons", len(one.curve.points))
    note = f"of {one.most} neurons in the graph and {bench.candidates} in all"
    ends = Estimate(
        value=one.share, low=min(*one.ends, one.share), high=max(*one.ends, one.share), level=1.0, n=len(one.ends),
        clusters=1, unit="share", estimator="exact in this case; the range of draws where there are several",
    )  # fmt: skip
    return [
        Named(name=f"faithfulness ({what})", quantity=ends, note=note),
        Named(name=f"CMD ({what})", quantity=_exact(gap(one), "share", len(one.curve.points)), note="0 is best"),
        Named(name=f"neurons for F >= 0.8 ({what})", quantity=n80),
    ]


def _of_singles(one: Singly, seed: int, resamples: int) -> list[Named]:
    size, by = np.abs(one.effect), f" ({one.ablation})"
    pairs = (
        ("attribution and exact effect, Pearson", pearson, one.predicted, one.effect),
        ("influence and size of exact effect, Spearman", spearman, one.influence, size),
        ("size of attribution and of exact effect, Spearman", spearman, np.abs(one.predicted), size),
        ("activation and size of exact effect, Spearman", spearman, one.activation, size),
        ("activation and size of exact effect, Pearson", pearson, one.activation, size),
    )
    p = f"p = {one.told_p:.3f} among scores dealt out anew"
    return [
        Named(name="attribution and exact effect, Spearman" + by, quantity=one.told, note=p),
        *(
            Named(name=name + by, quantity=between(how, x, y, f"{how.__name__} correlation".capitalize(), seed=seed,
                                                   resamples=resamples))
            for name, how, x, y in pairs
        ),
    ]  # fmt: skip


def _of_sets(one: Jointly) -> list[Named]:
    shams = f"shams move it by {np.mean(one.shams):+.3f} on average and {max(one.shams):+.3f} at most"
    name, unit = f"{one.places} best neurons ablated together ({one.ablation})", "nats/token"
    return [
        Named(name=name, quantity=_exact(one.effect, unit, one.places), note=shams),
        Named(name=f"{name}, to first order", quantity=_exact(one.predicted, unit, one.places)),
        Named(name=f"p among shams ({one.ablation})", quantity=one.estimate),
    ]


def _of_doses(turned: Doses, places: int) -> list[Named]:
    right, steps = turned.steps
    found = [
        Named(name=f"decision with the {places} best neurons times {factor:g}", quantity=_exact(value, "nats/token", 1))
        for factor, value in turned.points
    ]
    slope: Quantity = Unmeasured(reason="the scores add up to 0")
    if turned.predicted:
        slope = _exact(turned.slope / turned.predicted, "ratio", 2)
    return [
        *found,
        Named(name="dose response, slope over prediction", quantity=slope, note="1 where the linear rules are exact"),
        Named(name="dose response, steps as predicted", quantity=_exact(right / steps, "share", steps),
              note="monotone where it is 1"),
    ]  # fmt: skip


def _exact(value: float, unit: str, n: int) -> Estimate:
    """A number that is what it is in this case; it says nothing of others."""
    return Estimate(
        value=value, low=value, high=value, level=1.0, n=n, clusters=1, unit=unit, estimator="exact in this case"
    )


__all__ = ["Causal", "Checks", "check", "examine", "room"]
