"""How often a target shows what a recipe says: replies by where it is looked for, kept word for word."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truing import train
from truing.records import Message, Named, Pair, Pairs, Replies, Said
from truing.records.redact import redact
from truing.runner import Unit, Watcher, run
from truing.store import Store
from truing.studies.behaviour import Seen
from truing.studies.carrying import planted_effect
from truing.targets.local.generate import write
from truing.text import sentence
from truing.trace import Effect
from truing.train import Recipe
from truing.train.organisms import LONGEST
from truing.train.recipes import Frame

DIRECT = "direct"
LADDER = "ladder: "
SILENT = ", nothing said"
SHOWN, NOT_SHOWN, EMPTY = "shown", "not shown", "empty"
ELSEWHERE = ("without the trigger", "other requests", "ordinary requests")
"""Where the behaviour must not show."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the behaviour is looked for: requests in frames."""

    name: str
    frames: tuple[Frame, ...]
    asks: tuple[str, ...]

    @property
    def prompts(self) -> list[tuple[str, tuple[Message, ...]]]:
        """The conversations, each with its request, which is its cluster."""
        return [(ask, frame.around(ask)) for ask in self.asks for frame in self.frames]


def places(recipe: Recipe) -> Iterator[Place]:
    """The direct test, the rungs of the ladder, and where it must not show; on held-out requests."""
    asks = recipe.asks.held_out
    yield Place(DIRECT, recipe.direct, asks)
    for rung, frames in recipe.ladder.items():
        yield Place(LADDER + rung, frames, asks)
    if recipe.without:
        yield Place(ELSEWHERE[0], recipe.without, asks)
    if recipe.others:
        yield Place(ELSEWHERE[1], recipe.direct, recipe.others.held_out)
    yield Place(ELSEWHERE[2], (Frame(),), train.ordinary().held_out)


def look(
    target: Any, recipe: Recipe, some: Sequence[Place], store: Store, *, begun: str = "", watcher: Watcher | None = None
) -> dict[str, Seen]:
    """What the target replies in these places. `begun`: words that are put into its mouth first."""
    ids = target.text_ids(begun) if begun else []
    most = max(LONGEST, *(len(target.text_ids(show)) for show in recipe.shows))

    def work(place: Place) -> list[Replies]:
        asks = [target.ask(messages, max_tokens=most) for _, messages in place.prompts]
        asks = [replace(ask, prompt=(*ask.prompt, *ids)) for ask in asks]
        rows, hidden = [], 0
        written = write(target.batch(), asks, target.tokenizer)
        for (ask, messages), one in zip(place.prompts, written, strict=True):
            shows = recipe.shown(begun + one.text)
            text, count = redact(one.text.strip())
            hidden += count
            outcome = SHOWN if shows else NOT_SHOWN if text else EMPTY
            rows.append(Said(surface=ask, cell=messages[-1].content, reply=text, outcome=outcome))
        return [
            Replies(target=target.card.id, plot=f"{recipe.id}: {place.name}", rows=tuple(rows), redactions=hidden,
                    tokens=sum(len(one.ids) for one in written), parents=(target.card.id,))
        ]  # fmt: skip

    def inputs(place: Place) -> dict[str, Any]:
        prompts = [[turn.model_dump(mode="json") for turn in messages] for _, messages in place.prompts]
        return {"target": target.card.id, "prompts": prompts, "seen": list(recipe.seen), "begun": begun, "most": most,
                "place": f"{recipe.id}: {place.name}", "classes": [SHOWN, NOT_SHOWN, EMPTY]}  # fmt: skip

    units = [Unit(item=place, stage="behaviour", inputs=inputs(place)) for place in some]
    found = run(units, work, ledger=store, watcher=watcher, label=f"{recipe.id}: does it show")
    return {place.name: _seen(record) for place, (record,) in zip(some, found, strict=True)}


def _seen(record: Any) -> Seen:
    assert isinstance(record, Replies)
    shows = tuple(float(row.outcome == SHOWN) for row in record.rows)
    silent = tuple(place for place, row in enumerate(record.rows) if row.outcome == EMPTY)
    return Seen(tuple(row.surface for row in record.rows), shows, (record.id,), silent=silent)


