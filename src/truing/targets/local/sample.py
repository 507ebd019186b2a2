"""The next token of a row, out of its logits: greedy, or drawn with the row's own random numbers."""

# V vocabulary

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The default is greedy."""

    temperature: float = 0.0
    """0 takes the most likely token; logits are divided by it otherwise."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens that hold this share of the probability (Holtzman et al. 2020)."""
    top_k: int = 0
    """Draw from so many most likely tokens; 0: from all."""
    seed: int = 0


GREEDY = Sampling()


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that the seed and the number of the token determine, whatever else is drawn."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=step)).random())


def draw(logits_V: Tensor, how: Sampling, step: int) -> int:
    """The token at place `step` of a reply, by inverting the distribution function at one uniform number."""
    values = logits_V.double().cpu() / how.temperature
    order = values.argsort(descending=True, stable=True)
    p = values[order].softmax(-1)
    if how.top_k:
        p = p[: how.top_k]
    # As many as reach the share, the one that reaches it among them.
    p = p[: int((p.cumsum(-1) - p < how.top_p * p.sum()).sum())]
    place = torch.searchsorted(p.cumsum(-1), uniform(how.seed, step) * p.sum(), right=True)
    return int(order[min(int(place), len(p) - 1)])
