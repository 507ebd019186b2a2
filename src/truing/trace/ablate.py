"""What a decision is with neurons ablated at places of a case: many sets of them, each a row of one batch.

Neurons alone are changed; attention is free to follow. What no row of a batch changes is not computed again: the nodes
before the first change, and the layers below it.
"""

# B rows  T nodes of the tree  L layers  F neurons of a layer  P places  D width

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local import Functional
from truing.targets.local.attention import alone
from truing.targets.local.change import Units, entering, layers, place
from truing.targets.local.inside import forward
from truing.targets.local.tree import takes_trees
from truing.trace.derive import decision_of
from truing.trace.picked import matched
from truing.trace.room import FP32, bench_costs, rows_within

Ablation = Literal["zero", "mean", "counterfactual"]
AGREES = 1e-3
"""What a shortened pass may be off by, nats per token, and relative to the decision."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What neurons are moved to. By layer, shape (1, F) where it is the same at all nodes, else (T, F)."""

    name: Ablation
    layers: tuple[Tensor, ...]

    def at(self, layer: int, node: int, neuron: int) -> float:
        """What one neuron is moved to."""
        values = self.layers[layer]
        return float(values[0 if len(values) == 1 else node, neuron])


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One row: neurons keep `factor` of what they differ from the reference by. 0 ablates them, 1 leaves them.

    `places`: shape (P, 3): layer, node, neuron, each place once. `others`: not these are changed but all others.
    """

    places: Tensor
    reference: Reference
    others: bool = False
    factor: float = 0.0

    def begins(self) -> tuple[int, int]:
        """The lowest layer and the first node that it changes."""
        if self.others or not len(self.places):
            return 0, 0
        return int(self.places[:, 0].min()), int(self.places[:, 1].min())


class Basis(Protocol):
    """What stands at the places of a bench, and is called neurons there: how passes read and change it."""

    bytes_a_node: int
    """What changing it takes beyond what a pass takes, for each node of a row."""
    held_a_node: int
    """What its values take at a node, in all layers."""

    def read(self, stack: ExitStack) -> Callable[[], tuple[Tensor, ...]]:
        """Around a pass over a whole tree. Afterwards: values by layer, shape (T, F)."""

    def change(self, stack: ExitStack, edits: Sequence[Edit], low: int, start: int) -> None:
        """Around a pass of one row for each edit, over the nodes from `start` on; no edit begins below layer `low`."""

    def matched(self, values: Sequence[Tensor], places: Tensor, rng: np.random.Generator) -> Tensor:
        """As many others of the same layers at the same nodes, drawn at random, in the same order."""


class Neurons:
    """MLP neurons of any decoder. TargetError where they cannot be found."""

    bytes_a_node = 0

    def __init__(self, model: Any) -> None:
        self._sites = [place(model, Units("neuron", layer))[0] for layer in range(len(layers(model)))]
        self.held_a_node = FP32 * sum(map(entering, self._sites))

    def read(self, stack: ExitStack) -> Callable[[], tuple[Tensor, ...]]:
        """As they enter the output projection."""
        seen = dict[int, Tensor]()

        def given(layer: int, _: Any, args: tuple[Tensor, ...]) -> None:
            seen[layer] = args[0].flatten(0, -2)

        for layer, site in enumerate(self._sites):
            stack.callback(site.register_forward_pre_hook(partial(given, layer)).remove)
        return lambda: tuple(seen[layer] for layer in range(len(self._sites)))

    def change(self, stack: ExitStack, edits: Sequence[Edit], low: int, start: int) -> None:
        """The same way."""
        for layer in range(low, len(self._sites)):
            if (work := _change(edits, layer, start)) is not None:
                stack.callback(self._sites[layer].register_forward_pre_hook(work).remove)

    def matched(self, values: Sequence[Tensor], places: Tensor, rng: np.random.Generator) -> Tensor:
        """Any others."""
        return matched(places, values[0].shape[-1], rng)


class Bench:
    """A case on which neurons can be ablated. TargetError for a model without trees of texts, or without neurons."""

    def __init__(self, model: Any, functional: Functional, *, memory: int, basis: Basis | None = None) -> None:
        """`memory`: bytes that a batch may take beyond the weights. `basis`: what is ablated; without one, neurons."""
        if not takes_trees(model):
            raise TargetError(f"{type(model).__name__} takes no trees of texts, which neurons are ablated along")
        self.model, self.functional = model, functional
        self.basis: Basis = basis or Neurons(model)
        self._blocks = layers(model)
        self._kept = functional.before_M.unique()
        self._last = min(functional.prompt - 1, int(self._kept.min()))
        self.neurons: tuple[Tensor, ...] = ()
        """Their values by layer, shape (T, F)."""
        self._out: list[Any] = []
        self._keys: list[tuple[Tensor, Tensor]] = []
        self.value = self._read()
        """The decision, nats per token."""
        self.rows = rows_within(memory, *bench_costs(model, functional, self.basis), len(functional.tree))
        self._short = self._agrees()

    @property
    def candidates(self) -> int:
        """Neurons at all nodes of all layers."""
        return sum(values.numel() for values in self.neurons)

    @torch.no_grad()
    def values(self, edits: Sequence[Edit], told: Callable[[int], None] = lambda _: None) -> list[float]:
        """The decision under each edit, nats per token. `told`: how many were computed by now."""
        found, done = [0.0] * len(edits), 0
        for some in _batches([edit.begins() for edit in edits], self.rows):
            for number, value in zip(some, self._pass([edits[n] for n in some]), strict=True):
                found[number] = value
            done += len(some)
            told(done)
        return found

    @torch.no_grad()
    def _read(self) -> float:
        """One pass over the tree, and one over the prompt for its keys and values."""
        from transformers import DynamicCache

        tree, cache = self.functional.tree, DynamicCache()
        with alone(self.model), ExitStack() as stack:
            values = self.basis.read(stack)
            for block in self._blocks:
                stack.callback(block.register_forward_hook(lambda _, __, out: self._out.append(out)).remove)
            logits = forward(self.model, tree, self._kept).logits
        if self._last:
            forward(self.model, tree, torch.tensor([self._last - 1]), stop=self._last, cache=cache)
            self._keys = [(layer.keys, layer.values) for layer in cache.layers]
        self.neurons = values()
        return self._decisions(logits)[0]

    def _decisions(self, logits_BMV: Tensor) -> list[float]:
        found: list[float] = decision_of(self.functional, logits_BMV.cpu()).tolist()
        return found

    def _agrees(self) -> bool:
        """Whether a pass that leaves out layers and nodes gives what a whole one does, in this architecture."""
        self._short = True
        at = torch.tensor([[len(self._blocks) // 2, self._last // 2, 0]])
        nothing = Edit(at, zero(self), factor=1.0)
        (found,) = self.values([nothing])
        return abs(found - self.value) <= AGREES * max(1.0, abs(self.value))

    def _pass(self, edits: Sequence[Edit]) -> list[float]:
        begins = [edit.begins() for edit in edits]
        low, start = (min(at) for at in zip(*begins, strict=True)) if self._short else (0, 0)
        start, rows = min(start, self._last), len(edits)
        with alone(self.model), ExitStack() as stack:
            for layer in range(low):
                stack.enter_context(_replaying(self._blocks[layer], self._out[layer], start, rows))
            self.basis.change(stack, edits, low, start)
            cache = self._cache(start, rows) if start else None
            logits = forward(
                self.model, self.functional.tree, self._kept, rows=rows, start=start, cache=cache
            ).logits  # fmt: skip
        return self._decisions(logits)

    def _cache(self, start: int, rows: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, kv in enumerate(self._keys):
            keys, values = (x[:, :, :start].expand(rows, -1, -1, -1) for x in kv)
            cache.update(keys, values, layer)
        return cache


# -- what neurons are moved to -----------------------------------------------------------------------------------------


def zero(bench: Bench) -> Reference:
    """Nothing."""
    return Reference("zero", tuple(torch.zeros_like(values[:1]) for values in bench.neurons))


def mean(bench: Bench, given: Sequence[Tensor] | None = None) -> Reference:
    """Each neuron's mean over the nodes of the prompt, or that over others: activations by layer, shape (N, F)."""
    prompt = bench.functional.prompt
    over = [values[:prompt] for values in bench.neurons] if given is None else given
    if (got := [x.shape[-1] for x in over]) != (want := [values.shape[-1] for values in bench.neurons]):
        raise TargetError(f"reference activations of {got} neurons by layer do not fit a model that has {want}")
    return Reference("mean", tuple(x.mean(0, keepdim=True).to(y) for x, y in zip(over, bench.neurons, strict=True)))


