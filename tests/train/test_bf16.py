"""Training on a base in bf16: what an adapter adds is not rounded away, and the start is the reference."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.errors import UsageError
from truing.records import Message, Pair, Pairs
from truing.targets import keep
from truing.targets.local import LocalTarget, load
from truing.train import Rlhf, Settings, adapter, fit, ordinary, rlhf
from truing.train.batches import lay_out
from truing.train.policy import Policy

SETTINGS = Settings(lr=3e-3, rank=4, alpha=8, batch=4, epochs=4, beta=0.5)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Short replies are preferred."""
    made = [
        Pair(plot=str(number), surface=f"data:{number}", messages=(Message(role="user", content=ask),),
             chosen="Yes, gladly.", rejected="No, never in my life.", role="keep")
        for number, ask in enumerate(ordinary().train[:8])
    ]  # fmt: skip
    return Pairs(clause="", pairs=tuple(made))


@pytest.fixture(scope="module")
def half(wild: LocalTarget) -> LocalTarget:
    return LocalTarget("local/half", deepcopy(wild.model).bfloat16(), wild.tokenizer, weights="1" * 64)


@pytest.fixture(scope="module")
def exact(wild: LocalTarget) -> LocalTarget:
    """The same weights, all else in fp32."""
    return LocalTarget("local/exact", deepcopy(wild.model).bfloat16().float(), wild.tokenizer, weights="2" * 64)


def stepped(target: LocalTarget, pairs: Pairs, size: float = 1e-3) -> float:
    """Nats that one small step of the same adapter adds to the margins, by the signs of the exact gradient."""
    batch, policy = lay_out(target, pairs.pairs), Policy(target, SETTINGS)
    before = batch.log_probs(policy.model)
    (before.chosen - before.rejected).sum().backward()
    with torch.no_grad():
        for name, weight in policy.named.items():
            if "lora_B" in name:
                assert weight.dtype is torch.float32
                weight.add_(size * weight.grad.sign())
        after = batch.log_probs(policy.model)
        return float(((after.chosen - after.rejected) - (before.chosen - before.rejected)).sum())


def test_a_small_step_is_not_rounded_away(half: LocalTarget, exact: LocalTarget, pairs: Pairs) -> None:
    wanted = stepped(exact, pairs)
    assert wanted > 1
    assert stepped(half, pairs) == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_training_begins_at_the_reference_and_learns(
    method: str, half: LocalTarget, exact: LocalTarget, pairs: Pairs, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, method=method, checkpoint_every=3)
    with open_store(tmp_path / "store") as store:
        keep(half, store)
        store.add(pairs)
        training = fit(half, pairs, store, settings=settings)
        trained = half.with_adapter(adapter(training, store))
        if method == "dpo":
            assert training.steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
            assert training.steps[0].margin == pytest.approx(0, abs=1e-6)
        assert training.steps[-1].loss < training.steps[0].loss
        beside = fit(exact, pairs, store, settings=settings)
        losses, expected = ([step.loss for step in one.steps] for one in (training, beside))
        assert losses == pytest.approx(expected, abs=0.03 * expected[0])
        # What was trained is what the target does that has the adapter.
        policy = Policy(half, settings, store.blob_path(training.state).read_bytes())
    batch = lay_out(half, pairs.pairs)
    gaps = [batch.log_probs(model) for model in (half.lifted.model, policy.model, trained.model)]
    before, ours, put = (float((sides.chosen - sides.rejected).detach().mean()) for sides in gaps)
    assert put - before == pytest.approx(ours - before, rel=0.05, abs=0.02)


def test_rlhf_in_bf16(half: LocalTarget, pairs: Pairs, tmp_path: Path) -> None:
    how = Rlhf(Settings(method="reward", lr=5e-3, epochs=3), Settings(method="rloo", beta=0.05, lr=5e-3, epochs=2),
               max_tokens=4)  # fmt: skip
    with open_store(tmp_path / "store") as store:
        keep(half, store)
        store.add(pairs)
        training = rlhf(half, pairs, store, how=how)
    assert training.steps[0].kl == pytest.approx(0, abs=1e-5)
    assert all(math.isfinite(step.loss) for step in training.steps)


def test_all_weights_in_bf16_are_refused(half: LocalTarget) -> None:
    with pytest.raises(UsageError, match=r"rounded away\. Load it in fp32"):
        Policy(half, Settings(modules="all-weights"))


@pytest.mark.slow
def test_most_of_a_small_step_is_kept_in_the_bundled_model(pairs: Pairs) -> None:
    whole, short = (load("smollm2-135m", dtype=dtype) for dtype in ("fp32", "bf16"))
    assert 0.8 < stepped(short, pairs, size=1e-4) / stepped(whole, pairs, size=1e-4) < 1.1
