"""The dictionaries of a folder as what a case's graph is made of: with a name, an identity, and what features write."""

# F features  D width  W layers that are written to  N features asked for

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from truing.targets.local import LocalTarget
from truing.text import short
from truing.trace.dictionaries import Dictionaries, Dictionary, load
from truing.trace.lens import ROWS, end

BEGINNING = 1
"""Nodes at which no feature counts as active: dictionaries are not trained on what stands at the first token."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Dictionaries by layer, and what they are called."""

    name: str
    """Of the folder, on one line."""
    layers: Dictionaries
    digest: str
    """Of what is in them, wherever the folder stands."""
    beginning: int = BEGINNING

    @property
    def kind(self) -> Literal["cross-layer transcoders", "transcoders", "SAEs"]:
        """What they are."""
        some = [one for one in self.layers if one is not None]
        if any(len(one.decoders_WFD) > 1 for one in some):
            return "cross-layer transcoders"
        return "SAEs" if all(one.reads == "mlp out" for one in some) else "transcoders"

    @property
    def basis(self) -> str:
        """What nodes are, as a record says it."""
        return f"features of {self.kind} ({self.name}, {self.digest[:12]})"

    @property
    def identity(self) -> list[str | int]:
        """All that a graph in them depends on, and what its record calls them."""
        return [self.basis, self.digest, self.beginning]

    @property
    def count(self) -> int:
        """Features of all layers."""
        return sum(len(one.bias_F) for one in self.layers if one is not None)


def read_features(folder: Path, model: Any) -> FeatureSet:
    """From a folder in a layout that `dictionaries` knows. TargetError for any other, and for what does not fit."""
    layers = load(folder, model)
    return FeatureSet(short(folder.resolve().name, length=60), layers, _digest(layers))


def _digest(layers: Dictionaries) -> str:
    found = hashlib.sha256()
    for one in layers:
        found.update(b"none" if one is None else f"{one.reads} {one.most}".encode())
        for name in Dictionary.__slots__ if one is not None else ():
            part = getattr(one, name)
            if isinstance(part, Tensor):
                found.update(f"{name} {tuple(part.shape)}".encode())
                found.update(part.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


@torch.no_grad()
def features_written(
    target: LocalTarget, features: FeatureSet, some: Sequence[tuple[int, int]], top: int = 4
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each feature, by (layer, index), the tokens whose logits it raises most, and those that it lowers most: what
    its decoder rows together write through the final norm's weights and the output head.
    """
    found = []
    for at in range(0, len(some), ROWS):
        x_ND = torch.stack([_row(features.layers[layer], index) for layer, index in some[at : at + ROWS]])
        # As for neurons: a norm's scale is that of a stream of unit length, and biases cancel.
        logits_NV = (end(target.model, x_ND) - end(target.model, -x_ND)) / 2
        found += [(_texts(target, one, top), _texts(target, -one, top)) for one in logits_NV]
    return found


def _row(one: Dictionary | None, index: int) -> Tensor:
    assert one is not None  # a feature of a graph is one of a dictionary
    return one.decoders_WFD[:, index].sum(0)


def _texts(target: LocalTarget, logits_V: Tensor, top: int) -> tuple[str, ...]:
    return tuple(target.tokenizer.decode([token]) for token in logits_V.topk(top).indices.tolist())


__all__ = ["BEGINNING", "FeatureSet", "features_written", "read_features"]
