"""Features of dictionaries as what is ablated on a bench: what they write is taken from, or added to, MLP outputs.

A feature is moved from the activation a that it has in the changed pass to another, b, by adding (b - a) times its
decoder rows to the outputs that it writes to. All else of an MLP stays as it computes it: its error, offset and skip,
and other features of its layer. MLPs and attention above follow. After interventions on features in Ameisen et al.
2025 ("Circuit Tracing"), with nothing frozen.
"""

# B rows  T nodes from `start` on  F features of a layer  P places  D width  W layers that are written to

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.targets.local.inside import blocks
from truing.trace.ablate import Edit
from truing.trace.dictionaries import Dictionaries, Dictionary
from truing.trace.features import encoded, written_by

FP32 = 4


class Features:
    """A basis of `Bench` in models with Llama-shaped blocks. At the first `beginning` nodes nothing is a feature, and
    nothing is changed.
    """

    def __init__(self, model: Any, dictionaries: Dictionaries, *, beginning: int) -> None:
        self._blocks, self._dictionaries, self._beginning = blocks(model), dictionaries, beginning
        writes = max((len(one.decoders_WFD) for one in dictionaries if one is not None), default=1)
        self.bytes_a_node = (writes + 4) * model.config.hidden_size * FP32
        self.held_a_node = FP32 * sum(len(one.bias_F) for one in dictionaries if one is not None)

    def read(self, stack: ExitStack) -> Callable[[], tuple[Tensor, ...]]:
        """Activations; 0 where a feature is not active, and no columns where a layer has no dictionary."""
        seen = dict[int, Tensor]()

        def given(layer: int, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
            one = self._dictionaries[layer]
            if one is None:
                seen[layer] = x_BTD.new_zeros(x_BTD.shape[1], 0)
                return out_BTD
            _, node_S, index_S, value_S = encoded(one, x_BTD[0], self._beginning)
            seen[layer] = x_BTD.new_zeros(x_BTD.shape[1], len(one.bias_F))
            seen[layer][node_S, index_S] = value_S
            return out_BTD

        for layer in range(len(self._blocks)):
            self._watch(stack, layer, partial(given, layer))
        return lambda: tuple(seen[layer] for layer in range(len(self._blocks)))

    def change(self, stack: ExitStack, edits: Sequence[Edit], low: int, start: int) -> None:
        """Layers that features of lower ones write to are changed when the pass comes to them."""
        waiting: dict[int, Tensor] = {}

        def given(layer: int, one: Dictionary | None, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
            out_BTD = out_BTD + waiting.pop(layer, 0)
            if one is None:
                return out_BTD
            if one.reads == "mlp out":
                x_BTD = out_BTD
            for offset, moved_BTD in self._moved(one, layer, x_BTD, edits, start):
                if offset == 0:
                    out_BTD = out_BTD + moved_BTD
                else:
                    waiting[layer + offset] = waiting.get(layer + offset, 0) + moved_BTD
            return out_BTD

        for layer in range(low, len(self._blocks)):
            self._watch(stack, layer, partial(given, layer, self._dictionaries[layer]))

    def matched(self, values: Sequence[Tensor], places: Tensor, rng: np.random.Generator) -> Tensor:
        """Other active ones at the same place; where there are too few, others of the layer, then those themselves."""
        own = set(map(tuple, places.tolist()))
        pools = {layer: _others(values[layer], layer, own, rng) for layer in places[:, 0].unique().tolist()}
        found = [_taken(pools[spot[0]], spot[1]) for spot in places.tolist()]
        whole = [spot or _taken(pools[at[0]], None) or at for spot, at in zip(found, places.tolist(), strict=True)]
        return torch.tensor(whole, dtype=torch.long).reshape(-1, 3)

    def _watch(self, stack: ExitStack, layer: int, work: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Around a pass: `work` is given what features of a layer read and what the MLP gave, and gives what is to be
        given on.
        """
        block, one = self._blocks[layer], self._dictionaries[layer]
        norm, streams = block.post_attention_layernorm, list[Tensor]()

        def behind(_: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            stream_BTD = streams.pop()
            if one is None or one.reads == "mlp out":
                return work(out, out)
            if one.reads == "normalized":
                stream_BTD = stream_BTD * torch.rsqrt(stream_BTD.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
            return work(args[0] if one.reads == "mlp in" else stream_BTD, out)

        stack.callback(norm.register_forward_pre_hook(lambda _, args: streams.append(args[0])).remove)
        stack.callback(block.mlp.register_forward_hook(behind).remove)

    def _moved(
        self, one: Dictionary, layer: int, x_BTD: Tensor, edits: Sequence[Edit], start: int
    ) -> Iterator[tuple[int, Tensor]]:
        """What is to be added to the output of each layer that is written to, by how far it is above this one."""
        rows = [(row, self._of_row(one, layer, x_BTD[row], edit, start)) for row, edit in enumerate(edits)]
        some = [(row, parts) for row, parts in rows if parts is not None]
        for offset in range(len(one.decoders_WFD) if some else 0):
            moved_BTD = torch.zeros_like(x_BTD)
            for row, parts in some:
                moved_BTD[row] = parts(one.decoders_WFD[offset])
            yield offset, moved_BTD

    def _of_row(
        self, one: Dictionary, layer: int, x_TD: Tensor, edit: Edit, start: int
    ) -> Callable[[Tensor], Tensor] | None:
        """From decoder rows (F, D) to what is added through them, (T, D); None where the layer is left as it is."""
        here_P3 = edit.places[(edit.places[:, 0] == layer) & (edit.places[:, 1] >= self._beginning)].to(x_TD.device)
        if edit.factor == 1 or not (edit.others or len(here_P3)):
            return None
        to = edit.reference.layers[layer]
        to = to if len(to) == 1 else to[start:]
        start_T, _, index_S, value_S = encoded(one, x_TD, max(0, self._beginning - start))
        nodes, features = here_P3[:, 1] - start, here_P3[:, 2]
        now_P = _looked_up(start_T, index_S, value_S, nodes, features)
        gap_P = (1 - edit.factor) * (to[0 if len(to) == 1 else nodes, features] - now_P)

        def through(decoder_FD: Tensor) -> Tensor:
            picked_TD = torch.zeros_like(x_TD).index_add_(0, nodes, gap_P[:, None] * decoder_FD[features])
            if not edit.others:
                return picked_TD
            all_TD = (to @ decoder_FD).expand_as(x_TD) - written_by(start_T, index_S, value_S, decoder_FD)
            moved_TD = (1 - edit.factor) * all_TD - picked_TD
            moved_TD[: max(0, self._beginning - start)] = 0
            return moved_TD

        return through


def _looked_up(start_T: Sequence[int], index_S: Tensor, value_S: Tensor, nodes_P: Tensor, features_P: Tensor) -> Tensor:
    """Activations of some features at some nodes; 0 of those that are not active."""
    found_P = value_S.new_zeros(len(nodes_P))
    for node in nodes_P.unique().tolist():
        begin, stop = start_T[node : node + 2]
        if begin == stop:
            continue
        which = (nodes_P == node).nonzero()[:, 0]
        active, wanted = index_S[begin:stop], features_P[which]
        place = torch.searchsorted(active, wanted).clamp(max=len(active) - 1)
        found_P[which] = torch.where(active[place] == wanted, value_S[begin:stop][place], 0)
    return found_P


def _others(
    values_TF: Tensor, layer: int, own: set[tuple[int, ...]], rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Active features of a layer that are not among `own`, in random order."""
    spots = [(layer, node, index) for node, index in values_TF.nonzero().tolist()]
    others = [spot for spot in spots if spot not in own]
    return [others[int(place)] for place in rng.permutation(len(others))]


def _taken(pool: list[tuple[int, int, int]], node: int | None) -> tuple[int, int, int] | None:
    """One out of a pool: at this node, or at any; None where none is left."""
    place = next((place for place, spot in enumerate(pool) if node is None or spot[1] == node), None)
    return None if place is None else pool.pop(place)


__all__ = ["Features"]
