"""Frozen fp32 layers multiplied by oneDNN instead of the BLAS that torch was built with.

On CPUs where that BLAS does not use the widest vectors, oneDNN is a fifth to a half faster, most with few rows
(decision 0010). Nothing else changes: weights, hooks, adapters and gradients with respect to the input stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

SMALLEST = 1 << 16
"""Weights of a layer for which building a kernel for every new shape pays."""
LONGEST = 1024
"""Inputs that are summed up in one go: over more of them oneDNN's rounding is larger than the BLAS's. Up to twice as
many are summed up in two halves; what is longer is left to the BLAS."""

_halves: Any = WeakTensorKeyDictionary()
"""Weights with long sums -> their version, and copies of both halves: oneDNN wants them in one piece."""


class Linear(nn.Linear):
    """nn.Linear for frozen weights."""

    def forward(self, x: Tensor) -> Tensor:
        """The product x @ weight.T, plus the bias if there is one."""
        if self.weight.requires_grad or x.dtype is not torch.float32 or x.device.type != "cpu":
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Frozen.apply(x, self.weight, self.bias)
        return _product(x, self.weight, self.bias)


class _Frozen(torch.autograd.Function):
    """A gradient for the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    inputs = x.shape[-1]
    if inputs <= LONGEST:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    first, second = _in_halves(weight)
    return _product(x[..., : inputs // 2], first, bias).add_(_product(x[..., inputs // 2 :], second, None))


def _in_halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    known = _halves.get(weight)
    if known is None or known[0] != weight._version:
        middle = weight.shape[1] // 2
        first, second = weight.detach()[:, :middle], weight.detach()[:, middle:]
        known = _halves[weight] = (weight._version, (first.contiguous(), second.contiguous()))
    return known[1]


def speed_up(model: nn.Module) -> None:
    """Let the frozen layers of a model that are worth it go through oneDNN, where torch has it."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.in_features <= 2 * LONGEST and module.weight.numel() >= SMALLEST:
            module.__class__ = Linear
