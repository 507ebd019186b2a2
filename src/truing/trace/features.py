"""The engine for features of dictionaries in Llama-shaped blocks: the recursion of `linear`, MLPs cut at features.

An MLP's output is what its features write, an offset, perhaps a linear path by the MLP (skip), and an error: what is
missing to the output that the model computed. Error and features of a layer are its total; offsets and what encoders
add to each activation are biases. So activations add up as neurons do. After Ameisen et al. 2025 ("Circuit Tracing"),
where biases and what is not listed are left out of the accounts, and errors of the first position too.
"""

# B targets  T nodes of the tree  D width  F features  S active features of a layer, in order of nodes  P cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.errors import UsageError
from truing.targets.local import Functional
from truing.targets.local.inside import Activations, blocks, read
from truing.trace.dictionaries import Dictionaries, Dictionary, Site
from truing.trace.engine import Goal, Layer, Sink, Sources, Spot
from truing.trace.linear import logit_cotangent, output_cotangents, recursion
from truing.trace.rules import Rule


@dataclass(frozen=True, slots=True, eq=False)
class Active:
    """The features of a layer that are active in this case, and what the layer's output lacks."""

    start_T: list[int]
    """Where the features of a node begin; T + 1 places."""
    node_S: Tensor
    index_S: Tensor
    value_S: Tensor
    error_TD: Tensor

    def place(self, node: int, index: int) -> int | None:
        """Where a feature stands; None where it is not active."""
        start, stop = self.start_T[node : node + 2]
        place = start + int(torch.searchsorted(self.index_S[start:stop], index))
        return place if place < stop and int(self.index_S[place]) == index else None


