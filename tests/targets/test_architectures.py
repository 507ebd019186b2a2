"""Trees, rows and windows in every architecture that people use, against the ordinary forward pass of transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.errors import TargetError
from truing.targets.local import LocalTarget, attention, load
from truing.targets.local.generate import Batch, write
from truing.targets.local.lift import lifted, stream_dtype
from truing.targets.local.probe import looks_through_windows, probe
from truing.targets.local.score import walk
from truing.targets.local.tree import plant
from truing.targets.local.write import Ask

VOCABULARY, NEW, WINDOW = 300, 12, 32
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": WINDOW,
}  # fmt: skip
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SMALL, "mistral": SMALL, "qwen2": SMALL, "qwen3": SMALL, "gemma": SMALL,
    "gemma2": SMALL | {"attn_logit_softcapping": 0.5},  # a cap that small scores reach
    "gemma3_text": SMALL, "phi": SMALL, "phi3": SMALL, "olmo": SMALL, "olmo2": SMALL, "granite": SMALL, "gpt2": GPT,
    "gpt_neox": SMALL | {"num_key_value_heads": None}, "mixtral": SMALL | {"num_local_experts": 4},
    "qwen3_moe": SMALL | EXPERTS, "gpt_oss": SMALL | {"num_local_experts": 4}, "stablelm": SMALL,
    "starcoder2": SMALL, "cohere": SMALL, "glm": SMALL, "opt": SMALL,
}  # fmt: skip
ROUTED = {"mixtral", "qwen3_moe", "gpt_oss"}
"""Rounding can send a token to other experts."""
WINDOWED = {"mistral", "gemma2", "gemma3_text", "phi3", "mixtral", "gpt_oss", "starcoder2"}


def random_model(kind: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            parameter.mul_(3)  # so that what is written is not the same token again and again
    torch.set_rng_state(state)
    return model


def prompts() -> list[list[int]]:
    """Longer than the window; some share their beginning, one is the beginning of others."""
    rng = random.Random(0)
    long, short, other = ([rng.randrange(3, VOCABULARY) for _ in range(n)] for n in (60, 9, 40))
    return [[*long[:50], 5, 6, 7], [*long[:50], 8], short, other, long[:50]]


def alone(model: Any, prompt: Sequence[int]) -> tuple[list[int], float]:
    """Greedy tokens by whole forward passes, and how clearly the closest was decided, of the range of the logits."""
    ids, clear = list(prompt), 1.0
    for _ in range(NEW):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        first, second = logits.topk(2).values
        clear = min(clear, float((first - second) / (logits.max() - logits.min())))
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], clear


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_an_architecture_gives_what_transformers_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PART", 5)
    model = random_model(kind, ARCHITECTURES[kind])
    probe(model)
    assert looks_through_windows(model) == (kind in WINDOWED)
    tree, routes = plant(prompts())
    logits = torch.cat(
        [part for part, _, _ in walk(model, tree, torch.arange(len(tree)), lambda logits: logits, block=17)]
    )
    for prompt, route in zip(prompts(), routes, strict=True):
        expected = model(torch.tensor([prompt]), use_cache=False).logits[0]
        off = (logits[route] - expected).abs().max() / (expected.max() - expected.min())
        assert off < 2e-6
    written = write(Batch(model, most=4, block=17), [Ask(tuple(prompt), NEW) for prompt in prompts()])
    for found, prompt in zip(written, prompts(), strict=True):
        ids, clear = alone(model, prompt)
        assert clear > 1e-5  # no tie that rounding could decide
        assert list(found.ids) == ids


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_every_architecture_can_be_lifted_and_comes_nearer_to_fp32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PART", 5)
    model = random_model(kind, ARCHITECTURES[kind])
    half = deepcopy(model).bfloat16()
    exact = deepcopy(half).float()
    made = lifted(half)
    probe(made)  # trees, rows and caches
    assert stream_dtype(made) is torch.float32
    assert {id(weight) for weight in made.parameters()} == {id(weight) for weight in half.parameters()}
    ids = torch.tensor([prompts()[0]])
    expected = exact(ids).logits
    with_lift, without = ((one(ids).logits.float() - expected).pow(2).mean() for one in (made, half))
    if kind not in ROUTED:
        assert with_lift < without


def test_no_text_goes_beyond_where_frequencies_change_for_the_whole_pass() -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 50,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    }  # fmt: skip
    settings = SMALL | {"sliding_window": None, "original_max_position_embeddings": 50, "rope_parameters": rope}
    target = LocalTarget("local/long", random_model("phi3", settings), load("tiny").tokenizer, weights="")
    target.log_probs([(list(range(3, 43)), list(range(3, 13)))])
    with pytest.raises(TargetError, match=r"longer than the short rotary range of local/long \(50\)"):
        target.log_probs([(list(range(3, 63)), [7])])
