"""Attribution: which heads and neurons carry the difference between twins, to first order, by a rule.

    relp                  derivatives under the linear rules at the first cell; by hand where blocks are Llama-shaped
    gate-frozen           the same with the activation of a gate held
    gradient              plain derivatives at the first cell
    integrated-gradients  plain derivatives, their mean while the embeddings go from the second cell's to the first's
    largest change        how much a unit differs between the cells, whatever follows from it
    activation size       how large a unit is in the cells, whether or not it differs between them
    random                numbers without a meaning

The last three are what the others are to be better than.
"""

# L layers  H heads  F neurons  S segments  T nodes  P aligned nodes  U units of a site, each as wide as it is

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from truing.targets.local.inside import Activations, Site, llama_shaped, read
from truing.trace.derive import SITES, Inside, decision_of, derive, integrate, values
from truing.trace.linear import head_cotangent, logit_cotangent, recursion
from truing.trace.rules import Rule
from truing.trace.twins import Side, Twin

Scoring = Literal[
    "relp", "gate-frozen", "gradient", "integrated-gradients", "largest change", "activation size", "random"
]  # fmt: skip
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
"""Rules by which units are scored."""
Trivial = Literal["largest change", "activation size"]
TRIVIAL: tuple[Trivial, ...] = get_args(Trivial)
"""Those that ask for no derivative, and are no chance either."""

Sink = Callable[[Site, int, Tensor, Tensor, Tensor], None]
"""Is given (site, layer, values in the first cell at aligned nodes, in the second, score there), each (P, U)."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Per unit, summed over aligned positions: what of the effect it carries, how much it changes at all, and how large
    it is.

    score = (value in first cell - value in second) * total derivative of the decision: nats per token; positive
    where the unit carries the effect. Shapes: heads (L, H), neurons (L, F); by segment: (S, L, F). The effect itself,
    the decision in the first cell minus that in the second, is a scalar.
    """

    heads: Tensor
    neurons: Tensor
    heads_change: Tensor
    neurons_change: Tensor
    heads_size: Tensor
    neurons_size: Tensor
    neurons_by_segment: Tensor
    effect: Tensor

    def scores(self, site: Site) -> Tensor:
        """Of the units of a site."""
        return self.heads if site == "head" else self.neurons

    def trivial(self, site: Site) -> dict[Trivial, Tensor]:
        """What units of a site could be chosen by without asking what follows from them."""
        if site == "head":
            return {"largest change": self.heads_change, "activation size": self.heads_size}
        return {"largest change": self.neurons_change, "activation size": self.neurons_size}


def read_side(model: Any, side: Side) -> tuple[Activations, Tensor]:
    """Activations of one side, and the nodes whose logits were kept."""
    kept_M = side.functional.before_M.unique()
    return read(model, side.functional.tree, kept_M), kept_M


def decision_cotangent(model: Any, side: Side, seen: Activations, kept_M: Tensor) -> tuple[Tensor, float]:
    """Cotangent of the decision at the end of the residual stream, and its value m (see linear.logit_cotangent)."""
    f = side.functional
    return logit_cotangent(model, seen, f.tree.ids_N[f.nodes_M], f.before_M, f.weight_M, kept_M)


def attribute(model: Any, twin: Twin, segments: Sequence[str], rule: Scoring = "relp") -> Attribution:
    """What every unit carries between twins, by a rule. TargetError where the model's units cannot be reached."""
    heads = int(model.config.get_text_config().num_attention_heads)
    index = {label: i for i, label in enumerate(segments)}
    segment_T = torch.tensor([index[twin.first.segment_T[int(t)]] for t in twin.onto_T])
    found: dict[str, dict[int, Tensor]] = {name: {} for name in Attribution.__slots__ if name != "effect"}

    def sink(site: Site, layer: int, here: Tensor, there: Tensor, score: Tensor) -> None:
        count = heads if site == "head" else score.shape[1]
        for name, x_PU in (("", score), ("_change", change(here, there)), ("_size", size(here, there))):
            found[f"{site}s{name}"][layer] = x_PU.sum(0).view(count, -1).sum(-1)
        if site == "neuron":
            by = torch.zeros(len(segments), score.shape[1], device=score.device)
            found["neurons_by_segment"][layer] = by.index_add(0, segment_T.to(score.device), score)

    effect = contract(model, twin, rule, sink)
    stacked = {name: torch.stack([rows[layer] for layer in sorted(rows)]).cpu() for name, rows in found.items()}
    stacked["neurons_by_segment"] = stacked["neurons_by_segment"].transpose(0, 1).contiguous()
    return Attribution(**stacked, effect=effect.cpu())


