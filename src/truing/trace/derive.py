"""Derivatives of a decision inside any decoder, by autograd: plain ones, under the linear rules, or along a path.

gradient              through attention patterns, norms and activations as they are
                      (attribution patching, Syed et al. 2023, arXiv:2310.10348)
integrated-gradients  the mean of that while the embeddings go from the second cell's to the first's
                      (Sundararajan et al. 2017, arXiv:1703.01365; over inputs alone, with derivatives read at inner
                      nodes: EAP-IG, Hanna et al. 2024, arXiv:2403.17806)
relp, gate-frozen     under the linear rules (see `rules`)
"""

# B points of a path  T nodes of the tree  D width  U units of a site, each as wide as it is  M continuation tokens

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local import Functional
from truing.targets.local.attention import alone
from truing.targets.local.change import Units, layers, picked, seen
from truing.targets.local.inside import Site, eager, forward
from truing.targets.local.tree import takes_trees
from truing.trace.auto import tree_logits
from truing.trace.rules import Rule, linear

MIDPOINTS = 10
"""Points of the path of integrated gradients."""
AT_ONCE = 512
"""Nodes of the points that go through a model as one batch."""
SITES: tuple[Site, ...] = ("head", "neuron")

Derivative = Rule | Literal["gradient"]


@dataclass(frozen=True, slots=True)
class Inside:
    """Values along a tree, or the decision's derivatives with respect to them, layer by layer, in fp32."""

    embeddings_TD: Tensor
    heads: list[Tensor]
    """What attention heads give to the output projection, (T, H * E)."""
    neurons: list[Tensor]
    """What MLP neurons give to theirs, (T, F)."""
    decision: float
    """nats per token; of derivatives, the mean over the points where they were taken."""

    def at(self, site: Site) -> list[Tensor]:
        """Of one kind of unit."""
        return self.heads if site == "head" else self.neurons


def decision_of(functional: Functional, logits_BMV: Tensor) -> Tensor:
    """The decision from logits at the nodes that predict something, in their order, each row: (B,), nats a token."""
    _, row_M = functional.before_M.unique(return_inverse=True)
    device = logits_BMV.device
    tokens = functional.tree.ids_N[functional.nodes_M].to(device)
    log_p = torch.log_softmax(logits_BMV.float(), -1)[:, row_M.to(device), tokens]
    return (log_p.double() * functional.weight_M.to(device).double()).sum(-1)


@torch.no_grad()
def values(model: Any, functional: Functional) -> Inside:
    """What units are in one pass. TargetError for a model that takes no trees, or whose units cannot be found."""
    _check(model)
    sites = _sites(model)
    with alone(model), seen(model, sites) as found:
        logits = forward(model, functional.tree, functional.before_M.unique()).logits
    inside = {site: picked(model, site, found[site]).float() for site in sites}
    return _inside(embedded(model, functional), inside, float(decision_of(functional, logits)[0]))


@torch.no_grad()
def embedded(model: Any, functional: Functional) -> Tensor:
    """What a pass over the tree begins with, (T, D)."""
    return model.get_input_embeddings()(functional.tree.ids_N.to(model.device)).float()


def derive(model: Any, functional: Functional, rule: Derivative = "gradient") -> Inside:
    """The decision's derivatives at one tree, under a rule."""
    _check(model)
    return _mean(model, functional, [embedded(model, functional)[None]], rule)


def integrate(model: Any, functional: Functional, from_TD: Tensor, *, points: int = MIDPOINTS) -> Inside:
    """The mean of derivatives at midpoints of the straight path from other embeddings to the tree's own.

    Times the difference of the embeddings it adds up to the difference of the decision, but for the coarseness of the
    midpoints.
    """
    _check(model)
    to_TD = embedded(model, functional)
    share_B = (torch.arange(points, device=to_TD.device) + 0.5) / points
    path_BTD = from_TD + share_B[:, None, None] * (to_TD - from_TD)
    return _mean(model, functional, list(path_BTD.split(max(1, AT_ONCE // len(to_TD)))), "gradient")


def _mean(model: Any, functional: Functional, batches: Sequence[Tensor], rule: Derivative) -> Inside:
    """The mean over all points of all batches."""
    many, total, decision = sum(len(batch) for batch in batches), None, 0.0
    for batch in batches:
        decisions, found = _pass(model, functional, batch, rule)
        parts = [part.float().unflatten(0, (len(batch), -1)).sum(0) / many for part in found.values()]
        total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        decision += float(decisions.sum()) / many
    assert total is not None  # there is a batch
    return _inside(total[0], dict(zip(_sites(model), total[1:], strict=True)), decision)


def _pass(
    model: Any, functional: Functional, embeddings_BTD: Tensor, rule: Derivative
) -> tuple[Tensor, dict[Units | None, Tensor]]:
    """Decisions of rows that begin with these embeddings, and derivatives, (B * T, U); None: by the embeddings."""
    kept, sites = functional.before_M.unique(), _sites(model)
    with torch.enable_grad(), alone(model), ExitStack() as stack:
        start = embeddings_BTD.detach().to(model.dtype).requires_grad_()
        stack.enter_context(_beginning(model, start))
        found = stack.enter_context(seen(model, sites))
        if rule == "gradient":
            logits = forward(model, functional.tree, kept, rows=len(start)).logits
        else:
            with eager(model), linear(model, rule):
                logits = tree_logits(model, functional, kept)[None]
        decisions = decision_of(functional, logits)
        grads = torch.autograd.grad(
            decisions.sum(), [start, *(found[site] for site in sites)], allow_unused=True, materialize_grads=True
        )
    inner = {site: picked(model, site, grad) for site, grad in zip(sites, grads[1:], strict=True)}
    found_all: dict[Units | None, Tensor] = {None: grads[0].flatten(0, -2)}
    return decisions.detach(), found_all | inner


@contextmanager
def _beginning(model: Any, embeddings_BTD: Tensor) -> Iterator[None]:
    """Passes within it begin with these, whatever their tokens are."""
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, ___: embeddings_BTD)
    try:
        yield
    finally:
        hook.remove()


def _sites(model: Any) -> list[Units]:
    return [Units(site, layer) for site in SITES for layer in range(len(layers(model)))]


def _inside(embeddings_TD: Tensor, found: dict[Units, Tensor], decision: float) -> Inside:
    heads, neurons = ([found[site] for site in found if site.kind == kind] for kind in SITES)
    return Inside(embeddings_TD, heads, neurons, decision)


def _check(model: Any) -> None:
    if not takes_trees(model):
        raise TargetError(
            f"a {type(model).__name__} takes no trees of texts, which derivatives are laid out along;"
            " trace a decoder with attention alone"
        )


__all__ = ["MIDPOINTS", "Derivative", "Inside", "decision_of", "derive", "embedded", "integrate", "values"]
