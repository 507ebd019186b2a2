"""The engine for any decoder: one forward pass under the linear rules, then autograd.

Slower than the one by hand and larger, since the graph of the pass is kept; it knows nothing of an architecture but
where its neurons stand.
"""

# B targets  T nodes of the tree  F neurons  M continuation tokens  V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from truing.targets.local import Functional
from truing.targets.local.attention import alone
from truing.targets.local.change import Units, layers, place
from truing.targets.local.inside import eager, forward
from truing.trace.engine import Goal, Layer, Sink, Sources, Spot
from truing.trace.rules import Rule, linear

Neurons = Literal["sources", "noted", "passed"]
"""sources: the linear map begins at them; noted: it goes through them, and they can be asked for; passed: it does."""


@dataclass(slots=True)
class _Leaves:
    """Where the linear map begins."""

    embeddings: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    """Neurons as the layers below give them, (T, F) or (1, T, F)."""
    neurons: list[Tensor] = field(default_factory=list)
    """The same values, as sources."""


class AutoEngine:
    """A case in any model that autograd goes through."""

    def __init__(
        self, model: Any, functional: Functional, rule: Rule = "relp", *, neurons: Neurons = "sources"
    ) -> None:
        """Where `neurons` are no sources, everything is followed back to embeddings, biases and constants."""
        self.layers, self.nodes = len(layers(model)), len(functional.tree)
        self._case = model, functional, rule
        self._leaves = _Leaves()
        with alone(model), ExitStack() as stack:
            self._biases = stack.enter_context(biases_as_sources(model))
            _hook(stack, model, self._leaves, neurons)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(eager(model))
            mode = stack.enter_context(linear(model, rule))
            self._decision = decided(model, functional)
        self._constants = mode.constants
        self.width = int(self._leaves.neurons[0].shape[-1]) if neurons == "sources" else 0

    def value(self, goal: Goal) -> float:
        """What is explained."""
        return float(self._output(goal).detach())

    def by_all_paths(self, spots: Sequence[Spot]) -> tuple[Sources, Tensor]:
        """What tokens, biases and these neurons add to the decision: another pass, with no sources between."""
        whole = AutoEngine(*self._case, neurons="noted")
        before = whole._leaves.before
        grads = torch.autograd.grad(whole._decision, before, retain_graph=True)
        given = [(g * x.detach()).reshape(self.nodes, -1) for g, x in zip(grads, before, strict=True)]
        found = torch.tensor([float(given[layer][node, neuron]) for layer, node, neuron in spots])
        return whole.into([None], lambda _: None), found

    def into(self, goals: Sequence[Goal], sink: Sink) -> Sources:
        """What every source adds to each target: targets of one layer go back through the graph together."""
        backs = [
            self._back(list(some)) for _, some in groupby(goals, key=lambda goal: None if goal is None else goal[0])
        ]
        top = self.layers if goals[0] is None else goals[0][0]
        for number in range(min(top, len(self._leaves.neurons)) - 1, -1, -1):
            above = [back.neurons[number] for back in backs if back.layer > number]
            parts = torch.cat(above) * self.neurons(number)
            sink(Layer(number, parts.sum(-1), parts.abs().amax(-1), partial(_cells, parts)))
        return Sources(torch.cat([back.embeddings_BT for back in backs]), torch.cat([back.biases_B for back in backs]))

    def _output(self, goal: Goal) -> Tensor:
        if goal is None:
            return self._decision
        layer, node, index = goal
        return self.given(layer)[node, index]

    @property
    def decision(self) -> Tensor:
        """The decision with its probabilities held, with its graph."""
        return self._decision

    def given(self, layer: int) -> Tensor:
        """A layer's neurons as the layers below give them, (T, F), with their graph."""
        return self._leaves.before[layer].reshape(-1, self.width)

    def neurons(self, layer: int) -> Tensor:
        """The same as sources."""
        return self._leaves.neurons[layer].detach().reshape(-1, self.width)

    def _back(self, goals: list[Goal]) -> Back:
        """Of targets in one layer, or of the decision."""
        layer = self.layers if goals[0] is None else goals[0][0]
        return self.back(layer, torch.stack([self._output(goal) for goal in goals]))

    def back(self, layer: int, output_B: Tensor) -> Back:
        """From sums of neurons of one layer, or from the decision, to every source."""
        leaves, rows = self._leaves, len(output_B)
        sources = [*leaves.neurons, *leaves.embeddings, *self._biases, *self._constants]
        found = torch.autograd.grad(
            output_B, sources, torch.eye(rows, device=output_B.device), retain_graph=True, allow_unused=True,
            is_grads_batched=True,
        )  # fmt: skip
        # Sources above the targets have no part in them.
        grads = [x.new_zeros(rows, *x.shape) if g is None else g for g, x in zip(found, sources, strict=True)]
        first, second = len(leaves.neurons), len(leaves.embeddings)
        others = zip(grads[first:], sources[first:], strict=True)
        given = [(grad * source.detach()).double() for grad, source in others]
        embeddings = [x.reshape(rows, self.nodes, -1).sum(-1) for x in given[:second]]
        biases = [x.reshape(rows, -1).sum(-1) for x in given[second:]]
        return Back(
            layer, [grad.reshape(rows, -1, self.width) for grad in grads[:first]],
            torch.stack(embeddings).sum(0), torch.stack([torch.zeros_like(output_B).double(), *biases]).sum(0),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Back:
    """What sources give to some targets of one layer."""

    layer: int
    neurons: list[Tensor]
    """Derivatives with respect to neurons by layer, (B, T, F)."""
    embeddings_BT: Tensor
    biases_B: Tensor


def _cells(parts_BTF: Tensor, cells_P2: Tensor) -> Tensor:
    return parts_BTF[cells_P2[:, 0], cells_P2[:, 1]]


def decided(model: Any, functional: Functional) -> Tensor:
    """The decision with its probabilities held: sum over M of weight * (logit[token] - sum_v p(v) logit[v])."""
    kept, row_M = functional.before_M.unique(return_inverse=True)
    logits = tree_logits(model, functional, kept)
    tokens, rows = functional.tree.ids_N[functional.nodes_M].to(logits.device), row_M.to(logits.device)
    mean = (torch.softmax(logits.detach(), -1) * logits).sum(-1)
    decision: Tensor = ((logits[rows, tokens] - mean[rows]) * functional.weight_M.to(logits)).sum()
    return decision


def tree_logits(model: Any, functional: Functional, kept: Tensor) -> Tensor:
    """Logits at the kept nodes in a pass whose attention shows its patterns, shape (M, V)."""
    tree = functional.tree
    if bool((tree.parent_N == torch.arange(len(tree)) - 1).all()):  # one path: every architecture takes it as it is
        found: Tensor = model(input_ids=tree.ids_N[None].to(model.device), use_cache=False).logits[0, kept]
    else:
        found = forward(model, tree, kept, output_attentions=True).logits[0]
    return found


@contextmanager
def biases_as_sources(model: nn.Module) -> Iterator[list[Tensor]]:
    """The model's biases as sources, on the same memory; its own stand there again afterwards."""
    owned = [(module, name) for module in model.modules() for name, p in module.named_parameters(recurse=False)
             if "bias" in name and p is not None]  # fmt: skip
    own = [getattr(module, name) for module, name in owned]
    sources = [nn.Parameter(bias.detach()) for bias in own]
    try:
        for (module, name), source in zip(owned, sources, strict=True):
            setattr(module, name, source)
        yield list(sources)
    finally:
        for (module, name), bias in zip(owned, own, strict=True):
            setattr(module, name, bias)


def _hook(stack: ExitStack, model: Any, leaves: _Leaves, neurons: Neurons) -> None:
    def embedded(_: Any, __: Any, out: Tensor) -> Tensor:
        leaves.embeddings.append(out.detach().requires_grad_())
        return leaves.embeddings[-1]

    def given(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves.before.append(args[0])
        if neurons == "noted":
            return args
        leaves.neurons.append(args[0].detach().requires_grad_())
        return (leaves.neurons[-1], *args[1:])

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            stack.callback(module.register_forward_hook(embedded).remove)
    if neurons != "passed":
        for layer in range(len(layers(model))):
            stack.callback(place(model, Units("neuron", layer))[0].register_forward_pre_hook(given).remove)


__all__ = ["AutoEngine", "Back", "biases_as_sources", "decided", "tree_logits"]