class DictionaryEngine:
    """A case in a model with Llama-shaped blocks, in features. TargetError for other models."""

    def __init__(
        self, model: Any, functional: Functional, dictionaries: Dictionaries, rule: Rule = "relp", *, beginning: int = 1
    ) -> None:
        """At the first `beginning` nodes no feature counts as active, and the MLP's output is error: dictionaries are
        not trained on what stands there. The rule matters for SAEs alone, which read behind an MLP.
        """
        self._model, self._dictionaries, self._rule = model, dictionaries, rule
        kept_M = functional.before_M.unique()
        seen = read(model, functional.tree, kept_M)
        self.layers, self.nodes = len(blocks(model)), len(functional.tree)
        self.width = max((len(one.bias_F) for one in dictionaries if one is not None), default=1)
        with torch.no_grad():
            self._decision, self._value = logit_cotangent(
                model, seen, functional.tree.ids_N[functional.nodes_M], functional.before_M, functional.weight_M, kept_M
            )
            self.active = _encoded(model, seen, dictionaries, beginning)
        if not any(one is not None and one.reads == "mlp out" for one in dictionaries):
            seen.gate, seen.up = [], []  # no target reads behind an MLP
        seen.neurons, seen.heads, seen.logits = [], [], None
        self._seen = seen

    def value(self, goal: Goal) -> float:
        """What is explained. UsageError for a feature that is not active: its activation is no linear function."""
        return self._value if goal is None else float(self.active[goal[0]].value_S[self._place(goal)])

    @torch.no_grad()
    def by_all_paths(self, spots: Sequence[Spot]) -> tuple[Sources, Tensor]:
        """What tokens, biases and these features add to the decision through all features above. What errors add is
        neither's: errors are sources of their own, and pass nothing on.
        """
        bias = torch.zeros(1, dtype=torch.double)
        given = [torch.zeros_like(active.value_S) for active in self.active]

        def by_features(layer: int, R_BTD: Tensor) -> Tensor:
            R_TD = R_BTD[0]
            for low in range(layer + 1):
                writer = self._dictionaries[low]
                if writer is not None and layer - low < len(writer.decoders_WFD):
                    given[low] += _read_by(self.active[low], writer.decoders_WFD[layer - low], R_TD)
            own, active = self._dictionaries[layer], self.active[layer]
            if own is None:
                return R_BTD
            bias.add_((R_TD.sum(0) @ own.offset_D + given[layer] @ own.bias_F[active.index_S]).double().cpu())
            into_TD = _written(replace(active, value_S=given[layer]), own.encoder_FD)
            return self._by_the_mlp(layer, R_BTD) + self._encoding(layer, into_TD)

        R_BTD = recursion(self._model, self._seen, self._decision[None], sink=lambda *_: None, through_mlps=False,
                          inject=by_features)  # fmt: skip
        places = [(spot[0], self._place(spot)) for spot in spots]
        found = [float(given[layer][place] * self.active[layer].value_S[place]) for layer, place in places]
        return Sources((R_BTD * self._seen.embed_TD).sum(-1), bias), torch.tensor(found)

    @torch.no_grad()
    def into(self, goals: Sequence[Goal], sink: Sink) -> Sources:
        """What every source adds to each target, in one recursion; a target joins it at its own layer."""
        top = self.layers - 1 if goals[0] is None else goals[0][0]
        shape, device = self._seen.embed_TD.shape, self.device
        R_BTD = self._decision[None] if goals[0] is None else torch.zeros(0, *shape, device=device)
        biases_B = torch.tensor([self._bias(goal) for goal in goals], dtype=torch.double)
        pouring = _Pouring(self, goals, biases_B)

        def inject(layer: int, R_BTD: Tensor) -> Tensor:
            R_BTD = self._by_the_mlp(layer, R_BTD)
            here = [goal for goal in goals if goal is not None and goal[0] == layer]
            if not here:
                return R_BTD
            _, nodes, features = torch.tensor(here, device=device).T
            joining = torch.zeros(len(here), *shape, device=device)
            joining[torch.arange(len(here)), nodes] = self._cotangents(layer, nodes, features)
            return torch.cat([R_BTD, joining])

        def pour(layer: int, after_BTD: Tensor, _: Tensor) -> None:
            if len(after_BTD):
                sink(pouring.layer(layer, after_BTD))

        R_BTD = recursion(self._model, self._seen, R_BTD, sink=pour, through_mlps=False, inject=inject, top=top)
        return Sources((R_BTD * self._seen.embed_TD).sum(-1), biases_B)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._decision.device

    def dictionary(self, layer: int) -> Dictionary | None:
        """The features of a layer."""
        return self._dictionaries[layer]

    def _place(self, goal: tuple[int, int, int]) -> int:
        layer, node, index = goal
        if (place := self.active[layer].place(node, index)) is None:
            raise UsageError(f"feature {index} of layer {layer} is not active at node {node}; only active ones are"
                             " explained")  # fmt: skip
        return place

    def _bias(self, goal: Goal) -> float:
        if goal is None:
            return 0.0
        one = self._dictionaries[goal[0]]
        assert one is not None  # value() was asked before
        return float(one.bias_F[goal[2]])

    def _cotangents(self, layer: int, nodes_P: Tensor, features_P: Tensor) -> Tensor:
        """Cotangents of features at the residual stream before the MLP, each at its own node: shape (P, D)."""
        one = self._dictionaries[layer]
        assert one is not None  # value() was asked before
        found_PD = one.encoder_FD[features_P]
        if one.reads == "mlp out":
            return output_cotangents(self._model, self._seen, layer, nodes_P, found_PD, self._rule)
        return found_PD if one.reads == "before norm" else found_PD * self._scale(layer, one.reads)[nodes_P]

    def _encoding(self, layer: int, into_TD: Tensor) -> Tensor:
        """From what encoders read to the residual stream before the MLP, at all nodes."""
        one = self._dictionaries[layer]
        assert one is not None  # the caller asked
        if one.reads == "mlp out":
            every = torch.arange(self.nodes, device=self.device)
            return output_cotangents(self._model, self._seen, layer, every, into_TD, self._rule)
        return into_TD * self._scale(layer, one.reads)

    def _by_the_mlp(self, layer: int, R_BTD: Tensor) -> Tensor:
        """From after an MLP to before it: by the residual stream, and by a skip where there is one."""
        one = self._dictionaries[layer]
        if one is None or one.skip_DD is None or not len(R_BTD):
            return R_BTD
        past_BTD = R_BTD @ one.skip_DD
        return R_BTD + (past_BTD if one.reads == "before norm" else past_BTD * self._scale(layer, one.reads))

    def _scale(self, layer: int, site: Site) -> Tensor:
        return _scale(self._model, self._seen, layer, site)


