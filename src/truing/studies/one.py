"""One stage alone, for a claim that is in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.errors import TargetError, UsageError
from truing.records import Claim, Design, Graph, Measurement, Surface, Surfaces, Target
from truing.runner import Watcher
from truing.store import Store
from truing.studies.options import Options
from truing.targets import keep, made_again, need, resolve

if TYPE_CHECKING:
    from truing.studies.wheel import Verified, Wheel
    from truing.trace import Effect

Cells = tuple[str, str] | None
"""Two settings of company plots to be told apart, in place of the claim's own."""


def wheel_of(
    prefix: str,
    store: Store,
    *,
    ability: str = "Trainable",
    seed: int = 0,
    fitting: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Wheel:
    """The wheel of a claim in the store, its target loaded and checked to be the one that the claim is about.

    TargetError, before anything is loaded, where the target lacks the ability. `fitting`: settings of training.
    """
    claim, target = _subject(prefix, store, ability, watcher)
    return _wheel(claim, target, store, seed, watcher, fitting)


def measured(prefix: str, folder: Path, store: Store, *, seed: int = 0, watcher: Watcher | None = None) -> Verified:
    """The target of a claim with and without an adapter. TargetError, before any evaluation, where it does not fit."""
    from truing.targets.local.adapter import Adapter  # brings torch, which not every stage needs

    adapter = Adapter.read(folder)
    claim, target = _subject(prefix, store, "Trainable", watcher)
    fixed = target.with_adapter(adapter).checked()
    keep(fixed, store)
    return _wheel(claim, target, store, seed, watcher).verify(fixed)


def traced(
    prefix: str,
    store: Store,
    *,
    cells: Cells = None,
    seed: int = 0,
    tracing: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Graph:
    """What carries the effect of a claim: of its twins, or of company plots between two settings."""
    claim, target = _subject(prefix, store, "WhiteBox", watcher)
    from truing.trace import Settings, trace  # brings torch, which the checks before do not need

    effect = _effect(claim, target, store, cells, seed, watcher)
    return trace(target, effect, store, settings=Settings(seed=seed, **(tracing or {})), watcher=watcher)


def differing(
    prefix: str,
    names: tuple[str, str],
    store: Store,
    *,
    cells: Cells = None,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Measurement:
    """What is different inside two models over the cases of a claim; of one, given twice, between the claim's cells."""
    claim, target = _subject(prefix, store, "WhiteBox", watcher)
    from truing.trace import differ

    effect = _effect(claim, target, store, cells, seed, watcher)
    known = {target.card.name: target}
    for name in names:
        if name not in known:
            known[name] = resolve(name, watcher)
            need(known[name], "WhiteBox")
            keep(known[name], store)
    return differ(known[names[0]], known[names[1]], effect, store, watcher=watcher)


def probed(
    prefix: str, store: Store, *, cells: Cells = None, seed: int = 0, watcher: Watcher | None = None
) -> Measurement:
    """Whether the inside of a claim's target tells the claim's two cells apart, such as a test from the real thing.

    They are those that its effect is traced between; of company plots, a level of a factor and its baseline, in the
    cells that were scored. Every plot is left out once, when the probe is fitted that is tested on it.
    """
    claim, target = _subject(prefix, store, "WhiteBox", watcher)
    from truing.studies.matched import between
    from truing.trace.probe import probe

    if claim.effect and not cells:
        surfaces, cells = _scored(claim, store), between(claim, _design(claim, store))
    else:
        effect = _effect(claim, target, store, cells, seed, watcher)
        surfaces, cells = [*effect.choosing, *effect.testing], effect.cells
    return probe(target, surfaces, cells, store, every=True, seed=seed, claim=claim, watcher=watcher)


def _effect(claim: Claim, target: Any, store: Store, cells: Cells, seed: int, watcher: Watcher | None) -> Effect:
    if claim.effect:
        from truing.studies.matched import between, check_plots, matched

        design = _design(claim, store)
        check_plots(claim, design)
        return matched(claim.family, cells or between(claim, design), claim)
    if cells:
        raise UsageError(
            f"claim {claim.id[:12]} is of {claim.family}, whose twins are named in its file; cells can be chosen for"
            " claims about company plots alone"
        )
    return _wheel(claim, target, store, seed, watcher).effect


def _design(claim: Claim, store: Store) -> Design:
    design = store.get(claim.design)
    assert isinstance(design, Design)
    return design


def _scored(claim: Claim, store: Store) -> list[Surface]:
    """The surfaces of a claim about company plots, as they were scored."""
    asked = [record for parent in _design(claim, store).parents if isinstance(record := store.get(parent), Surfaces)]
    return [surface for one in asked for surface in one.surfaces]


def _subject(prefix: str, store: Store, ability: str, watcher: Watcher | None) -> tuple[Claim, Any]:
    claim = store.find(prefix, "claim")
    assert isinstance(claim, Claim)
    if claim.outcome != "preference":
        raise UsageError(
            f"claim {claim.id[:12]} is about {claim.outcome}; tracing and training start from a preference."
            f" Give the {claim.family} claim with outcome preference (`truing store ls --kind claim`)."
        )
    card = store.get(claim.target)
    assert isinstance(card, Target)
    need(card, ability)
    target = made_again(card, store, watcher)
    if target.card.id != card.id:
        raise TargetError(
            f"{card.name} is not what it was when claim {claim.id[:12]} was made: its weights, configuration,"
            " tokenizer or template differ"
            f" (weights {card.weights[:12]} then, {target.card.weights[:12]} now). Audit it anew."
        )
    return claim, target


def _wheel(
    claim: Claim,
    target: Any,
    store: Store,
    seed: int,
    watcher: Watcher | None,
    fitting: Mapping[str, Any] | None = None,
) -> Wheel:
    if claim.effect:
        raise UsageError(
            f"claim {claim.id[:12]} is about {claim.effect} in company plots ({claim.family}), for which there are no"
            " pairs to train on. It can be traced; to train, give a claim of insider, sycophancy or anchoring."
        )
    # They need torch, which the checks before do not.
    from truing.studies.wheel import Wheel
    from truing.train import how

    options = Options(families=(claim.family,), seed=seed)
    return Wheel(target, claim, store, options, watcher, fitting=how(**{"seed": seed, **(fitting or {})}))
