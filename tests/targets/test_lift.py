"""Models in bf16 with an fp32 stream: nearer to fp32, and adapters that are not rounded away."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor

from truing.targets.local import LocalTarget
from truing.targets.local.adapter import MODULES, Adapter, peft_quiet
from truing.targets.local.change import Units, patch
from truing.targets.local.lift import lifted

PATHS = [([5, 6, 7, 300, 20], [8, 9, 11]), ([5, 6], [1200, 7])]


def rounded(model: Any) -> Any:
    """fp32 arithmetic on weights as bf16 has them."""
    return deepcopy(model).bfloat16().float()


def test_what_is_in_fp32_is_left_as_it_is(wild: LocalTarget) -> None:
    assert lifted(wild.model) is wild.model
    assert wild.lifted is wild


def half_of(target: LocalTarget) -> LocalTarget:
    return LocalTarget("local/half", deepcopy(target.model).bfloat16(), target.tokenizer, weights="1" * 64)


def test_a_lifted_target_is_another_one_that_does_all_that_targets_do(wild: LocalTarget) -> None:
    half = half_of(wild)
    up = half.lifted
    assert up is half.lifted is half.lifted.lifted
    assert up.card.id != half.card.id
    exact = LocalTarget("local/exact", rounded(wild.model), wild.tokenizer, weights="2" * 64)
    for mine, expected in zip(up.log_probs(PATHS)[0], exact.log_probs(PATHS)[0], strict=True):
        torch.testing.assert_close(mine, expected, atol=0.05, rtol=0)
    changed = up.under([patch(Units("residual", 0, positions=(2,)), torch.randn(1, 48))])
    assert not torch.equal(changed.log_probs(PATHS)[0][0], up.log_probs(PATHS)[0][0])


def small_adapter(model: Any) -> Adapter:
    """Changes that are far smaller than a step of the bf16 grid at most weights."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=list(MODULES), init_lora_weights=False)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with peft_quiet():
        peft = get_peft_model(deepcopy(model), config)
        tensors = {name: weight * 0.02 for name, weight in get_peft_model_state_dict(peft).items()}
    torch.set_rng_state(state)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": list(MODULES)}
    return Adapter.of(save({name: tensor.contiguous() for name, tensor in tensors.items()}), said, "made here")


def effect(before: LocalTarget, after: LocalTarget) -> Tensor:
    return torch.cat(after.log_probs(PATHS)[0]) - torch.cat(before.log_probs(PATHS)[0])


def test_a_small_adapter_keeps_its_effect_on_a_bf16_model(wild: LocalTarget) -> None:
    half = half_of(wild)
    exact = LocalTarget("local/exact", rounded(wild.model), wild.tokenizer, weights="2" * 64)
    adapter = small_adapter(wild.model)
    wanted = effect(exact, exact.with_adapter(adapter))
    adapted = half.with_adapter(adapter)
    assert adapted.card.dtype == "bfloat16"
    layers = {name: module for name, module in adapted.model.named_modules() if name.rpartition(".")[2] in MODULES}
    base = dict(half.model.named_modules())
    put = {name: layer.weight - base[name].weight.float() for name, layer in layers.items()}
    assert all(layer.weight.dtype is torch.float32 for layer in layers.values())
    assert all(delta.abs().sum() > 0 for delta in put.values())
    # What the base's weights in bf16 would have kept of it:
    kept = sum(int(((base[name].weight + delta.bfloat16()) != base[name].weight).sum()) for name, delta in put.items())
    assert kept < 0.1 * sum(delta.numel() for delta in put.values())
    assert wanted.abs().max() > 1e-4
    # Beside the model as it is lifted, whose rounding is the same.
    torch.testing.assert_close(effect(half.lifted, adapted), wanted, atol=0.05, rtol=0)
