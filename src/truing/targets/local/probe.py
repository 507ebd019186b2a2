"""Whether a model can be given trees: some architectures refuse them, some take them and compute something else."""

from __future__ import annotations

from typing import Any

import torch

from truing.errors import TargetError
from truing.targets.local.generate import greedy
from truing.targets.local.inside import forward
from truing.targets.local.tree import plant
from truing.text import short

PATHS = ((1, 2, 3), (1, 4, 5, 2), (1, 2, 6), (3, 2))
"""Branches of several depths, and a second root."""
TOLERANCE = 1e-3
"""Of the range of the logits; rounding in fp32 stays far below (1.7e-5 in the bundled model)."""


@torch.no_grad()
def probe(model: Any) -> None:
    """TargetError unless the model gives along every path of a tree what it gives for that path alone."""
    name = type(model).__name__
    if "local" in (getattr(model.config, "attention_layers", None) or ()):
        # GPT-Neo counts its window over the nodes of a tree, in whatever order they lie; a small tree does not show it.
        raise TargetError(_refusal(name, "its local attention overrides them"))
    tree, routes = plant(PATHS)
    try:
        found = forward(model, tree, torch.arange(len(tree))).logits[0].float()
        alone = [model(torch.tensor([path], device=model.device)).logits[0].float() for path in PATHS]
        greedy(model, PATHS, max_tokens=2, stop=())
    except Exception as error:  # what is raised here is up to the author of each architecture
        raise TargetError(_refusal(name, f"{type(error).__name__}: {short(error)}")) from error
    span = max(float(logits.max() - logits.min()) for logits in alone)
    off = max(float((found[route] - logits).abs().max()) for route, logits in zip(routes, alone, strict=True))
    if not off <= TOLERANCE * max(1.0, span):
        raise TargetError(_refusal(name, f"logits are off by {off:.2g}"))


def _refusal(name: str, why: str) -> str:
    return (
        f"the architecture {name} does not take the 4-D attention masks and positions that prompts are scored with"
        f" ({why}). Use another, such as a Llama, Qwen, Mistral, Gemma or GPT-2 checkpoint."
    )