class _Pouring:
    """What features add to targets, gathered from the highest layer down."""

    def __init__(self, engine: DictionaryEngine, goals: Sequence[Goal], biases_B: Tensor) -> None:
        self._engine, self._biases_B = engine, biases_B
        # A target is reached from its own node and those before it: nodes stand after their ancestors.
        self._last_B = torch.tensor([engine.nodes - 1 if goal is None else goal[1] for goal in goals],
                                    device=engine.device)  # fmt: skip
        self._parts: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}

    def layer(self, number: int, after_BTD: Tensor) -> Layer:
        """A layer, from the cotangents behind its MLP; features of lower layers that write there are noted."""
        own = self._engine.dictionary(number)
        for low in range(number + 1):
            one = self._engine.dictionary(low)
            if one is not None and number - low < len(one.decoders_WFD):
                self._written(low, one.decoders_WFD[number - low], after_BTD)
        if own is not None:
            self._biases_B[: len(after_BTD)] += (after_BTD.sum(1) @ own.offset_D).double().cpu()
        active = self._engine.active[number]
        total_BT = torch.einsum("btd,td->bt", after_BTD, active.error_TD)
        if number not in self._parts:
            empty = torch.zeros(len(after_BTD), 0, device=after_BTD.device)
            return _layer(number, total_BT, empty, active, self._engine.width)
        count = len(after_BTD)
        total_BT += self._totals.pop(number)[:count]
        return _layer(number, total_BT, self._parts.pop(number)[:count], active, self._engine.width)

    def _written(self, low: int, decoder_FD: Tensor, after_BTD: Tensor) -> None:
        """What the features of a layer add by what they write here."""
        active = self._engine.active[low]
        if not len(active.value_S):
            return
        B, count = len(self._last_B), len(after_BTD)
        if low not in self._parts:
            self._parts[low] = after_BTD.new_zeros(B, len(active.value_S))
            self._totals[low] = after_BTD.new_zeros(B, self._engine.nodes)
        parts_BS, last_B = self._parts[low][:count], self._last_B[:count]
        first = int(last_B.min())
        for node in range(int(last_B.max()) + 1):
            start, stop = active.start_T[node : node + 2]
            if start == stop:
                continue
            by_SD = decoder_FD[active.index_S[start:stop]]
            if node <= first:
                parts_BS[:, start:stop] += after_BTD[:, node] @ by_SD.T
            else:
                rows = (last_B >= node).nonzero()[:, 0]
                parts_BS[rows, start:stop] += after_BTD[rows, node] @ by_SD.T
        self._totals[low][:count] += torch.einsum("btd,td->bt", after_BTD, _written(active, decoder_FD))


def _layer(number: int, total_BT: Tensor, parts_BS: Tensor, active: Active, width: int) -> Layer:
    parts_BS *= active.value_S
    bound_B = total_BT.new_zeros(len(total_BT))
    if parts_BS.shape[1]:
        least, most = parts_BS.aminmax(dim=1)
        bound_B = torch.maximum(-least, most)
    return Layer(
        number, total_BT, bound_B[:, None].expand(total_BT.shape), partial(_cells, parts_BS, active, width),
        partial(_largest, parts_BS, active),
    )  # fmt: skip


def _cells(parts_BS: Tensor, active: Active, width: int, cells_P2: Tensor) -> Tensor:
    found_PF = parts_BS.new_zeros(len(cells_P2), width)
    for place, (row, node) in enumerate(cells_P2.tolist()):
        start, stop = active.start_T[node : node + 2]
        found_PF[place, active.index_S[start:stop]] = parts_BS[row, start:stop]
    return found_PF


