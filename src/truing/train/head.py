"""Log-probabilities of tokens from hidden states, without ever holding the logits of all of them."""

# M scored tokens  D width  V vocabulary

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_plain: Any = WeakKeyDictionary()
"""Models -> whether their logits are what comes out of the head."""
ROWS = 64
"""Tokens whose logits are held at once."""


def log_probs(hidden_MD: Tensor, head: Any, token_M: Tensor) -> Tensor:
    """Those of tokens under head(hidden), fp32, shape (M,). The head is linear and frozen; hidden may have a gradient.

    d log p / d hidden = weight[token] - sum_v p_v weight[v], a vector for every token. It is computed on the way
    forward, while the logits are there, so that the way back needs neither the logits nor another product.
    """
    if head.weight.requires_grad:
        raise ValueError("the head is trained; its own gradient needs the logits")
    found: Tensor = _Scored.apply(hidden_MD, head, token_M)
    return found


def plain_head(model: Any) -> Any:
    """The output head, where logits are what it makes of hidden states and it is frozen; else None.

    Some architectures scale or cap their logits behind it (Gemma 2, Cohere, Granite).
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.weight.requires_grad:
        return None
    if model not in _plain:
        with torch.no_grad():
            some = min(8, head.out_features)  # a single one may be padding, all of whose logits are 0
            ids = torch.arange(some, device=model.device)[None]
            logits, made = model(ids).logits, head(model.base_model(ids).last_hidden_state)
            _plain[model] = bool(torch.equal(logits, made))
    return head if _plain[model] else None


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, head: Any, token_M: Tensor) -> Tensor:
        log_p_M = hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32)
        slope_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_MD), ROWS):
            some = slice(start, start + ROWS)
            logits = head(hidden_MD[some]).float()
            normal = logits.logsumexp(-1, keepdim=True)
            log_p_M[some] = (logits.gather(-1, token_M[some, None]) - normal)[:, 0]
            if slope_MD is not None:
                p = logits.sub_(normal).exp_().to(head.weight.dtype)
                slope_MD[some] = head.weight[token_M[some]] - p @ head.weight
        ctx.slope_MD = slope_MD
        return log_p_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (grads[0][:, None] * ctx.slope_MD).to(ctx.slope_MD.dtype), None, None