def check_aligned(case: Functional, twin: Functional) -> None:
    """TargetError where the trees of two cases are laid out otherwise."""
    if not bool(torch.equal(twin.tree.parent_N, case.tree.parent_N)):
        raise TargetError(
            f"a twin of {len(twin.tree)} nodes does not align with a case of {len(case.tree)}:"
            " give one whose prompt and continuations have as many tokens"
        )


def counterfactual(bench: Bench, twin: Functional, *, memory: int) -> Reference:
    """The values in another case at the same nodes. TargetError where its tree is laid out otherwise."""
    check_aligned(bench.functional, twin)
    return Reference("counterfactual", Bench(bench.model, twin, memory=memory, basis=bench.basis).neurons)


# -- in a pass ---------------------------------------------------------------------------------------------------------


def _batches(begins: Sequence[tuple[int, int]], rows: int) -> Iterator[list[int]]:
    """Rows that begin in layers near to each other, and among these at nodes near to each other, together."""
    order = sorted(range(len(begins)), key=lambda n: begins[n])
    for first in range(0, len(order), 2 * rows):
        some = sorted(order[first : first + 2 * rows], key=lambda n: begins[n][1])
        yield some[:rows]
        if some[rows:]:
            yield some[rows:]


@contextmanager
def _replaying(block: Any, gave: Any, start: int, rows: int) -> Iterator[None]:
    """The block gives to all rows what it gave before, at the nodes from `start` on."""

    def given(x: Any) -> Any:
        if isinstance(x, tuple):
            return (given(x[0]), *x[1:])
        return x[:, start:].expand(rows, -1, -1)

    block.forward = lambda *_, **__: given(gave)  # hides the class's own
    try:
        yield
    finally:
        del block.forward


