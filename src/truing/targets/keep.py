"""Targets in a store: a card with all that is needed to make its target again."""

from __future__ import annotations

from truing.errors import StoreError
from truing.records import Target
from truing.runner import Watcher
from truing.store import Store
from truing.targets.protocols import Named
from truing.targets.resolve import resolve

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
"""What a card says, and what is asked for. Targets that are not loaded as weights have others."""


def keep(target: Named, store: Store) -> None:
    """Keep the card of a target, and where adapters made it, the cards and files of which it was made."""
    for card, weights in getattr(target, "made", ((target.card, None),)):
        if card.adapter is not None and weights is not None:
            store.put_blob(weights, card.adapter.media)
        store.add(card)


def made_again(card: Target, store: Store, watcher: Watcher | None = None) -> Named:
    """The target of a card, in its dtype: the base by its name, adapters out of the store.

    It may have become another by now.
    """
    if card.adapter is None:
        said = {"dtype": DTYPES[card.dtype]} if card.dtype in DTYPES else {}
        target: Named = resolve(card.name, watcher, **said)
        return target
    from truing.targets.local import LocalTarget
    from truing.targets.local.adapter import Adapter

    base = next((record for parent in card.parents if isinstance(record := store.get(parent), Target)), None)
    if base is None:
        raise StoreError(f"target {card.name} has an adapter but no base: audit it anew")
    under = made_again(base, store, watcher)
    assert isinstance(under, LocalTarget)  # nothing else takes adapters
    weights = store.blob_path(card.adapter).read_bytes()
    return under.with_adapter(Adapter(weights, card.adapter_config, card.name))
