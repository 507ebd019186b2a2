"""Models in a short number format whose stream is fp32: what passes between layers is not rounded.

A small change that an adapter adds to what is on the grid of bf16 already is mostly rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from truing.targets.local.tree import takes_trees

_LIFTED = "_truing_lifted"
SHORT = (torch.bfloat16, torch.float16)


def weights_dtype(model: Any) -> torch.dtype:
    """The number format of the weights; of mixed ones, the short one."""
    return next((weight.dtype for weight in model.parameters() if weight.dtype in SHORT), model.dtype)


def short_format(model: Any) -> bool:
    """Whether some weights have fewer digits than fp32 has."""
    return weights_dtype(model) in SHORT


def stream_dtype(model: Any) -> torch.dtype:
    """The number format of what passes between layers: that of the weights, or fp32 where it was lifted."""
    return torch.float32 if getattr(model, _LIFTED, False) else weights_dtype(model)


def sharing(model: Any) -> Any:
    """A copy of the modules on the same weights."""
    shared = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in shared})


def lifted(model: Any) -> Any:
    """A model on the same weights with an fp32 stream; the model itself where it has one.

    Whatever has weights of its own computes in their format, the output head too, and gives its result in fp32. Modules
    that give several tensors at once, such as routers of experts, are left as they are. A model that takes no trees has
    states, which its modules compute from weights and stream at once: it is copied in fp32.
    """
    if not short_format(model) or stream_dtype(model) is torch.float32:
        return model
    if not takes_trees(model):
        return deepcopy(model).float()
    made = sharing(model)
    for module in made.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_down)
            module.register_forward_hook(_up)
    setattr(made, _LIFTED, True)
    return made


def in_one_format(model: Any) -> Any:
    """A copy of a lifted model in fp32, for a file: in a short format an adapter would be rounded away."""
    return model if stream_dtype(model) is weights_dtype(model) else deepcopy(model).float()


def lift_weights(modules: Sequence[Any]) -> None:
    """Give modules fp32 copies of their weights."""
    for module in modules:
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(weight.detach().float(), requires_grad=False))


def _down(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    kind = next(module.parameters(recurse=False)).dtype  # as it is by now: weights may have been replaced since
    return tuple(arg.to(kind) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def _up(_: Any, __: Any, out: Any) -> Any:
    return out.float() if isinstance(out, Tensor) and out.is_floating_point() else out