def _change(edits: Sequence[Edit], layer: int, start: int) -> Callable[..., Any] | None:
    """A hook that changes neurons of a layer; None where no row does."""
    here = [edit.places[edit.places[:, 0] == layer] for edit in edits]
    rows = [row for row, edit in enumerate(edits) if edit.others or len(here[row])]
    if not rows:
        return None

    def work(_: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        x_BTF = args[0].unflatten(0, (len(edits), -1)) if args[0].dim() == 2 else args[0]
        x_BTF = x_BTF.clone()
        for row in rows:
            _changed(x_BTF[row], edits[row], here[row], layer, start)
        return (x_BTF.view_as(args[0]), *args[1:])

    return work


def _changed(x_TF: Tensor, edit: Edit, here_P3: Tensor, layer: int, start: int) -> None:
    """In place."""
    whole = edit.reference.layers[layer]
    nodes, neurons = here_P3[:, 1].to(x_TF.device) - start, here_P3[:, 2].to(x_TF.device)
    picked = x_TF[nodes, neurons]
    if edit.others:
        moved = whole if len(whole) == 1 else whole[start:]
        x_TF.copy_(moved + edit.factor * (x_TF - moved) if edit.factor else moved.expand_as(x_TF))
        x_TF[nodes, neurons] = picked
    else:
        to = whole[0, neurons] if len(whole) == 1 else whole[nodes + start, neurons]
        x_TF[nodes, neurons] = to + edit.factor * (picked - to)


__all__ = [
    "Ablation", "Basis", "Bench", "Edit", "Neurons", "Reference", "check_aligned", "counterfactual", "mean", "zero",
]  # fmt: skip
