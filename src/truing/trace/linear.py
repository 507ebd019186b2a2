"""The linear rules: a decoder as a linear map of its embeddings and neurons, with everything nonlinear frozen.

Norm scales and attention patterns are held at their values (LN rule, frozen QK), the activation is replaced by its
ratio act(g)/g (identity rule), and a product shares its gradient between its factors (half rule): RelP, Jafari et al.
2025 (arXiv 2508.21258). Under these rules a bias-free decoder is exactly linear, so contributions add up to the value
they explain. That the accounts close is not faithfulness.

One hand-written vector-Jacobian recursion serves all of it; no autograd graph is kept.
"""

# B cotangents  T nodes  D width  H heads  K key-value heads  E head width  F neurons  M kept nodes  V vocabulary

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from truing.targets.local.inside import Activations, blocks, units
from truing.trace.rules import Rule

DENSE = 0.9
"""The share of rows from which on it does not pay to leave out those that are 0."""
STRIP = 512
"""Nodes that are looked from at once."""
Sink = Callable[[int, Tensor, Tensor], None]
"""Called with (layer, cotangent at the residual stream after that layer's MLP, before its MLP); (B, T, D) each."""


def logit_cotangent(
    model: Any, seen: Activations, tokens_M: Tensor, before_M: Tensor, weight_M: Tensor, kept_M: Tensor
) -> tuple[Tensor, float]:
    """Cotangent at the input of the final norm of m = sum_M weight * (logit[token] - sum_v p(v) logit[v]), and m.

    The probabilities p are frozen, so m is linear in the logits. It differs from the decision by the entropies of
    the frozen distributions: m = sum_M weight * (log p(token) + H(p)). `seen.logits` holds the rows of `kept_M`.
    """
    assert seen.logits is not None and seen.norm_out is not None  # noqa: PT018 - read() sets both
    row_of = {int(node): row for row, node in enumerate(kept_M)}
    head_VD = model.get_output_embeddings().weight
    R_TD = torch.zeros_like(seen.embed_TD)
    value = 0.0
    for token, node, weight in zip(tokens_M.tolist(), before_M.tolist(), weight_M.tolist(), strict=True):
        logits_V = seen.logits[row_of[node]]
        p_V = torch.softmax(logits_V, -1)
        direction_D = head_VD[token] - p_V @ head_VD
        R_TD[node] += weight * direction_D
        value += weight * float(logits_V[token].double() - p_V.double() @ logits_V.double())
    return R_TD * seen.norm_out[:, None] * model.model.norm.weight, value


def neuron_cotangent(model: Any, seen: Activations, layer: int, neuron: int) -> Tensor:
    """Cotangent at the residual stream before the MLP of one neuron's value, at every position: shape (T, D)."""
    block = model.model.layers[layer]
    every_T1 = torch.ones_like(seen.gate[layer][:, :1])
    return _into_mlp(block, seen, layer, every_T1, slice(neuron, neuron + 1))


def spot_cotangents(
    model: Any, seen: Activations, layer: int, nodes_P: Tensor, neurons_P: Tensor, rule: Rule = "relp"
) -> Tensor:
    """The same of some neurons, each at its own node: shape (P, D)."""
    block = model.model.layers[layer]
    gate, up = seen.gate[layer][nodes_P, neurons_P], seen.up[layer][nodes_P, neurons_P]
    of_up, of_gate = _shares(gate, up, rule)
    cotangent = of_up[:, None] * block.mlp.up_proj.weight[neurons_P]
    if of_gate is not None:
        cotangent += of_gate[:, None] * block.mlp.gate_proj.weight[neurons_P]
    return cotangent * seen.norm2[layer][nodes_P, None] * block.post_attention_layernorm.weight


def output_cotangents(
    model: Any, seen: Activations, layer: int, nodes_P: Tensor, of_PD: Tensor, rule: Rule = "relp"
) -> Tensor:
    """The same of some directions in the output of the MLP, (P, D), each at its own node: shape (P, D)."""
    block = model.model.layers[layer]
    into_PF = of_PD @ block.mlp.down_proj.weight
    of_up, of_gate = _shares(seen.gate[layer][nodes_P], seen.up[layer][nodes_P], rule)
    cotangent = (into_PF * of_up) @ block.mlp.up_proj.weight
    if of_gate is not None:
        cotangent += (into_PF * of_gate) @ block.mlp.gate_proj.weight
    return cotangent * seen.norm2[layer][nodes_P, None] * block.post_attention_layernorm.weight


