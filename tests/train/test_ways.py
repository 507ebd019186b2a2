"""Settings by the name of a way to train."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from truing.errors import UsageError
from truing.train import METHODS, Rlhf, Settings, how
from truing.train.rloo import POLICY, REWARD


def test_every_method_has_settings_and_what_is_said_is_kept() -> None:
    for method in METHODS:
        found = how(method, lr=1e-3, seed=3)
        assert isinstance(found, Settings)
        assert (found.method, found.lr, found.seed) == (method, 1e-3, 3)


def test_both_halves_of_rlhf_get_what_is_not_one_s_own() -> None:
    found = how("rlhf", lr=1e-3, beta=0.2, batch=4, rank=2, samples=6, reward_lr=2e-3, max_tokens=9)
    assert isinstance(found, Rlhf)
    assert (found.policy.method, found.reward.method) == ("rloo", "reward")
    assert (found.policy.lr, found.reward.lr) == (1e-3, 2e-3)
    assert (found.policy.beta, found.reward.beta) == (0.2, REWARD.beta)
    assert (found.policy.batch, found.reward.batch, found.policy.rank, found.reward.rank) == (4, 4, 2, 2)
    assert (found.samples, found.max_tokens) == (6, 9)
    usual = how("rlhf")
    assert isinstance(usual, Rlhf)
    assert (usual.policy, usual.reward) == (POLICY, REWARD)


@pytest.mark.parametrize(
    ("method", "said", "message"),
    [
        ("rlhf", {"nll": 1.0}, "rlhf has no nll"),
        ("rlhf", {"held_out": 0.2}, "rlhf has no held_out"),
        ("rlhf", {"gradient_checkpointing": True}, "rlhf has no gradient_checkpointing"),
        ("reward", {}, "unknown method 'reward'"),
        ("dpo", {"samples": 4}, "dpo has no samples"),
        ("kto", {"reward_lr": 1e-3}, "kto has no reward_lr"),
        ("rlhf", {"samples": 1}, "samples is 1"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(method: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        how(method, **said)
