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
ROWS = 64
"""Rows that copies are laid out for; kernels of four rows and more take the same layout."""

_copies: Any = WeakTensorKeyDictionary()
"""Weights -> what they were when they were copied, and the copies, one of each part of the inputs."""


class Linear(nn.Linear):
    """nn.Linear for frozen weights."""

    packed = False
    """Whether a copy of the weights is kept, in the order in which kernels read them."""

    def forward(self, x: Tensor) -> Tensor:
        """The product x @ weight.T, plus the bias if there is one."""
        if self.weight.requires_grad or x.dtype is not torch.float32 or x.device.type != "cpu":
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Frozen.apply(x, self.weight, self.bias, self.packed)
        return _product(x, self.weight, self.bias, self.packed)


class _Frozen(torch.autograd.Function):
    """A gradient for the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: bool) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias, packed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], weight.t(), None, False), None, None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, packed: bool) -> Tensor:
    inputs = x.shape[-1]
    if inputs <= LONGEST:
        return _multiplied(x, _parts(weight, packed)[0] if packed else weight, bias)
    first, second = _parts(weight, packed)
    middle = inputs // 2
    return _multiplied(x[..., :middle], first, bias).add_(_multiplied(x[..., middle:], second, None))


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _parts(weight: Tensor, packed: bool) -> list[Tensor]:
    """Copies of the weights, or of both halves of them where sums are long; oneDNN wants each in one piece."""
    # Adapters are merged through `.data`, which no version counts; but they change every weight.
    now = (weight._version, float(weight[0, 0]), packed)
    known = _copies.get(weight)
    if known is None or known[0] != now:
        middle = weight.shape[1] // 2
        whole = weight.detach()
        parts = [whole] if weight.shape[1] <= LONGEST else [whole[:, :middle], whole[:, middle:]]
        known = _copies[weight] = (now, [_packed(part) if packed else part.contiguous() for part in parts])
    return known[1]


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)


def speed_up(model: nn.Module, room: int = 0) -> None:
    """Let the frozen layers of a model that are worth it go through oneDNN, where torch has it.

    `room`: bytes that copies of all their weights may take; where that is too little none is packed.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    found = [
        module for module in model.modules()
        if type(module) is nn.Linear and module.in_features <= 2 * LONGEST and module.weight.numel() >= SMALLEST
        and not module.weight.is_inference()  # which no version counts, either
    ]  # fmt: skip
    needed = sum(4 * module.weight.numel() for module in found)
    for module in found:
        module.__class__ = Linear
        module.packed = needed <= room
