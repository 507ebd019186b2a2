"""The linear rules: a decoder as a linear map of its embeddings and neurons, with everything nonlinear frozen.

Norm scales and attention patterns are held at their values (LN rule, frozen QK), the activation is replaced by its
ratio act(g)/g (identity rule), and a product shares its gradient between its factors (half rule): RelP, Jafari et al.
2025 (arXiv 2508.21258). Under these rules a bias-free decoder is exactly linear, so contributions add up to the value
they explain. That the accounts close is not faithfulness.

One hand-written vector-Jacobian recursion serves all of it; no autograd graph is kept.
"""

# B cotangents  T nodes  D width  H heads  K key-value heads  E head width  F neurons  M kept nodes  V vocabulary

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from truing.targets.local.inside import Activations, blocks, units

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
    return _into_mlp(block, seen, layer, torch.ones(len(seen.gate[layer]), 1), slice(neuron, neuron + 1))


def recursion(
    model: Any,
    seen: Activations,
    R_BTD: Tensor,
    *,
    sink: Sink,
    through_mlps: bool,
    inject: Mapping[int, Sequence[tuple[int, Tensor]]] = MappingProxyType({}),
) -> Tensor:
    """Pull cotangents at the end of the residual stream back to the embeddings, shape (B, T, D).

    With `through_mlps` false only residual and attention (OV) paths are followed: what a source adds by itself. With it
    true, cotangents also pass through the MLPs below: the total linearised effect. `inject` adds, before the MLP of a
    layer, (row, cotangent of shape (T, D)): the inputs of a neuron of that layer.
    """
    heads, width = units(model, "head")
    layers = blocks(model)
    for layer in range(len(layers) - 1, -1, -1):
        block, after = layers[layer], R_BTD
        if through_mlps:
            R_BTD = R_BTD + _into_mlp(block, seen, layer, R_BTD @ block.mlp.down_proj.weight, slice(None))
        for row, cotangent_TD in inject.get(layer, ()):
            R_BTD = R_BTD.index_add(0, torch.tensor([row]), cotangent_TD[None])
        sink(layer, after, R_BTD)
        R_BTD = R_BTD + _through_attention(block, seen, layer, R_BTD, heads, width)
    return R_BTD


def head_cotangent(model: Any, layer: int, R_BTD: Tensor) -> Tensor:
    """Cotangent at the attention outputs of a layer from that right after its attention: (B, T, H*E)."""
    return R_BTD @ model.model.layers[layer].self_attn.o_proj.weight


def _into_mlp(block: Any, seen: Activations, layer: int, into_TF: Tensor, which: slice) -> Tensor:
    """From neurons to the residual stream before the MLP: identity rule on SiLU, half rule on the product."""
    gate, up = seen.gate[layer][:, which], seen.up[layer][:, which]
    ratio = torch.sigmoid(gate)  # silu(g) / g
    share_up = (0.5 * into_TF * ratio * gate) @ block.mlp.up_proj.weight[which]
    share_gate = (0.5 * into_TF * ratio * up) @ block.mlp.gate_proj.weight[which]
    return (share_up + share_gate) * seen.norm2[layer][:, None] * block.post_attention_layernorm.weight


def _through_attention(block: Any, seen: Activations, layer: int, R_BTD: Tensor, heads: int, width: int) -> Tensor:
    """The value path with the pattern frozen."""
    rows, nodes, _ = R_BTD.shape
    G = (R_BTD @ block.self_attn.o_proj.weight).view(rows, nodes, heads, width)
    G = torch.einsum("hqk,bqhe->bkhe", seen.pattern[layer], G)
    kv = block.self_attn.v_proj.weight.shape[0] // width
    G = G.reshape(rows, nodes, kv, heads // kv, width).sum(3).reshape(rows, nodes, kv * width)
    return (G @ block.self_attn.v_proj.weight) * (seen.norm1[layer][:, None] * block.input_layernorm.weight)
