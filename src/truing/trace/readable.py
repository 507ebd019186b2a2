"""What can be traced: models whose parts can all be read and accounted for."""

from __future__ import annotations

from typing import Any

from truing.errors import TargetError
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.change import counts
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


__all__ = ["check_readable"]
