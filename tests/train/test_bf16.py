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
from truing.records import Pairs
from truing.targets import keep
from truing.targets.local import LocalTarget
from truing.train import Rlhf, Settings, adapter, fit, rlhf
from truing.train.batches import lay_out
from truing.train.policy import Policy

SETTINGS = Settings(lr=3e-3, rank=4, alpha=8, batch=4, epochs=4, beta=0.5)


@pytest.fixture(scope="module")
def half(wild: LocalTarget) -> LocalTarget:
    return LocalTarget("local/half", deepcopy(wild.model).bfloat16(), wild.tokenizer, weights="1" * 64)


@pytest.fixture(scope="module")
def exact(wild: LocalTarget) -> LocalTarget:
    """The same weights, all else in fp32."""
    return LocalTarget("local/exact", deepcopy(wild.model).bfloat16().float(), wild.tokenizer, weights="2" * 64)


def test_what_an_adapter_adds_to_a_layer_is_not_rounded_away(half: LocalTarget) -> None:
    layer = Policy(half, SETTINGS).model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight.fill_(1e-4)
        x = torch.randn(64, down.shape[1], generator=torch.Generator().manual_seed(0))
        wanted = layer.scaling["default"] * x @ down.T @ up.T
        base = layer.base_layer(x)
        added = layer(x) - base
        assert float(wanted.abs().max()) < 0.1 * float(base.abs().mean())
        torch.testing.assert_close(added, wanted, atol=1e-6, rtol=0)
        in_bf16 = (base.bfloat16() + wanted.bfloat16()).float() - base
        assert float((in_bf16 - wanted).norm() / wanted.norm()) > 0.5  # what would be left of it


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_training_begins_at_the_reference_and_learns(
    method: str, half: LocalTarget, exact: LocalTarget, short_pairs: Pairs, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, method=method, checkpoint_every=3)
    with open_store(tmp_path / "store") as store:
        keep(half, store)
        store.add(short_pairs)
        training = fit(half, short_pairs, store, settings=settings)
        trained = half.with_adapter(adapter(training, store))
        if method == "dpo":
            assert training.steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
            assert training.steps[0].margin == pytest.approx(0, abs=1e-6)
        assert training.steps[-1].loss < training.steps[0].loss
        beside = fit(exact, short_pairs, store, settings=settings)
        losses, expected = ([step.loss for step in one.steps] for one in (training, beside))
        assert losses == pytest.approx(expected, abs=0.03 * expected[0])
        # What was trained is what the target does that has the adapter.
        policy = Policy(half, settings, store.blob_path(training.state).read_bytes())
    batch = lay_out(half, short_pairs.pairs)
    gaps = [batch.log_probs(model) for model in (half.lifted.model, policy.model, trained.model)]
    before, ours, put = (float((sides.chosen - sides.rejected).detach().mean()) for sides in gaps)
    assert put - before == pytest.approx(ours - before, rel=0.05, abs=0.02)


def test_rlhf_in_bf16(half: LocalTarget, short_pairs: Pairs, tmp_path: Path) -> None:
    how = Rlhf(Settings(method="reward", lr=5e-3, epochs=3), Settings(method="rloo", beta=0.05, lr=5e-3, epochs=2),
               max_tokens=4)  # fmt: skip
    with open_store(tmp_path / "store") as store:
        keep(half, store)
        store.add(short_pairs)
        training = rlhf(half, short_pairs, store, how=how)
    assert training.steps[0].kl == pytest.approx(0, abs=1e-5)
    assert all(math.isfinite(step.loss) for step in training.steps)


def test_all_weights_in_bf16_are_refused(half: LocalTarget) -> None:
    with pytest.raises(UsageError, match=r"rounded away\. Load it in fp32"):
        Policy(half, Settings(modules="all-weights"))
