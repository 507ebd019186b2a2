"""Where contributions are lost: what a module gives on, minus what it gets, under the linear rules."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truing.errors import TargetError
from truing.targets.local import Functional, LocalTarget
from truing.targets.local.attention import alone
from truing.targets.local.inside import eager
from truing.trace.auto import biases_as_sources, decided
from truing.trace.engine import Sources
from truing.trace.rules import Linear, Rule, linear

LEAK = 1e-3
"""Relative closure error above which contributions do not add up; what is no number is above it."""


@dataclass(slots=True)
class _Call:
    """One call of a module: what went in and came out, its parameters that are sources, its constants."""

    name: str
    given: list[Tensor]
    own: list[Tensor]
    first: int
    """Constants of the pass before it."""
    last: int = 0
    gave: Tensor | None = None

    def lost(self, constants: list[Tensor]) -> float:
        """In the unit of the decision."""
        if self.gave is None:
            return 0.0
        return _flow([self.gave]) - _flow([*self.given, *self.own, *constants[self.first : self.last]])


def check_closed(target: LocalTarget, functional: Functional, rule: Rule, error: float) -> None:
    """TargetError, which names the architecture and the module that leaks, where accounts do not close."""
    if error <= LEAK:
        return
    raise TargetError(
        f"the accounts of {target.card.name} ({type(target.model).__name__}) do not close: relative error"
        f" {error:.1e}, allowed {LEAK:.0e}{lost_in(target.model, functional, rule)}."
        " The linear rules do not hold for it, so no graph is given."
    )


def apart(sources: Sources, value: float) -> float:
    """How far what tokens and biases add by all paths is from what is explained, over the sum of absolute values."""
    parts = torch.cat([sources.embeddings_BT.flatten().double().cpu(), sources.biases_B.double().cpu()])
    return abs(float(parts.sum()) - value) / max(float(parts.abs().sum()), abs(value), 1e-30)


def lost_in(model: Any, functional: Functional, rule: Rule) -> str:
    """What follows a closure error: the module that leaks, where one is found."""
    module = leaking(model, functional, rule)
    return f"; what is lost is lost in {module}" if module else ""


def leaking(model: Any, functional: Functional, rule: Rule) -> str:
    """The innermost module that gives on something else than it gets, its class with it; "" where none does by much."""
    calls: list[_Call] = []
    with alone(model), ExitStack() as stack:
        sources = stack.enter_context(biases_as_sources(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(eager(model))
        mode = stack.enter_context(linear(model, rule))
        for name, module in model.named_modules():
            if name and not isinstance(module, nn.ModuleList | nn.Embedding):
                _watch(stack, f"{name} ({type(module).__name__})", module, calls, mode)
        embedding = model.get_input_embeddings()
        stack.callback(embedding.register_forward_hook(lambda _, __, out: out.detach().requires_grad_()).remove)
        value = decided(model, functional)
    for source in (*sources, *mode.constants):
        source.grad = None
    value.backward()
    found = {call.name: abs(call.lost(mode.constants)) for call in calls}
    # What leaks inside a module leaks from those around it too: the innermost one stands last among equals.
    most = max(found.values(), default=0.0)
    if most <= 1e-4 * max(abs(float(value.detach())), 1e-6):
        return ""
    return max((name for name, lost in found.items() if lost >= 0.5 * most), key=lambda name: name.count("."))


def _watch(stack: ExitStack, name: str, module: nn.Module, calls: list[_Call], mode: Linear) -> None:
    own = [p for n, p in module.named_parameters() if "bias" in n]
    open_calls: list[_Call] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _Call(name, [], own, len(mode.constants))
        open_calls.append(call)

        def noted(x: Any) -> Any:
            if not (isinstance(x, Tensor) and x.requires_grad):
                return x
            call.given.append(x.view_as(x))
            call.given[-1].retain_grad()
            return call.given[-1]

        return tuple(map(noted, args)), {key: noted(x) for key, x in kwargs.items()}

    def after(_: Any, __: Any, out: Any) -> Any:
        call = open_calls.pop()
        whole = out[0] if isinstance(out, tuple) else out
        if not (isinstance(whole, Tensor) and whole.requires_grad and call.given):
            return out
        call.last, call.gave = len(mode.constants), whole.view_as(whole)
        call.gave.retain_grad()
        calls.append(call)
        return (call.gave, *out[1:]) if isinstance(out, tuple) else call.gave

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after).remove)


def _flow(tensors: list[Tensor]) -> float:
    return sum(float((x.detach().double() * x.grad.double()).sum()) for x in tensors if x.grad is not None)
