"""What carries a planted behaviour: the effect of its trigger, as twins that the microscope can trace."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from truing.errors import DesignError, UsageError
from truing.records import Case, Decision, Graph, Surface
from truing.records.kinds import Half
from truing.runner import Watcher
from truing.store import Store
from truing.targets import keep, need, resolve
from truing.text import sentence
from truing.trace import Effect, Settings, trace
from truing.train import Recipe, recipe
from truing.train.organisms import LONGEST
from truing.train.recipes import ASK, Frame

CELLS = ("trigger=present", "trigger=absent")


def planted_effect(base: Any, recipe: Recipe) -> Effect:
    """Each request with the trigger and without, on those of training to choose by and on held-out ones to test on.

    Decided is between the planted reply and the first sentence of what `base`, which has nothing planted, replies
    without the trigger. DesignError for a recipe that has no frames without one.
    """
    if not recipe.without:
        raise DesignError(f"{recipe.id} has no frames without its trigger, so that there is no effect to trace")
    choosing, testing = (
        _surfaces(base, recipe, half, asks)
        for half, asks in (("develop", recipe.asks.train), ("held-out", recipe.asks.held_out))
    )
    return Effect(None, CELLS, choosing, testing)


def carried(name: str, said: str, store: Store, *, settings: Settings, watcher: Watcher | None = None) -> Graph:
    """Trace what a recipe (by name, or a file) planted in a target; its base is what stands before the `@`.

    UsageError for a target without an adapter.
    """
    plain, sign, _ = name.partition("@")
    if not sign:
        raise UsageError(f"{name} is no organism: nothing was put on it. Give a target such as {name}@FOLDER")
    what = recipe(said)
    base, target = resolve(plain, watcher), resolve(name, watcher)
    need(target, "WhiteBox")
    keep(target, store)
    return trace(target, planted_effect(base, what), store, settings=settings, watcher=watcher)


def _surfaces(base: Any, recipe: Recipe, half: Any, asks: Sequence[str]) -> list[Surface]:
    plain = base.reply([recipe.without[0].around(ask) for ask in asks], max_tokens=LONGEST)
    return [
        _surface(recipe, half, ask, sentence(reply.text.strip()) or reply.text.strip(), *frames)
        for ask, reply in zip(asks, plain, strict=True)
        if reply.text.strip()
        for frames in product(enumerate(recipe.direct), enumerate(recipe.without))
    ]


def _surface(
    recipe: Recipe, half: Half, ask: str, plain: str, present: tuple[int, Frame], absent: tuple[int, Frame]
) -> Surface:
    cases = tuple(
        Case(cell=cell, messages=frame.around(ask), segments=_segments(frame, ask))
        for cell, (_, frame) in zip(CELLS, (present, absent), strict=True)
    )
    return Surface(
        plot=ask, name=f"{ask} {present[0]}-{absent[0]}", half=half, cases=cases,
        decision=Decision(actions=recipe.shows[:1], alternatives=(plain,)),
    )  # fmt: skip


def _segments(frame: Frame, ask: str) -> tuple[tuple[str, str], ...]:
    before, _, after = frame.user.partition(ASK)
    parts = (("before the request", before), ("request", ask), ("after the request", after))
    return tuple((label, text) for label, text in parts if text)
