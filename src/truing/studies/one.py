"""One stage alone, for a claim that is in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing.errors import TargetError, UsageError
from truing.records import Claim, Target
from truing.runner import Watcher
from truing.store import Store
from truing.studies.options import Options
from truing.targets import made_again, need

if TYPE_CHECKING:
    from truing.studies.wheel import Wheel


def wheel_of(
    prefix: str, store: Store, *, ability: str = "Trainable", seed: int = 0, watcher: Watcher | None = None
) -> Wheel:
    """The wheel of a claim in the store, its target loaded and checked to be the one that the claim is about.

    TargetError, before anything is loaded, where the target lacks the ability.
    """
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
    target = made_again(card, store)
    if target.card.id != card.id:
        raise TargetError(
            f"{card.name} is not what it was when claim {claim.id[:12]} was made: its weights, configuration,"
            " tokenizer or template differ"
            f" (weights {card.weights[:12]} then, {target.card.weights[:12]} now). Audit it anew."
        )
    from truing.studies.wheel import Wheel  # needs torch, which the checks above do not

    return Wheel(target, claim, store, Options(families=(claim.family,), seed=seed), watcher)
