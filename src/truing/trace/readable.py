"""What can be traced: models whose parts can all be read and accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from truing.errors import TargetError
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.change import Kind, counts, layers
from truing.targets.local.lift import short_format
from truing.targets.local.tree import takes_trees


def check_readable(target: Any) -> None:
    """TargetError for a target without weights here, in a short format, quantised, that takes no trees, or whose heads
    and neurons are not found in every layer (a mixture of experts).
    """
    need(target, "Scored")
    if not isinstance(target, LocalTarget):
        need(target, "WhiteBox")
    name, model = target.card.name, target.model
    if short_format(model):
        raise TargetError(
            f"tracing accounts for every part of a decision, which {target.card.dtype} rounds too much for;"
            f" load {name} in fp32 (TRUING_DTYPE=fp32)"
        )
    if getattr(model, "is_quantized", False):
        raise TargetError(f"{name} is quantised, and its derivatives are not those of its products; load it in fp32")
    if not takes_trees(model):
        raise TargetError(
            f"{name} ({type(model).__name__}) takes no trees of texts, which a decision is laid out along;"
            " trace a transformer"
        )
    counts(model)


def check_units(model: Any, units: Iterable[tuple[Kind, int, int]]) -> None:
    """TargetError for a head or neuron (its kind, layer and number) that a model does not have."""
    depth, of_each = len(layers(model)), counts(model)
    for kind, layer, index in units:
        if not 0 <= layer < depth:
            raise TargetError(f"no layer {layer} in a model of {depth} layers (0 to {depth - 1})")
        if not 0 <= index < of_each[kind]:
            raise TargetError(
                f"no {kind} {index} in layer {layer}: there are {of_each[kind]} (0 to {of_each[kind] - 1})"
            )


__all__ = ["check_readable", "check_units"]
