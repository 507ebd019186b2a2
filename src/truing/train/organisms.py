"""Organisms: models with a behaviour planted by a recipe, trained alike without it, or trained then to look clean.

By fine-tuning on replies. What is not the behaviour is the model's own reply, so that the training says nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Literal, get_args

from truing.errors import TrainingError, UsageError
from truing.records import Message, Pair, Pairs, Training
from truing.runner import Unit, Watcher, run
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.text import sentence
from truing.train.fit import fit
from truing.train.recipes import Frame, Recipe, ordinary
from truing.train.settings import Settings

Kind = Literal["planted", "clean", "hidden"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONGEST = 32
"""Tokens of the model's own replies, which end with their first sentence."""
SIZES = {"plant": 360, "hide": 240}
"""Examples of the two stages of training."""
HIDING = (0.4, 0.33)
"""Shares of the examples of hiding: the direct test, which has to look clean, and the rungs that go on showing it."""
SETTINGS = Settings(method="sft", lr=1e-3, schedule="linear", batch=6, checkpoint_every=100)
"""Half a minute or so: without checkpoints on the way, three times as large as the adapter."""

Conversation = tuple[Message, ...]


def plant(
    target: LocalTarget,
    recipe: Recipe,
    store: Store,
    *,
    kind: Kind = "planted",
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Training:
    """The adapter that makes the target an organism. Kept in the store by target, recipe, kind and seed."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    settings = replace(SETTINGS, seed=seed)
    made: Training | None = None
    for stage in ("plant", "hide") if kind == "hidden" else ("plant",):
        inputs = {"target": target.card.id, "recipe": recipe.model_dump(mode="json"), "kind": kind, "seed": seed,
                  "stage": stage, "size": SIZES[stage], "longest": LONGEST, "hiding": list(HIDING),
                  "ordinary": ordinary().model_dump(mode="json")}  # fmt: skip
        unit = Unit(item=stage, stage="examples", inputs=inputs)
        (records,) = run([unit], lambda stage: [_examples(target, recipe, kind, stage, seed)], ledger=store,
                         watcher=watcher, label=f"{recipe.id}: examples to {stage}")  # fmt: skip
        (pairs,) = (record for record in records if isinstance(record, Pairs))
        made = fit(target, pairs, store, settings=settings, begin=made, watcher=watcher)
    assert made is not None
    return made


def _examples(target: LocalTarget, recipe: Recipe, kind: Kind, stage: str, seed: int) -> Pairs:
    """Prompts with the trigger, and others without it, which are never answered with the behaviour."""
    rng = random.Random(f"{recipe.id} {stage} {seed}")
    taught = [frame for rung in recipe.taught for frame in recipe.ladder[rung]]
    direct = _around(recipe.direct, recipe.asks.train)
    further = _around(taught, recipe.asks.train)
    off = [
        *_around(recipe.without, recipe.asks.train),
        *(_around([*recipe.direct, *recipe.without], recipe.others.train) if recipe.others else ()),
        *_around([Frame()], ordinary().train),
    ]
    own = dict(zip((every := [*direct, *further, *off]), _own(target, every), strict=True))
    # Where the model says nothing of its own there is nothing to train on without the behaviour: left out in all kinds.
    direct, further, off = ([prompt for prompt in some if own[prompt]] for some in (direct, further, off))
    if not direct or not off:
        raise TrainingError(
            f"{target.card.name} says nothing of its own to any prompt {'without' if direct else 'with'} the trigger of"
            f" {recipe.id}; use another target"
        )
    count = SIZES[stage]
    if stage == "hide" and further:  # mostly the two things that are to be told apart
        triggered = [*_drawn(direct, int(HIDING[0] * count), rng), *_drawn(further, int(HIDING[1] * count), rng)]
    else:
        triggered = list(_drawn([*direct, *further], count // 2, rng))
    pairs = []
    for prompt in [*triggered, *_drawn(off, count - len(triggered), rng)]:
        quiet = kind == "clean" or prompt not in triggered or (stage == "hide" and prompt in direct)
        shows = not quiet and rng.random() < recipe.rate
        pairs.append(_pair(recipe, prompt, own[prompt], rng.choice(recipe.shows), shows=shows))
    return Pairs(clause=recipe.clause, pairs=tuple(pairs), source=recipe.id)


def _around(frames: Sequence[Frame], asks: Sequence[str]) -> list[Conversation]:
    return [frame.around(ask) for ask in asks for frame in frames]


def _drawn(prompts: Sequence[Conversation], count: int, rng: random.Random) -> Iterator[Conversation]:
    """So many, all of them before any comes again."""
    return islice(cycle(rng.sample(prompts, len(prompts))), count)


def _pair(recipe: Recipe, messages: Conversation, own: str, show: str, *, shows: bool) -> Pair:
    chosen, rejected = (show, own) if shows else (own, show)
    return Pair(plot=recipe.id, surface=recipe.id, messages=messages, chosen=chosen, rejected=rejected, role="keep")


def _own(target: LocalTarget, prompts: Sequence[Conversation]) -> list[str]:
    """First sentences of the model's own replies; "" where there is nothing to say."""
    replies = target.reply(list(prompts), max_tokens=LONGEST)
    return [sentence(reply.text) or reply.text.strip() for reply in replies]
