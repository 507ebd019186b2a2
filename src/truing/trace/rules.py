"""The linear rules for any decoder: while a pass runs under them, everything nonlinear in it is held at its value.

    norms       x * scale, the scale held                                   (LN rule)
    attention   values times the pattern, the pattern held                  (frozen QK)
    activation  x * (f(x) / x), the ratio held                              (identity rule)
    products    a * b gives half to a and half to b                         (half rule): "relp"
                or, where one is an activation, all to the other            "gate-frozen"

relp: Jafari et al. 2025 (arXiv:2508.21258). The pass computes what it computed before; what changes is its derivative,
which is now that of a linear map of embeddings, biases and constants, so that their contributions add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Rule = Literal["relp", "gate-frozen"]
RULES: tuple[Rule, ...] = ("relp", "gate-frozen")
"""Those under which contributions add up."""

TINY = 1e-12
HELD = {
    torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt, torch.softmax, Tensor.softmax, F.softmax, torch.sigmoid,
    Tensor.sigmoid, F.sigmoid, torch.topk, Tensor.topk, torch.exp, Tensor.exp,
}  # fmt: skip
"""What gives scales, patterns and gates: constants."""
POWERS = {torch.pow, Tensor.pow, Tensor.__pow__}
"""Negative ones give scales too (Gemma 4)."""
ACTIVATIONS = {
    F.silu, F.gelu, F.relu, F.tanh, torch.tanh, Tensor.tanh, torch.relu, Tensor.relu, torch.clamp, Tensor.clamp,
    torch.clip, Tensor.clip,
}  # fmt: skip
"""What is x times a ratio; 0 at 0."""
PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}


class Linear(TorchFunctionMode):
    """Functions under the linear rules."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.constants: list[Tensor] = []
        """Numbers that were added to something: sources of their own."""
        self._gates: dict[int, Tensor] = {}
        """What activations gave; kept, so that no other tensor gets its number."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One call of a function of torch."""
        del types
        kwargs = kwargs or {}
        if func in WRITTEN_OUT:
            return WRITTEN_OUT[func](*args, **kwargs)
        if not (args and any(_moves(x) for x in args[:2])):
            return func(*args, **kwargs)
        return self._moved(func, args, kwargs)

    def _moved(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of what the derivative is taken of."""
        if func in HELD or (func in POWERS and _negative(*args[1:])):
            return _held(func(*args, **kwargs))
        if func in ACTIVATIONS and _moves(args[0]):
            return self.activation(args[0], func(args[0].detach(), *args[1:], **kwargs))
        if len(args) == 2 and func in PRODUCTS and all(_moves(x) and x.dim() > 1 for x in args):
            return self.product(*args)
        if len(args) == 2 and func in SUMS and not kwargs:
            return self.sum(*args)
        return func(*args, **kwargs)

    def activation(self, x: Tensor, value: Tensor) -> Tensor:
        """The identity rule."""
        with torch.no_grad():
            ratio = torch.where(x.abs() > TINY, value / torch.where(x.abs() > TINY, x, 1.0), 0.0)
        gate = x * ratio
        self._gates[id(gate)] = gate
        return gate

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """The half rule, or all to the factor that is no activation."""
        if self.rule == "gate-frozen" and (id(a) in self._gates) != (id(b) in self._gates):
            return a.detach() * b if id(a) in self._gates else a * b.detach()
        return 0.5 * (a.detach() * b + a * b.detach())

    def sum(self, a: Any, b: Any) -> Any:
        """A number that is added becomes a source."""
        moving, number = (a, b) if isinstance(a, Tensor) else (b, a)
        if _moves(moving) and isinstance(number, int | float) and number:
            number = torch.full_like(moving, number).requires_grad_()
            self.constants.append(number)
            return moving + number
        return a + b


@contextmanager
def linear(model: nn.Module, rule: Rule) -> Iterator[Linear]:
    """Passes of the model within it are under the linear rules."""
    mode = Linear(rule)

    def activated(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        # Some activations are written out in powers and constants; as a whole each is x times a ratio.
        return mode.activation(args[0], out.detach()) if _moves(args[0]) else out

    with ExitStack() as stack:
        for module in model.modules():
            if _activates(module):
                stack.callback(module.register_forward_hook(activated).remove)
        yield stack.enter_context(mode)


def _activates(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__ in {"transformers.activations", "torch.nn.modules.activation"}:
        return not isinstance(module, nn.MultiheadAttention)
    return kind.__name__.lower().endswith(("gelu", "silu", "relu")) and not list(module.parameters())


def _negative(exponent: Any = None) -> bool:
    return isinstance(exponent, int | float) and exponent < 0


def _moves(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _held(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.detach()
    return type(found)(part.detach() if part.is_floating_point() else part for part in found)


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    del shape  # the last dimension, in every decoder
    off = x - x.mean(-1, keepdim=True)
    found = off * (off.pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach()
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    del shape
    scale = (x.pow(2).mean(-1, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    found = x * scale.detach()
    return found if weight is None else found * weight


WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Tensor]] = {F.layer_norm: _layer_norm, F.rms_norm: _rms_norm}
"""What is one function in torch, and has a scale inside."""
