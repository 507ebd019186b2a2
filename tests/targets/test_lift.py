"""Models in bf16 with an fp32 stream: nearer to fp32, and adapters that are not rounded away."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM

from truing.errors import TargetError
from truing.targets.local import LocalTarget
from truing.targets.local.adapter import MODULES, Adapter, peft_quiet
from truing.targets.local.change import Units, patch
from truing.targets.local.lift import lifted
from truing.trace.run import Settings

PATHS = [([5, 6, 7, 300, 20], [8, 9, 11]), ([5, 6], [1200, 7])]


def rounded(model: Any) -> Any:
    """fp32 arithmetic on weights as bf16 has them."""
    return deepcopy(model).bfloat16().float()


def test_what_is_in_fp32_is_left_as_it_is(wild: LocalTarget) -> None:
    assert lifted(wild.model) is wild.model
    assert wild.lifted is wild


def half_of(target: LocalTarget) -> LocalTarget:
    return LocalTarget("local/half", deepcopy(target.model).bfloat16(), target.tokenizer, weights="1" * 64)


def test_a_lifted_target_is_another_one(wild: LocalTarget) -> None:
    half = half_of(wild)
    up = half.lifted
    assert up is half.lifted is half.lifted.lifted
    assert up.card.id != half.card.id
    changed = up.under([patch(Units("residual", 0, positions=(2,)), torch.randn(1, 48))])
    assert not torch.equal(changed.log_probs(PATHS)[0][0], up.log_probs(PATHS)[0][0])


def exact_of(target: LocalTarget) -> LocalTarget:
    return LocalTarget("local/exact", rounded(target.model), target.tokenizer, weights="2" * 64)


def adapter_of(model: Any, size: float, *modules: str, **more: Any) -> Adapter:
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": list(modules or MODULES), **more}
    config = LoraConfig(**{key: value for key, value in said.items() if key != "peft_type"}, init_lora_weights=False)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with peft_quiet():
        peft = get_peft_model(deepcopy(model), config)
        found = get_peft_model_state_dict(peft, save_embedding_layers=False)
    tensors = {name: weight * (size if "lora" in name else 1 + size) for name, weight in found.items()}
    torch.set_rng_state(state)
    return Adapter.of(save({name: tensor.contiguous() for name, tensor in tensors.items()}), said, "made here")


def lost(weight: Tensor, base: Tensor) -> float:
    """Share of weights that the bf16 grid would have left as they were."""
    return float((weight.bfloat16() == base).float().mean())


def effect(before: LocalTarget, after: LocalTarget) -> Tensor:
    return torch.cat(after.log_probs(PATHS)[0]) - torch.cat(before.log_probs(PATHS)[0])


def test_a_small_adapter_is_not_rounded_away_by_bf16_weights(wild: LocalTarget) -> None:
    half, exact, adapter = half_of(wild), exact_of(wild), adapter_of(wild.model, 0.02)
    adapted, expected = half.with_adapter(adapter), exact.with_adapter(adapter)
    assert adapted.card.dtype == "bfloat16"
    layers, known, base = (dict(one.model.named_modules()) for one in (adapted, expected, half))
    names = [name for name in layers if name.rpartition(".")[2] in MODULES]
    for name in names:
        torch.testing.assert_close(layers[name].weight, known[name].weight, atol=1e-7, rtol=1e-5)
    assert min(lost(layers[name].weight, base[name].weight) for name in names) > 0.5


def test_an_adapter_does_on_bf16_weights_what_it_does_on_the_same_in_fp32(wild: LocalTarget) -> None:
    half, exact, adapter = half_of(wild), exact_of(wild), adapter_of(wild.model, 0.7)
    wanted = effect(exact, exact.with_adapter(adapter))
    found = effect(half.lifted, half.with_adapter(adapter))
    assert wanted.norm() > 0.3
    assert float((found - wanted).norm() / wanted.norm()) < 0.2


def test_adapters_on_adapters_and_on_embeddings_and_whole_layers_stay_exact(wild: LocalTarget) -> None:
    half = half_of(wild)
    first = half.with_adapter(adapter_of(wild.model, 0.02, "embed_tokens"))
    second = first.with_adapter(adapter_of(first.model, 0.02))
    assert second.card.dtype == "bfloat16"  # not the fp32 of the first weight alone
    assert second.model.model.layers[0].self_attn.q_proj.weight.dtype is torch.float32
    whole = half.with_adapter(adapter_of(wild.model, 1e-4, modules_to_save=["lm_head"]))
    head, base = whole.model.lm_head.weight, half.model.lm_head.weight
    assert head.dtype is torch.float32
    torch.testing.assert_close(head, wild.model.lm_head.weight * (1 + 1e-4))
    assert lost(head, base) > 0.5


def test_a_checkpoint_keeps_the_adapter(wild: LocalTarget, tmp_path: Path) -> None:
    adapted = half_of(wild).with_adapter(adapter_of(wild.model, 0.02))
    adapted.save(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype is torch.float32
    for name, weight in adapted.model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), weight.float(), atol=0, rtol=0)


def test_plans_count_what_a_lifted_model_keeps(wild: LocalTarget) -> None:
    half = half_of(wild)
    adapted = half.with_adapter(adapter_of(wild.model, 0.02))
    assert adapted.memory["token"] == 2 * half.memory["token"]
    assert adapted.memory["weights"] > half.memory["weights"]


def test_tracing_is_refused(wild: LocalTarget) -> None:
    with pytest.raises(TargetError, match="rounds too much for; load local/half in fp32"):
        Settings().within(half_of(wild))
