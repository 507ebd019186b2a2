"""The engine for Llama-shaped blocks: the recursion of `linear`, many targets at once, no graph kept."""

# B targets  T nodes of the tree  D width  F neurons  P cells

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from truing.targets.local import Functional
from truing.targets.local.inside import blocks, read, units
from truing.trace.engine import Goal, Layer, Sink, Sources, Spot
from truing.trace.linear import logit_cotangent, recursion, spot_cotangents
from truing.trace.rules import Rule


class HandEngine:
    """A case in a model with Llama-shaped blocks. TargetError for any other."""

    def __init__(self, model: Any, functional: Functional, rule: Rule = "relp") -> None:
        self._model, self._rule = model, rule
        kept_M = functional.before_M.unique()
        self.seen = read(model, functional.tree, kept_M)
        self.layers, self.nodes, self.width = len(blocks(model)), len(functional.tree), units(model, "neuron")[0]
        with torch.no_grad():
            self._decision, self._value = logit_cotangent(
                model, self.seen, functional.tree.ids_N[functional.nodes_M], functional.before_M, functional.weight_M,
                kept_M,
            )  # fmt: skip

    def value(self, goal: Goal) -> float:
        """What is explained."""
        return self._value if goal is None else float(self.seen.neurons[goal[0]][goal[1], goal[2]])

    @torch.no_grad()
    def by_all_paths(self, spots: Sequence[Spot]) -> tuple[Sources, Tensor]:
        """What tokens and these neurons add to the decision through all neurons above."""
        found = torch.zeros(len(spots))

        def read_off(layer: int, after_BTD: Tensor, _: Tensor) -> None:
            here = [place for place, spot in enumerate(spots) if spot[0] == layer]
            _, nodes, neurons = torch.tensor([spots[place] for place in here], dtype=torch.long).reshape(-1, 3).T
            down_DF = self._model.model.layers[layer].mlp.down_proj.weight
            given = (after_BTD[0, nodes] * down_DF[:, neurons].T).sum(-1)
            found[here] = (given * self.seen.neurons[layer][nodes, neurons]).cpu()

        R_BTD = recursion(
            self._model, self.seen, self._decision[None], sink=read_off, through_mlps=True, rule=self._rule
        )
        return self._sources(R_BTD), found

    @torch.no_grad()
    def into(self, goals: Sequence[Goal], sink: Sink) -> Sources:
        """What every source adds to each target, in one recursion; a target joins it at its own layer."""
        top = self.layers - 1 if goals[0] is None else goals[0][0]
        shape = self.seen.embed_TD.shape
        R_BTD = self._decision[None] if goals[0] is None else torch.zeros(0, *shape, device=self._decision.device)

        def inject(layer: int, R_BTD: Tensor) -> Tensor:
            here = [goal for goal in goals if goal is not None and goal[0] == layer]
            if not here:
                return R_BTD
            _, nodes, neurons = torch.tensor(here, device=R_BTD.device).T
            joining = torch.zeros(len(here), *shape, device=R_BTD.device)
            joining[torch.arange(len(here)), nodes] = spot_cotangents(
                self._model, self.seen, layer, nodes, neurons, self._rule
            )
            return torch.cat([R_BTD, joining])

        def pour(layer: int, after_BTD: Tensor, _: Tensor) -> None:
            if len(after_BTD):
                sink(self._layer(layer, after_BTD))

        R_BTD = recursion(
            self._model, self.seen, R_BTD, sink=pour, through_mlps=False, inject=inject, top=top, rule=self._rule
        )
        return self._sources(R_BTD)

    def _sources(self, R_BTD: Tensor) -> Sources:
        inputs_BT = (R_BTD * self.seen.embed_TD).sum(-1)
        return Sources(inputs_BT, inputs_BT.new_zeros(len(inputs_BT), dtype=torch.double))

    def _layer(self, layer: int, after_BTD: Tensor) -> Layer:
        down_DF = self._model.model.layers[layer].mlp.down_proj.weight
        values_TF = self.seen.neurons[layer]
        total_BT = torch.einsum("btd,td->bt", after_BTD, values_TF @ down_DF.T)
        # Cauchy-Schwarz: |h <w, R>| <= |h| |w| |R|.
        largest_T = (values_TF.abs() * down_DF.norm(dim=0)).amax(-1)
        bound_BT = after_BTD.norm(dim=-1) * largest_T * (1 + 1e-5)
        return Layer(layer, total_BT, bound_BT, partial(_cells, after_BTD, values_TF, down_DF))


def _cells(after_BTD: Tensor, values_TF: Tensor, down_DF: Tensor, cells_P2: Tensor) -> Tensor:
    rows, nodes = cells_P2.T
    return (after_BTD[rows, nodes] @ down_DF) * values_TF[nodes]


__all__ = ["HandEngine"]