def change(here: Tensor, there: Tensor) -> Tensor:
    """How far values are apart between the cells."""
    return (here - there).abs()


def size(here: Tensor, there: Tensor) -> Tensor:
    """How large values are, the mean of the cells."""
    return (here.abs() + there.abs()) / 2


def contract(model: Any, twin: Twin, rule: Scoring, sink: Sink) -> Tensor:
    """Scores of all units at every aligned node, layer by layer, and the effect itself."""
    if (rule == "relp" or rule == "gate-frozen") and llama_shaped(model):  # noqa: PLR1714 - mypy narrows by these alone
        return _by_hand(model, twin, rule, sink)
    a, b = values(model, twin.first.functional), values(model, twin.second.functional)
    grads = _derivatives(model, twin, rule, a, b)
    draw = torch.Generator().manual_seed(0)  # the same for all twins, so that their mean is no less random
    for site in SITES:
        for layer, cells in enumerate(zip(a.at(site), b.at(site), strict=True)):
            here, there = cells[0][twin.onto_T], cells[1][twin.from_T]
            if grads is not None:
                score = (here - there) * grads.at(site)[layer][twin.onto_T]
            elif rule == "activation size":
                score = size(here, there)
            elif rule == "random":
                score = torch.rand(here.shape[-1], generator=draw).to(here).expand_as(here) / len(here)
            else:
                score = change(here, there)
            sink(site, layer, here, there, score)
    return torch.tensor(a.decision - b.decision, dtype=torch.double)


def _derivatives(model: Any, twin: Twin, rule: Scoring, a: Inside, b: Inside) -> Inside | None:
    """Derivatives at the first cell; none where a rule goes without."""
    if rule == "largest change" or rule == "activation size" or rule == "random":  # noqa: PLR1714 - for mypy
        return None
    if rule != "integrated-gradients":
        return derive(model, twin.first.functional, rule)
    start_TD = a.embeddings_TD.clone()
    start_TD[twin.onto_T] = b.embeddings_TD[twin.from_T]
    return integrate(model, twin.first.functional, start_TD)


@torch.no_grad()
def _by_hand(model: Any, twin: Twin, rule: Rule, sink: Sink) -> Tensor:
    """One backward recursion at the first cell, contracted with the differences to the second."""
    a, kept = read_side(model, twin.first)
    b, _ = read_side(model, twin.second)
    assert a.logits is not None and b.logits is not None  # noqa: PT018 - read() sets both
    onto, taken = twin.onto_T, twin.from_T

    def pour(layer: int, after: Tensor, before: Tensor) -> None:
        here, there = a.neurons[layer][onto], b.neurons[layer][taken]
        onto_neurons = after[0, onto] @ model.model.layers[layer].mlp.down_proj.weight
        sink("neuron", layer, here, there, (here - there) * onto_neurons)
        here, there = a.heads[layer][onto], b.heads[layer][taken]
        sink("head", layer, here, there, (here - there) * head_cotangent(model, layer, before[0, onto]))

    R_TD, _ = decision_cotangent(model, twin.first, a, kept)
    recursion(model, a, R_TD[None], sink=pour, through_mlps=True, rule=rule)
    return (
        decision_of(twin.first.functional, a.logits[None])[0] - decision_of(twin.second.functional, b.logits[None])[0]
    )
