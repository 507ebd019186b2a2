"""Training on an accelerator where there is one, against the same on the cpu."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from transformers import MistralConfig, MistralForCausalLM

from truing import open_store
from truing.records import Pairs, Training
from truing.store import Store
from truing.targets import keep
from truing.targets.local import LocalTarget, attention
from truing.train import Rlhf, Settings, adapter, fit, rlhf
from truing.train.batches import lay_out
from truing.train.policy import Policy

SETTINGS = Settings(lr=3e-3, rank=4, alpha=8, batch=4, epochs=4, beta=0.5, held_out=0.2, checkpoint_every=3)


def fitted(target: LocalTarget, pairs: Pairs, store: Store, settings: Settings = SETTINGS) -> Training:
    keep(target, store)
    store.add(pairs)
    return fit(target, pairs, store, settings=settings)


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo", "sft"])
def test_losses_and_adapter_are_those_of_the_cpu(
    method: str, there: LocalTarget, short_pairs: Pairs, wild: LocalTarget, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, method=method, gradient_checkpointing=method == "simpo")
    with open_store(tmp_path / "there") as store, open_store(tmp_path / "here") as other:
        found, expected = fitted(there, short_pairs, store, settings), fitted(wild, short_pairs, other, settings)
        for mine, known in zip(found.steps, expected.steps, strict=True):
            assert mine.loss == pytest.approx(known.loss, abs=1e-4)
            assert mine.held == pytest.approx(known.held, abs=1e-4)
        trained = there.with_adapter(adapter(found, store))
        beside = wild.with_adapter(adapter(expected, other))
        assert trained.model.device == there.model.device
        sides = lay_out(there, short_pairs.pairs).log_probs(trained.model)
        known_sides = lay_out(wild, short_pairs.pairs).log_probs(beside.model)
        torch.testing.assert_close(sides.chosen, known_sides.chosen, atol=2e-2, rtol=0)


@pytest.mark.parametrize("modules", ["q_proj,v_proj", "all-weights"])
def test_taken_up_again_from_a_checkpoint_it_takes_the_same_steps(
    modules: str, there: LocalTarget, short_pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, modules=modules, lr=1e-3)
    with open_store(tmp_path / "whole") as store:
        whole = fitted(there, short_pairs, store, settings)
    taken: list[int] = []
    step = Policy.step

    def killed(self: Policy, lr: float) -> None:
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(1)
        step(self, lr)

    with open_store(tmp_path / "parts") as store:
        monkeypatch.setattr(Policy, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            fitted(there, short_pairs, store, settings)
        monkeypatch.setattr(Policy, "step", step)
        parts = fitted(there, short_pairs, store, settings)
    assert [step.loss for step in parts.steps] == pytest.approx([step.loss for step in whole.steps], abs=1e-5)


@pytest.mark.parametrize("window", [None, 8])
def test_parts_are_put_together_on_the_way_back(
    window: int | None, there: LocalTarget, short_pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MistralConfig(
        vocab_size=1536, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=window,
    )  # fmt: skip
    torch.manual_seed(1)
    model = MistralForCausalLM(config).eval().to(there.model.device)
    target = LocalTarget("local/windows", model, there.tokenizer, weights="3" * 64)
    batch = lay_out(target, short_pairs.pairs[:4])

    def gradients(again: bool) -> list[torch.Tensor]:
        policy = Policy(target, replace(SETTINGS, gradient_checkpointing=again))
        batch.log_probs(policy.model).chosen.sum().backward()
        return [weight.grad for weight in policy.named.values()]

    whole, parts = gradients(again=False), []
    monkeypatch.setattr(attention, "WORTH", 1.0)
    for name in ("BROAD", "BROADEST"):
        monkeypatch.setattr(attention, name, 16)
    seen = attention.Parts.seen
    monkeypatch.setattr(attention.Parts, "seen", lambda self, whole: parts.append(1) or seen(self, whole))
    for again in (False, True):
        parts.clear()
        for found, expected in zip(gradients(again), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
        assert len(parts) == 2 * 2 * (1 + again)  # keys and values of two layers; once more on the way back


def test_an_adapter_is_trained_on(there: LocalTarget, short_pairs: Pairs, tmp_path: Path) -> None:
    settings = replace(SETTINGS, method="sft")
    with open_store(tmp_path / "store") as store:
        first = fitted(there, short_pairs, store, settings)
        second = fit(there, short_pairs, store, settings=settings, begin=first)
    assert second.steps[0].loss < first.steps[0].loss


def test_rlhf(there: LocalTarget, short_pairs: Pairs, tmp_path: Path) -> None:
    how = Rlhf(Settings(method="reward", lr=5e-3, epochs=3, checkpoint_every=2),
               Settings(method="rloo", beta=0.05, lr=5e-3, epochs=2, checkpoint_every=1), max_tokens=4)  # fmt: skip
    with open_store(tmp_path / "store") as store:
        keep(there, store)
        store.add(short_pairs)
        training = rlhf(there, short_pairs, store, how=how)
    assert training.finished
    assert training.steps[0].kl == pytest.approx(0, abs=1e-4)


def test_bf16(there: LocalTarget, short_pairs: Pairs, tmp_path: Path) -> None:
    half = LocalTarget("local/half", deepcopy(there.model).bfloat16(), there.tokenizer, weights="1" * 64)
    with open_store(tmp_path / "store") as store:
        training = fitted(half, short_pairs, store)
        assert training.steps[0].margin == pytest.approx(0, abs=1e-5)
        assert training.steps[-1].loss < training.steps[0].loss
        assert half.with_adapter(adapter(training, store)).model.device == there.model.device