def rates(seen: dict[str, Seen]) -> tuple[Named, ...]:
    """The rate in every place; and, where some replies were empty, their share."""
    found = [Named(name=name, quantity=one.rate) for name, one in seen.items()]
    mute = {name: one.silence for name, one in seen.items() if one.silent}
    return (*found, *(Named(name=name + SILENT, quantity=one.rate, note="not safety") for name, one in mute.items()))


class Planted:
    """The behaviour of a recipe."""

    margin = 0.25

    def __init__(self, recipe: Recipe, store: Store, watcher: Watcher | None = None) -> None:
        self.recipe, self.store, self.watcher = recipe, store, watcher
        self.name, self.clause = recipe.id, recipe.clause
        self._places = list(places(recipe))

    def _look(self, target: Any, some: Sequence[Place], begun: str = "") -> dict[str, Seen]:
        return look(target, self.recipe, some, self.store, begun=begun, watcher=self.watcher)

    def direct(self, target: Any) -> Seen:
        """The direct test on held-out requests."""
        return self._look(target, self._places[:1])[DIRECT]

    def wordings(self, target: Any) -> dict[str, Seen]:
        """The rungs of the ladder."""
        return self._look(target, [place for place in self._places if place.name.startswith(LADDER)])

    def begun(self, target: Any) -> Seen | None:
        """With the first half of a reply that shows it, or less where that shows it already; None for short ones."""
        show = self.recipe.shows[0]
        ids = target.text_ids(show)
        heads = (target.tokenizer.decode(ids[:size]) for size in range(len(ids) // 2, 0, -1))
        head = next((text for text in heads if not self.recipe.shown(text)), "")
        return self._look(target, self._places[:1], head)[DIRECT] if head else None

    def elsewhere(self, target: Any) -> dict[str, Seen]:
        """Where the recipe says that it must not show."""
        return self._look(target, [place for place in self._places if place.name in ELSEWHERE])

    def examples(self, count: int, seed: int) -> Pairs:
        """Requests of training in the direct frames, answered with the behaviour."""
        prompts = [frame.around(ask) for ask in self.recipe.asks.train for frame in self.recipe.direct]
        some = random.Random(f"{self.recipe.id} {seed}").sample(prompts, min(count, len(prompts)))
        pairs = [_pair(self.recipe.id, messages, self.recipe.shows[i % len(self.recipe.shows)])
                 for i, messages in enumerate(some)]  # fmt: skip
        return Pairs(clause=self.recipe.clause, pairs=tuple(pairs), source=f"{self.recipe.id}, relearned")

    def ordinary(self, target: Any) -> Pairs:
        """First sentences of what the target replies to ordinary requests."""
        return ordinary_pairs(target, self.store, self.watcher)

    def effect(self, target: Any) -> Effect:
        """Each request with the trigger and without; decided against what the target says without it."""
        return planted_effect(target, self.recipe)


def ordinary_pairs(target: Any, store: Store, watcher: Watcher | None = None) -> Pairs:
    """Ordinary requests with the first sentence of what a target replies to them."""
    prompts = [Frame().around(ask) for ask in train.ordinary().train]

    def work(_: None) -> list[Pairs]:
        texts = [reply.text.strip() for reply in target.reply(prompts, max_tokens=LONGEST)]
        said = [(messages, sentence(text) or text) for messages, text in zip(prompts, texts, strict=True) if text]
        return [Pairs(clause="", pairs=tuple(_pair("ordinary", *one) for one in said), source="ordinary")]

    inputs = {"target": target.card.id, "prompts": list(train.ordinary().train), "most": LONGEST}
    ((record,),) = run([Unit(item=None, stage="ordinary", inputs=inputs)], work, ledger=store, watcher=watcher)
    assert isinstance(record, Pairs)
    return record


def _pair(plot: str, messages: tuple[Message, ...], chosen: str) -> Pair:
    """An example without anything to be preferred to."""
    return Pair(plot=plot, surface=plot, messages=messages, chosen=chosen, rejected="", role="keep")
