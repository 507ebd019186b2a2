"""What a model can be given: some architectures refuse trees or rows, some take them and compute something else.

Those are given every path by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local.generate import begin, step
from truing.targets.local.inside import forward
from truing.targets.local.memory import out_of_memory
from truing.targets.local.rows import Rows
from truing.targets.local.tree import plant, take_apart, takes_trees
from truing.text import short

PATHS = ((1, 2, 3), (1, 2, 6), (1, 4, 5, 2), (3, 2))
"""Branches of several depths, and a second root; sorted."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the range of the logits; rounding stays far below (in fp32 1.7e-5 in the bundled model)."""


def probe(model: Any) -> str:
    """Find out whether the model gives along a path of a tree, and after it, what it gives for the path alone.

    Where it does not, it is marked to be given every path by itself (`take_apart`), and why is returned; else "".
    TargetError where it does not give even so what it gives for one path.
    """
    if getattr(model.config, "rescale_every", 0):
        # RWKV would divide weights in its first pass, for fp16; whoever loads a checkpoint of these divides them again.
        model.config.rescale_every = 0
    if why := _wrong(model):
        take_apart(model)
        if still := _wrong(model):
            raise TargetError(
                f"{type(model).__name__} does not give for several texts at once what it gives for each ({still}; as a"
                f" tree: {why}). Use another architecture, such as a Llama, Qwen, Mistral, Gemma or GPT-2 checkpoint."
            )
    return why


@torch.no_grad()
def _wrong(model: Any) -> str:
    """What is wrong with what comes out along several paths at once; "" where nothing is."""
    if takes_trees(model) and "local" in (getattr(model.config, "attention_layers", None) or ()):
        # GPT-Neo counts its window over the nodes of a tree, in whatever order they lie; a small tree does not show it.
        return "its local attention overrides the mask"
    tree, routes = plant(PATHS)
    try:
        found = forward(model, tree, torch.arange(len(tree))).logits[0].float()
        alone = [model(torch.tensor([[*path, 1]], device=model.device)).logits[0].float() for path in PATHS]
        _, rows = begin(model, PATHS)
        after = step(model, rows, torch.ones(len(PATHS), dtype=torch.long, device=model.device)).float()
    except Exception as error:  # what is raised here is up to the author of each architecture
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {short(error)}"
    span = max(float(logits.max() - logits.min()) for logits in alone)
    along = [torch.cat([found[route], last[None]]) for route, last in zip(routes, after, strict=True)]
    off = max(float((mine - logits).abs().max()) for mine, logits in zip(along, alone, strict=True))
    return "" if off <= TOLERANCE[model.dtype] * max(1.0, span) else f"logits are off by {off:.2g}"


@torch.no_grad()
def looks_through_windows(model: Any) -> bool:
    """Whether every layer that has a window, by the configuration, tells its attention so."""
    seen: set[int] = set()

    class Told(Rows):
        def attend(self, layer: int, *args: Any) -> Tensor:
            if args[-1].get("sliding_window") is not None:
                seen.add(layer)
            return super().attend(layer, *args)

    _, rows = begin(model, PATHS[:1])
    rows.__class__ = Told
    step(model, rows, torch.ones(1, dtype=torch.long, device=model.device))
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    windowed = {layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"}
    return bool(windowed) and seen >= windowed