def _largest(parts_BS: Tensor, active: Active, floor_B: Tensor, most: int) -> Tensor:
    if parts_BS.shape[1] > most:
        found = parts_BS.abs().topk(most, dim=1, sorted=False)
        row, rank = (found.values >= floor_B[:, None]).nonzero().T
        place = found.indices[row, rank]
    else:
        row, place = (parts_BS.abs() >= floor_B[:, None]).nonzero().T
    some = [row, active.node_S[place], active.index_S[place], parts_BS[row, place]]
    return torch.stack([x.double() for x in some])


# -- what is active ----------------------------------------------------------------------------------------------------


def _encoded(model: Any, seen: Activations, dictionaries: Dictionaries, beginning: int) -> list[Active]:
    """Active features and errors, by layer."""
    found: list[Active] = []
    stream_TD = seen.embed_TD
    for layer, block in enumerate(model.model.layers):
        stream_TD = stream_TD + seen.heads[layer] @ block.self_attn.o_proj.weight.T
        output_TD = seen.neurons[layer] @ block.mlp.down_proj.weight.T
        one = dictionaries[layer]
        if one is None:
            none = torch.zeros(0, dtype=torch.long, device=output_TD.device)
            made = Active([0] * (len(output_TD) + 1), none, none, output_TD.new_zeros(0), output_TD.clone())
        else:
            x_TD = output_TD if one.reads == "mlp out" else stream_TD * _scale(model, seen, layer, one.reads)
            made = _active(one, x_TD, output_TD, beginning)
        for low, active in enumerate([*found, made]):
            writer = dictionaries[low]
            if writer is not None and layer - low < len(writer.decoders_WFD):
                made.error_TD.sub_(_written(active, writer.decoders_WFD[layer - low]))
        found.append(made)
        stream_TD = stream_TD + output_TD
    return found


def _active(one: Dictionary, x_TD: Tensor, output_TD: Tensor, beginning: int) -> Active:
    """With the error before features are taken from it."""
    error_TD = output_TD - one.offset_D
    if one.skip_DD is not None:
        error_TD -= x_TD @ one.skip_DD.T
    return Active(*encoded(one, x_TD, beginning), error_TD)


def encoded(one: Dictionary, x_TD: Tensor, beginning: int) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """The first fields of `Active`, from what a dictionary reads; nothing is active at the first nodes."""
    node_S, index_S, value_S = one.active(x_TD)
    kept = node_S >= beginning
    node_S, index_S, value_S = node_S[kept], index_S[kept], value_S[kept]
    ends_T = torch.bincount(node_S, minlength=len(x_TD)).cumsum(0).tolist()
    return [0, *ends_T], node_S, index_S, value_S


def _read_by(active: Active, decoder_FD: Tensor, R_TD: Tensor) -> Tensor:
    """What cotangents behind an MLP come to at active features that write there, shape (S,)."""
    found = torch.zeros_like(active.value_S)
    for node in active.node_S.unique_consecutive().tolist():
        start, stop = active.start_T[node : node + 2]
        found[start:stop] = decoder_FD[active.index_S[start:stop]] @ R_TD[node]
    return found


def _written(active: Active, decoder_FD: Tensor) -> Tensor:
    """What active features write, shape (T, D)."""
    return written_by(active.start_T, active.index_S, active.value_S, decoder_FD)


def written_by(start_T: Sequence[int], index_S: Tensor, value_S: Tensor, decoder_FD: Tensor) -> Tensor:
    """The same of features in order of nodes, those of a node from its start on."""
    starts_T = torch.tensor(start_T[:-1], device=decoder_FD.device)
    return F.embedding_bag(index_S, decoder_FD, starts_T, mode="sum", per_sample_weights=value_S.to(decoder_FD))


def _scale(model: Any, seen: Activations, layer: int, site: Site) -> Tensor:
    """What the residual stream before an MLP is multiplied with where features read: shape (T, D) or (T, 1)."""
    if site == "before norm":
        return torch.ones_like(seen.norm2[layer][:, None])
    scale_T1 = seen.norm2[layer][:, None]
    return scale_T1 if site == "normalized" else scale_T1 * model.model.layers[layer].post_attention_layernorm.weight


__all__ = ["Active", "DictionaryEngine", "encoded", "written_by"]