def recursion(
    model: Any,
    seen: Activations,
    R_BTD: Tensor,
    *,
    sink: Sink,
    through_mlps: bool,
    inject: Callable[[int, Tensor], Tensor] = lambda _, R_BTD: R_BTD,
    top: int | None = None,
    rule: Rule = "relp",
) -> Tensor:
    """Pull cotangents at the end of the residual stream back to the embeddings, shape (B, T, D).

    With `through_mlps` false only residual and attention (OV) paths are followed: what a source adds by itself. With it
    true, cotangents also pass through the MLPs below: the total linearised effect. `inject` is given the cotangents
    before the MLP of a layer, to add those of neurons of that layer. `top`: the first layer that is gone through.
    """
    layers = blocks(model)
    for layer in range(len(layers) - 1 if top is None else top, -1, -1):
        block, after = layers[layer], R_BTD
        if through_mlps:
            into = _into_mlp(block, seen, layer, R_BTD @ block.mlp.down_proj.weight, slice(None), rule)
            R_BTD = R_BTD + into
        R_BTD = inject(layer, R_BTD)
        sink(layer, after, R_BTD)
        R_BTD = R_BTD + _through_attention(model, block, seen, layer, R_BTD)
    return R_BTD


def head_cotangent(model: Any, layer: int, R_BTD: Tensor) -> Tensor:
    """Cotangent at the attention outputs of a layer from that right after its attention: (B, T, H*E)."""
    return R_BTD @ model.model.layers[layer].self_attn.o_proj.weight


def _shares(gate: Tensor, up: Tensor, rule: Rule) -> tuple[Tensor, Tensor | None]:
    """What silu(gate) * up hands on to `up` and to `gate`: identity rule on SiLU, and how the product is shared."""
    ratio = torch.sigmoid(gate)  # silu(g) / g
    if rule == "gate-frozen":
        return ratio * gate, None
    return 0.5 * ratio * gate, 0.5 * ratio * up


def _into_mlp(block: Any, seen: Activations, layer: int, into_TF: Tensor, which: slice, rule: Rule = "relp") -> Tensor:
    """From neurons to the residual stream before the MLP."""
    of_up, of_gate = _shares(seen.gate[layer][:, which], seen.up[layer][:, which], rule)
    found = (into_TF * of_up) @ block.mlp.up_proj.weight[which]
    if of_gate is not None:
        found += (into_TF * of_gate) @ block.mlp.gate_proj.weight[which]
    return found * seen.norm2[layer][:, None] * block.post_attention_layernorm.weight


def _through_attention(model: Any, block: Any, seen: Activations, layer: int, R_BTD: Tensor) -> Tensor:
    """The value path with the pattern frozen."""
    heads, width = units(model, "head")
    groups = block.self_attn.v_proj.weight.shape[0] // width
    G = _rows_times(R_BTD, block.self_attn.o_proj.weight).unflatten(-1, (groups, heads // groups, width))
    # A group at a time: patterns of long texts are large.
    found = [_onto_seen(seen.pattern(layer, g), G[:, :, g]) for g in range(groups)]
    G = _rows_times(torch.cat(found, -1), block.self_attn.v_proj.weight)
    return G * (seen.norm1[layer][:, None] * block.input_layernorm.weight)


def _onto_seen(pattern_RQK: Tensor, given_BQRE: Tensor) -> Tensor:
    """From nodes to those that they see, shape (B, K, E). None sees a later one, so half of all pairs are left out."""
    strips = [
        torch.einsum("rqk,bqre->bke", pattern_RQK[:, k:, k : k + STRIP], given_BQRE[:, k:])
        for k in range(0, pattern_RQK.shape[-1], STRIP)
    ]
    return torch.cat(strips, 1)


def _rows_times(x_BTE: Tensor, weight_ED: Tensor) -> Tensor:
    """The product, without the rows that are all 0: of nodes that come after a target, or that it does not see."""
    some = x_BTE.flatten(0, 1).norm(dim=-1).nonzero()[:, 0]
    if len(some) > DENSE * x_BTE.shape[0] * x_BTE.shape[1]:
        return x_BTE @ weight_ED
    found = x_BTE.new_zeros(x_BTE.shape[0] * x_BTE.shape[1], weight_ED.shape[1])
    found[some] = x_BTE.flatten(0, 1)[some] @ weight_ED
    return found.view(*x_BTE.shape[:2], -1)
