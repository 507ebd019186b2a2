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
from truing.records import Decision, Message
from truing.targets.local import LocalTarget, attention, load
from truing.targets.local.change import Units, add
from truing.targets.local.generate import Batch, write
from truing.targets.local.inside import forward, hidden
from truing.targets.local.lift import lifted, stream_dtype
from truing.targets.local.memory import Costs, plan_scores
from truing.targets.local.paths import computed
from truing.targets.local.probe import looks_through_windows, probe
from truing.targets.local.score import walk
from truing.targets.local.tree import plant, takes_trees
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
SCAN = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
FEW = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
APART: dict[str, dict[str, Any]] = {
    "mamba": FEW | {"state_size": 4},
    "mamba2": FEW | {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "bloom": FEW | {"n_head": 2},
    "mpt": FEW | {"n_heads": 2},
    "rwkv": FEW | {"attention_hidden_size": 32},
    "gpt_neo": FEW | {"num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "lfm2": SMALL | {"layer_types": ["conv", "full_attention", "conv"]},
    "jamba": SMALL | {"num_experts": 1, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 4},
    "falcon_h1": SMALL | SCAN | {"mamba_d_ssm": 128},
    "bamba": SMALL | SCAN | {"attn_layer_indices": [1]},
    "granitemoehybrid": SMALL | SCAN | {"layer_types": ["mamba", "attention", "mamba"]},
    "qwen3_next": SMALL | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32},
    "qwen3_5_text": SMALL | LINEAR,
}  # fmt: skip
"""Those that mix a token with what lies before it in memory, or make their own mask."""
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


@pytest.mark.parametrize("kind", APART)
@torch.no_grad()
def test_an_architecture_that_takes_no_trees_is_given_every_path_by_itself(kind: str) -> None:
    model = random_model(kind, APART[kind])
    assert probe(model)
    half = deepcopy(model).bfloat16()
    made = lifted(half)
    for copied in (model, half, made):
        assert not takes_trees(copied)
    assert stream_dtype(made) is torch.float32
    tree, routes = plant(prompts())
    kept = torch.randperm(len(tree), generator=torch.Generator().manual_seed(0))  # in any order
    logits = torch.cat([part for part, _, _ in walk(model, tree, torch.arange(len(tree)), lambda x: x, block=17)])
    torch.testing.assert_close(forward(model, tree, kept).logits[0], logits[kept], atol=1e-5, rtol=1e-5)
    states = hidden(model, tree)
    for prompt, route in zip(prompts(), routes, strict=True):
        ids = torch.tensor([prompt])
        expected = model(ids, use_cache=False).logits[0]
        off = (logits[route] - expected).abs().max() / (expected.max() - expected.min())
        assert off < 5e-6
        last = model.base_model(ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states[route], last, atol=1e-4 * float(last.abs().max()), rtol=1e-4)
    written = write(Batch(model, most=4, block=17), [Ask(tuple(prompt), NEW) for prompt in prompts()])
    for found, prompt in zip(written, prompts(), strict=True):
        ids, clear = alone(model, prompt)
        assert clear > 1e-5
        assert list(found.ids) == ids
    ends = [prompt for prompt in prompts() if len(prompt) != 50]  # what is the beginning of others comes with them
    assert computed(model, tree) == sum(map(len, ends)) > len(tree)
    assert computed(model, tree, routes[2]) == len(prompts()[2])
    assert forward(model, tree, routes[0][:0]).logits.shape == (1, 0, VOCABULARY)
    longer = made(torch.tensor([prompts()[0]])).logits[0]
    torch.testing.assert_close(forward(made, tree, routes[0]).logits[0], longer, atol=1e-3, rtol=1e-3)


def test_a_long_prompt_that_no_block_holds_is_scored_and_counted_once(
    hybrid: LocalTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    prompt = [rng.randrange(1, 300) for _ in range(80)]
    paths = [(prompt, [5, 6, 7, 8]), (prompt, [5, 9]), (prompt[:60], [7, 7])]
    expected = [hybrid.log_probs([path])[0][0] for path in paths]
    seen: list[int] = []
    monkeypatch.setattr(hybrid.model, "forward", counting(hybrid.model.forward, seen))
    small = plan_scores(Costs.of(hybrid.model), tokens=1, shared=4, longest=1, budget=10**9)  # blocks of 4 nodes
    monkeypatch.setattr(hybrid, "plan_scores", lambda *_, **__: small, raising=False)
    values, tokens = hybrid.log_probs(paths)
    for one, by_itself in zip(values, expected, strict=True):
        torch.testing.assert_close(one, by_itself, atol=1e-5, rtol=1e-5)
    assert tokens == 83 + 61  # the second is the beginning of the first
    assert sum(seen) == 2 * 83  # a row is as long as the longest


def counting(forward: Any, seen: list[int]) -> Any:
    def counted(ids: torch.Tensor, **more: Any) -> Any:
        seen.append(ids.numel())
        return forward(ids, **more)

    return counted


@torch.no_grad()
def test_texts_go_on_by_half_as_many_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mamba", APART["mamba"])
    probe(model)
    tree, _ = plant(prompts())
    nodes = torch.arange(len(tree))
    expected = forward(model, tree, nodes).logits[0]
    passes, plain = [], model.forward

    def short_of_memory(ids: torch.Tensor, **more: Any) -> Any:
        passes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(ids, **more)

    monkeypatch.setattr(model, "forward", short_of_memory)
    said: list[str] = []
    found = torch.cat([part for part, _, _ in walk(model, tree, nodes, lambda x: x, say=said.append)])
    torch.testing.assert_close(found, expected)
    assert passes == [4, 2, 2]
    assert said == ["out of memory: going on with 2 texts at once"]
    with pytest.raises(torch.OutOfMemoryError):
        forward(model, tree, nodes)


def test_a_probe_that_runs_out_of_memory_does_not_take_a_model_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama", SMALL)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        probe(model)
    assert takes_trees(model)


@torch.no_grad()
def test_weights_of_rwkv_stay_what_they_are() -> None:
    model = random_model("rwkv", APART["rwkv"] | {"num_hidden_layers": 7})
    before = deepcopy(model.state_dict())
    ids = torch.tensor([prompts()[0]])
    plain = deepcopy(model)(ids).logits
    probe(model)
    torch.testing.assert_close(model(ids).logits, plain, atol=1e-4, rtol=1e-3)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_change_within_rows_of_paths_is_made_along_each_text(hybrid: LocalTarget) -> None:
    at = Units("residual", 0, positions=(3, 5))
    ids = [5, 9, 12, 40, 7, 80, 33]
    before = hybrid.activations(ids, [at])[at]
    changed = hybrid.under([add(at, torch.full((48,), 0.5))])
    torch.testing.assert_close(changed.activations(ids, [at])[at], before + 0.5)
    paths = [(ids, [3, 4]), (ids[:4], [90, 91, 92])]
    both, _ = changed.log_probs(paths)
    for one, path in zip(both, paths, strict=True):
        torch.testing.assert_close(one, changed.log_probs([path])[0][0])
        assert (one - hybrid.log_probs([path])[0][0]).abs().max() > 1e-3
    decision = Decision(actions=(" yes",), alternatives=(" no",))
    with pytest.raises(TargetError, match="takes no trees"):
        hybrid.gradients(hybrid.functional(decision, [Message(role="user", content="Is it?")]), [at])


def test_rows_without_a_cache_go_on_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mamba", APART["mamba"])
    probe(model)
    asks = [Ask(tuple(prompt), NEW) for prompt in prompts()]
    expected = write(Batch(model), asks)
    passes, plain = 0, model.forward

    def short_of_memory(*args: Any, **more: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes in (4, 9):
            raise MemoryError
        return plain(*args, **more)

    said: list[str] = []
    monkeypatch.setattr(model, "forward", short_of_memory)
    assert write(Batch(model, say=said.append), asks) == expected
    assert len(said) == 2


def test_an_architecture_that_minds_its_neighbours_is_refused() -> None:
    settings = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_heads": 2, "num_blocks": 2}
    with pytest.raises(TargetError, match=r"xLSTMForCausalLM does not give for several texts at once what it gives"):
        probe(random_model("xlstm", settings))


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
