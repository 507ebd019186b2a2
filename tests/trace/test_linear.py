"""The hand-written recursion against autograd on the same model with the same quantities frozen."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from truing.targets.local.inside import Activations, read
from truing.targets.local.tree import Tree, plant
from truing.trace.linear import head_cotangent, logit_cotangent, neuron_cotangent, recursion

# layers, heads, key-value heads, head width, neurons, tied
SHAPES = [
    (1, 4, 4, 8, 24, True),
    (2, 4, 2, 8, 40, False),
    (3, 6, 2, 4, 16, True),
    (4, 4, 1, 16, 32, False),
    (2, 1, 1, 8, 8, True),
]


@dataclass(frozen=True)
class Setting:
    """A random model on a random tree, with a random decision over its continuation tokens."""

    model: Any
    tree: Tree
    seen: Activations
    tokens_M: Any
    before_M: Any
    weight_M: Any
    kept_M: Any

    @property
    def decision(self) -> tuple[Any, float]:
        return logit_cotangent(self.model, self.seen, self.tokens_M, self.before_M, self.weight_M, self.kept_M)


@pytest.fixture(params=SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def setting(request: pytest.FixtureRequest) -> Setting:
    layers, heads, kv, width, neurons, tied = request.param
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=neurons, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=width, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(layers * 10 + heads)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False).normal_(1.0 if "norm" in name else 0.0, 0.4)
    weight_M = torch.randn(7)
    torch.set_rng_state(state)
    rng = random.Random(layers)
    prompt = rng.choices(range(50), k=9)
    paths = [[*prompt, *rng.choices(range(50), k=k)] for k in (3, 1, 4)]
    tree, routes = plant(paths)
    nodes = torch.cat([route[len(prompt) :] for route in routes])[:7]
    before_M = tree.parent_N[nodes]
    kept_M = before_M.unique()
    seen = read(model, tree, kept_M)
    return Setting(model, tree, seen, tree.ids_N[nodes], before_M, weight_M[: len(nodes)], kept_M)


@dataclass(frozen=True)
class Frozen:
    """A forward pass by autograd in which norm scales, patterns and activation ratios are constants."""

    m: Any
    embed: Any
    heads: list[Any]
    neurons: list[Any]
    before_mlp: list[Any]
    final: Any


def pattern(seen: Activations, layer: int, groups: int) -> Any:
    """Of all heads, (H, T, T)."""
    return torch.cat([seen.pattern(layer, group) for group in range(groups)])


def frozen(s: Setting, *, through_mlps: bool) -> Frozen:
    """The model's own weights, written out; `through_mlps` false cuts the graph at the neurons."""
    model, seen = s.model, s.seen
    heads, kv, width = (getattr(model.config, n) for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    x = embed = model.model.embed_tokens.weight[s.tree.ids_N].clone().requires_grad_()
    kept: dict[str, list[Any]] = {"heads": [], "neurons": [], "before": []}

    def keep(name: str, tensor: Any) -> Any:
        tensor.retain_grad()
        kept[name].append(tensor)
        return tensor

    for layer, block in enumerate(model.model.layers):
        scaled = x * seen.norm1[layer][:, None] * block.input_layernorm.weight
        v = block.self_attn.v_proj(scaled).view(-1, kv, width).repeat_interleave(heads // kv, dim=1)  # (T, H, E)
        z = keep("heads", torch.einsum("hqk,khe->qhe", pattern(seen, layer, kv), v).reshape(len(x), -1))
        x = keep("before", x + block.self_attn.o_proj(z))
        scaled = x * seen.norm2[layer][:, None] * block.post_attention_layernorm.weight
        gate, up = block.mlp.gate_proj(scaled), block.mlp.up_proj(scaled)
        act = gate * torch.sigmoid(gate).detach()  # identity rule: silu(g) = g * constant
        product = 0.5 * (act * up.detach() + act.detach() * up)  # half rule: each factor gets half
        if not through_mlps:
            product = product.detach().requires_grad_()
        x = x + block.mlp.down_proj(keep("neurons", product))
    x.retain_grad()
    normed = x * seen.norm_out[:, None] * model.model.norm.weight
    logits = model.lm_head(normed)[s.before_M]
    p = torch.softmax(logits, -1).detach()
    chosen = logits[torch.arange(len(s.tokens_M)), s.tokens_M]
    m = (s.weight_M * (chosen - (p * logits).sum(-1))).sum()
    m.backward()
    return Frozen(m.detach(), embed, kept["heads"], kept["neurons"], kept["before"], x)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def test_what_was_read_is_the_forward_pass(setting: Setting) -> None:
    """The frozen rules hold at the point they are taken: written out, they give the model's own values."""
    plain = frozen(setting, through_mlps=True)
    for layer in range(len(plain.heads)):
        close(setting.seen.heads[layer], plain.heads[layer].detach())
        close(setting.seen.neurons[layer], plain.neurons[layer].detach())
    _, m = setting.decision
    assert m == pytest.approx(float(plain.m), rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("through_mlps", [True, False])
def test_the_recursion_is_the_vector_jacobian_product(setting: Setting, through_mlps: bool) -> None:
    plain = frozen(setting, through_mlps=through_mlps)
    R_TD, _ = setting.decision
    close(R_TD, plain.final.grad)
    found: dict[int, tuple[Any, Any]] = {}

    def sink(layer: int, after: Any, before: Any) -> None:
        down = setting.model.model.layers[layer].mlp.down_proj.weight
        found[layer] = (after[0] @ down, head_cotangent(setting.model, layer, before)[0])

    R_BTD = recursion(setting.model, setting.seen, R_TD[None], sink=sink, through_mlps=through_mlps)
    assert sorted(found) == list(range(len(plain.heads)))
    for layer, (neurons, heads) in found.items():
        close(neurons, plain.neurons[layer].grad)
        close(heads, plain.heads[layer].grad)
    close(R_BTD[0], plain.embed.grad)


def test_a_neuron_has_the_cotangent_of_its_value(setting: Setting) -> None:
    """`neuron_cotangent` and `inject`: the inputs of neurons as further rows of one recursion."""
    last = len(setting.model.model.layers) - 1
    neurons = [(last, 1), (0, 3), (last, 5)]
    rows = torch.zeros(len(neurons), *setting.seen.embed_TD.shape)

    def inject(layer: int, R_BTD: Any) -> Any:
        R_BTD = R_BTD.clone()
        for row, (at, index) in enumerate(neurons):
            if at == layer:
                R_BTD[row] += neuron_cotangent(setting.model, setting.seen, layer, index)
        return R_BTD

    found = recursion(setting.model, setting.seen, rows, sink=lambda *_: None, through_mlps=False, inject=inject)
    for row, (layer, index) in enumerate(neurons):
        assert float((found[row] * setting.seen.embed_TD).sum()) == pytest.approx(
            _value_without_neurons(setting, layer, index), rel=1e-4, abs=1e-5
        )


def _value_without_neurons(s: Setting, layer: int, index: int) -> float:
    """What embeddings alone give to a neuron (summed over positions), by the frozen forward pass without MLPs."""
    model, seen = s.model, s.seen
    heads, kv, width = (getattr(model.config, n) for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    x = seen.embed_TD
    for number in range(layer + 1):
        block = model.model.layers[number]
        scaled = x * seen.norm1[number][:, None] * block.input_layernorm.weight
        v = block.self_attn.v_proj(scaled).view(-1, kv, width).repeat_interleave(heads // kv, dim=1)
        x = x + block.self_attn.o_proj(torch.einsum("hqk,khe->qhe", pattern(seen, number, kv), v).reshape(len(x), -1))
    block = model.model.layers[layer]
    scaled = x * seen.norm2[layer][:, None] * block.post_attention_layernorm.weight
    gate, up = seen.gate[layer][:, index], seen.up[layer][:, index]
    ratio = torch.sigmoid(gate)
    of_gate, of_up = scaled @ block.mlp.gate_proj.weight[index], scaled @ block.mlp.up_proj.weight[index]
    return float((0.5 * ratio * (of_gate * up + gate * of_up)).sum())


def test_contributions_add_up_to_the_decision(setting: Setting) -> None:
    parts: list[Any] = []

    def sink(layer: int, after: Any, _: Any) -> None:
        down = setting.model.model.layers[layer].mlp.down_proj.weight
        parts.append(((after[0] @ down) * setting.seen.neurons[layer]).double().flatten())

    R_TD, m = setting.decision
    R_BTD = recursion(setting.model, setting.seen, R_TD[None], sink=sink, through_mlps=False)
    parts.append((R_BTD[0] * setting.seen.embed_TD).double().flatten())
    every = torch.cat(parts)
    assert abs(float(every.sum()) - m) <= 1e-5 * float(every.abs().sum())
    assert abs(m) > 1e-2


def test_the_logit_cotangent_is_the_gradient_of_the_decision(setting: Setting) -> None:
    """Of sum weight * log softmax by autograd, with the scale of the final norm held."""
    x = frozen(setting, through_mlps=False).final.detach().requires_grad_()
    normed = x * setting.seen.norm_out[:, None] * setting.model.model.norm.weight
    log_p = torch.log_softmax(setting.model.lm_head(normed), -1)[setting.before_M, setting.tokens_M]
    (setting.weight_M * log_p).sum().backward()
    R_TD, m = setting.decision
    close(R_TD, x.grad)
    # m differs from the decision by the entropies of the frozen distributions.
    log_p = log_p.detach()
    p = torch.softmax(setting.model.lm_head(normed), -1)[setting.before_M].detach()
    entropy = -(p * p.log()).sum(-1)
    assert m == pytest.approx(float((setting.weight_M * (log_p + entropy)).sum()), rel=1e-4, abs=2e-5)


def test_many_cotangents_at_once_are_each_alone(setting: Setting) -> None:
    R_TD, _ = setting.decision
    rows = torch.stack([R_TD, torch.zeros_like(R_TD), -2 * R_TD.flip(0)])
    together = recursion(setting.model, setting.seen, rows, sink=lambda *_: None, through_mlps=True)
    for row in range(3):
        (alone,) = recursion(setting.model, setting.seen, rows[row : row + 1], sink=lambda *_: None, through_mlps=True)
        torch.testing.assert_close(together[row], alone, atol=1e-5 * float(together.abs().max()), rtol=1e-5)
    assert float(together[1].abs().max()) == 0


def test_strips_of_nodes_lose_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    R_TD, _ = setting.decision
    whole = recursion(setting.model, setting.seen, R_TD[None], sink=lambda *_: None, through_mlps=True)
    monkeypatch.setattr("truing.trace.linear.STRIP", 5)
    assert len(R_TD) % 5
    parts = recursion(setting.model, setting.seen, R_TD[None], sink=lambda *_: None, through_mlps=True)
    torch.testing.assert_close(parts, whole, atol=1e-6 * float(whole.abs().max()), rtol=1e-5)
