"""Training on preferences that somebody has in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing import audit, measure, train
from truing.errors import DesignError
from truing.records import Half, Message, Pairs, Training
from truing.runner import Silent, Watcher
from truing.store import Store
from truing.studies.planted import places
from truing.targets import keep, need
from truing.train import Rows, read

__all__ = ["fit_rows", "read"]


def fit_rows(
    target: Any,
    rows: Rows,
    store: Store,
    *,
    fitting: Mapping[str, Any] | None = None,
    clause: str = "",
    watcher: Watcher | None = None,
) -> Training:
    """An adapter fitted to preferences that were read, for a clause of the spec if one is named.

    `fitting`: settings of training. UsageError for an unknown clause or settings that make no sense; DesignError where
    a prompt is one that fixes are tested on.
    """
    need(target, "Trainable")
    how = train.how(**(fitting or {}))
    if clause:
        audit.clause(audit.spec(), clause)
    train.check_templates(rows.pairs, target.marks)
    if known := train.leaks(rows.pairs, held_out()):
        raise DesignError(
            f"{len(known)} of {len(rows.pairs)} prompts are held out to test fixes on, the first at {known[0].surface};"
            " leave them out, or what is measured later is what was trained on"
        )
    watcher = watcher or Silent()
    doubles = f" (rows that said the same as one before: {rows.doubles})" if rows.doubles else ""
    watcher.say(f"{rows.source}: {len(rows.pairs)} pairs{doubles}")
    pairs = Pairs(clause=clause, pairs=rows.pairs, source=rows.source)
    keep(target, store)
    store.add(pairs)
    return train.train(target, pairs, store, how, watcher=watcher)


HALVES: tuple[Half, ...] = ("held-out", "develop")
"""In whose wordings held-out plots are asked about: fixes and gates are tested in both."""


def held_out() -> set[tuple[Message, ...]]:
    """All that fixes, organisms and gates are tested on.

    Held-out plots of claims and of their guards, held-out requests of recipes that ship, ordinary requests and texts.
    """
    texts = (*measure.requests(), *measure.passages())
    found: set[tuple[Message, ...]] = {(Message(role="user", content=text),) for text in texts}
    for name in audit.FAMILIES:
        guard = audit.family(name).carry.guard
        laid = [audit.lay_out(name, half="held-out", wordings=words, items=items)
                for words in HALVES for items in dict.fromkeys(("", guard))]  # fmt: skip
        found |= {case.messages for one in laid for surface in one.surfaces for case in surface.cases}
    for name in train.recipe_names():
        found |= {messages for place in places(train.recipe(name)) for _, messages in place.prompts}
    return found
