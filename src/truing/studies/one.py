"""One stage alone, for a claim that is in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.errors import TargetError, UsageError
from truing.records import Claim, Target
from truing.runner import Watcher
from truing.store import Store
from truing.studies.options import Options
from truing.targets import need, resolve
from truing.text import short

if TYPE_CHECKING:
    from truing.studies.wheel import Verified, Wheel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def wheel_of(prefix: str, store: Store, *, seed: int = 0, watcher: Watcher | None = None) -> Wheel:
    """The wheel of a claim in the store, its target loaded and checked to be the one that the claim is about."""
    claim, target = _subject(prefix, store, watcher)
    return _wheel(claim, target, store, seed, watcher)


def measured(prefix: str, adapter: Path, store: Store, *, seed: int = 0, watcher: Watcher | None = None) -> Verified:
    """The target of a claim with and without an adapter. TargetError, before any evaluation, where it does not fit."""
    _check_adapter(adapter)
    claim, target = _subject(prefix, store, watcher)
    fixed = _adapted(target, adapter, store)
    return _wheel(claim, target, store, seed, watcher).verify(fixed)


def _subject(prefix: str, store: Store, watcher: Watcher | None) -> tuple[Claim, Any]:
    claim = store.find(prefix, "claim")
    assert isinstance(claim, Claim)
    if claim.outcome != "preference":
        raise UsageError(
            f"claim {claim.id[:12]} is about {claim.outcome}; tracing and training start from a preference."
            f" Give the {claim.family} claim with outcome preference (`truing store ls --kind claim`)."
        )
    card = store.get(claim.target)
    assert isinstance(card, Target)
    for ability in ("WhiteBox", "Trainable"):
        if ability not in card.abilities:
            raise TargetError(
                f"target {card.name} of claim {claim.id[:12]} has no ability {ability}"
                f" (it has {', '.join(card.abilities)});"
                " targets that have it: local/..."
            )
    target = resolve(card.name, watcher)
    need(target, "Scored")
    if target.card.id != card.id:
        raise TargetError(
            f"{card.name} is not what it was when claim {claim.id[:12]} was made: its weights, tokenizer or"
            " template differ"
            f" (weights {card.weights[:12]} then, {target.card.weights[:12]} now). Audit it anew."
        )
    return claim, target


def _wheel(claim: Claim, target: Any, store: Store, seed: int, watcher: Watcher | None) -> Wheel:
    from truing.studies.wheel import Wheel  # needs torch, which the checks before do not

    return Wheel(target, claim, store, Options(families=(claim.family,), seed=seed), watcher)


def _check_adapter(folder: Path) -> None:
    """What can be said of an adapter without its model. PEFT would look for what is missing on the network."""
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            raise TargetError(
                f"no adapter at {folder} ({part} is missing). Give a folder that `truing train --out` or PEFT wrote."
            )
    try:
        json.loads((folder / CONFIG).read_bytes())["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"cannot read the adapter {folder}: {error!r}. Is it a whole PEFT adapter?") from error


def _adapted(target: Any, folder: Path, store: Store) -> Any:
    """The target with an adapter, its weights kept in the store. TargetError where they do not go together."""
    from safetensors import SafetensorError

    try:
        fixed = target.with_adapter(folder, store.put_file(folder / WEIGHTS, "safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise TargetError(
            f"cannot put the adapter {folder} on {target.card.name}: {short(error)}. Is it for this model, and is it"
            " whole?"
        ) from error
    store.add(fixed.card)
    return fixed
