"""Every way to train on pairs: by a loss of theirs, or by RLHF."""

from __future__ import annotations

from typing import Any

from truing.errors import UsageError
from truing.records import Pairs, Training
from truing.runner import Watcher
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.train.fit import fit
from truing.train.rloo import POLICY, REWARD, Rlhf, rlhf
from truing.train.settings import METHODS, Settings

How = Settings | Rlhf
RLHF_ALONE = {"samples", "max_tokens", "unended", "reward_lr"}
PAIRS_ALONE = {"gamma", "flipped", "nll", "accumulate", "held_out", "patience", "gradient_checkpointing"}


def how(method: str = "dpo", **said: Any) -> How:
    """The settings that are usual for a method, but for what is said. `rlhf`: of both halves.

    UsageError for values that make no sense, or that the method has no use for.
    """
    if method not in (*METHODS, "rlhf"):
        raise UsageError(f"unknown method {method!r}; there are {', '.join(METHODS)}, rlhf")
    useless = PAIRS_ALONE if method == "rlhf" else RLHF_ALONE
    if wrong := sorted(useless & set(said)):
        raise UsageError(f"{method} has no {wrong[0]}; leave it out")
    if method != "rlhf":
        return Settings.of(method, **said)  # type: ignore[arg-type]
    own = {name: said.pop(name) for name in ("samples", "max_tokens", "unended") if name in said}
    reward_lr = said.pop("reward_lr", REWARD.lr)
    both = {name: value for name, value in said.items() if name not in ("lr", "beta")}
    policy = {"lr": POLICY.lr, "beta": POLICY.beta} | said
    return Rlhf(Settings.of("reward", **(both | {"lr": reward_lr})), Settings.of("rloo", **policy), **own)


def train(target: LocalTarget, pairs: Pairs, store: Store, how: How, *, watcher: Watcher | None = None) -> Training:
    """An adapter trained on the pairs in this way."""
    if isinstance(how, Rlhf):
        return rlhf(target, pairs, store, how=how, watcher=watcher)
    return fit(target, pairs, store, settings=how, watcher=watcher)
