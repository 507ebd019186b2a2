"""Frozen fp32 layers multiplied by oneDNN instead of the BLAS that torch was built with.

On CPUs where that BLAS does not use the widest vectors, oneDNN is a fifth to a half faster, most with few rows
(decision 0010). Nothing else changes: weights, hooks, adapters and gradients with respect to the input stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
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
"""Weights -> their copies."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Weights as oneDNN takes them, one copy for each part of the inputs, and what they were when they were copied."""

    parts: list[Tensor]
    known: tuple[int, int, bool]
    """Version, place in memory, and whether the copies are packed."""
    some: Tensor
    """A view of weights from every row and every column: edits through `.data`, which no version counts, reach them."""
    sum: float


class Linear(nn.Linear):
    """nn.Linear for frozen weights."""

    packed = False
    """Whether a copy of the weights is kept, in the order in which kernels read them."""

    def forward(self, x: Tensor) -> Tensor:
        """The product x @ weight.T, plus the bias if there is one."""
        if self.weight.requires_grad or x.dtype is not torch.float32 or x.device.type != "cpu":
            return super().forward(x)
        parts = _copied(self.weight, self.packed) if self.packed or self.in_features > LONGEST else [self.weight]
        if torch.is_grad_enabled() and x.requires_grad:
            return _Frozen.apply(x, self.weight, self.bias, parts)
        return _product(x, parts, self.bias)


class _Frozen(torch.autograd.Function):
    """A gradient for the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: list[Tensor]) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, parts, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], _halves(weight.t()), None), None, None, None


def _product(x: Tensor, parts: list[Tensor], bias: Tensor | None) -> Tensor:
    if len(parts) == 1:
        return _multiplied(x, parts[0], bias)
    middle = x.shape[-1] // 2
    return _multiplied(x[..., :middle], parts[0], bias).add_(_multiplied(x[..., middle:], parts[1], None))


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _halves(weight: Tensor) -> list[Tensor]:
    """The weights, or where sums over their inputs are long the two parts of them."""
    middle = weight.shape[1] // 2
    return [weight] if weight.shape[1] <= LONGEST else [weight[:, :middle], weight[:, middle:]]


def _copied(weight: Tensor, packed: bool) -> list[Tensor]:
    """Copies of the weights, or of both halves of them; oneDNN wants each in one piece."""
    now = (weight._version, weight.data_ptr(), packed)
    held: Copies | None = _copies.get(weight)
    if held is None or held.known != now or held.sum != float(held.some.sum()):
        whole = weight.detach()
        parts = [_packed(part) if packed else part.contiguous() for part in _halves(whole)]
        some = _throughout(whole)
        held = _copies[weight] = Copies(parts, now, some, float(some.sum()))
    return held.parts


def _throughout(weight: Tensor) -> Tensor:
    """Some of the weights, at least one of every row and of every column."""
    step = min(weight.shape)
    while gcd(step, weight.shape[1]) > 1:
        step -= 1
    return weight.view(-1)[::step]


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
        and module.weight.is_contiguous()
    ]  # fmt: skip
    needed = sum(4 * module.weight.numel() for module in found)
    for module in found:
        module.__class__ = Linear
        module.packed = needed <= room
