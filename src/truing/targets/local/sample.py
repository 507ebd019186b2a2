"""The next token of a row, out of its logits: greedy, or drawn with the row's own random numbers."""

# V vocabulary

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from truing.errors import TargetError


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

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise TargetError(
                f"nothing can be drawn with {self}: temperature >= 0, 0 < top_p <= 1 and top_k >= 0 are needed"
            )


GREEDY = Sampling()
SOME = 1024
"""Likeliest tokens that are looked at first; they nearly always hold the share, and all are sorted where not."""


def waits(seed: int, step: int, count: int) -> Tensor:
    """Standard exponential numbers that the seed and the number of the token determine, whatever else is drawn."""
    numbers = np.random.Generator(np.random.Philox(key=seed % 2**64, counter=step << 64))
    return torch.from_numpy(numbers.standard_exponential(count)).clamp_(min=np.finfo(float).tiny)


def draw(logits_V: Tensor, how: Sampling, step: int) -> int:
    """The token at place `step` of a reply: of waiting times that have its probabilities as rates, the shortest.

    That is the Gumbel-max trick (Gumbel 1954) before logarithms are taken, in half of its time. Logits that differ by
    rounding give another token only where the two shortest are as close as that. Inverting the distribution function
    would give one wherever any of its thousands of steps moves across the number drawn.
    """
    values = logits_V.double().cpu()
    p_V = ((values - values.max()) / how.temperature).softmax(-1)  # however low the temperature is
    times = waits(how.seed, step, len(p_V)) / p_V
    if how.top_k or how.top_p < 1:
        allowed = likeliest(p_V, how)
        return int(allowed[times[allowed].argmin()])
    return int(times.argmin())


def likeliest(p_V: Tensor, how: Sampling) -> Tensor:
    """The tokens that may be drawn, the most likely first."""
    p, order = p_V.topk(min(how.top_k or SOME, len(p_V)))
    if not how.top_k and float(p.sum()) < how.top_p:
        p, order = p_V.sort(descending=True, stable=True)
    share = how.top_p * (p.sum() if how.top_k else 1.0)
    # As many as reach the share, the one that reaches it among them.
    return order[: int((p.cumsum(-1) - p < share).sum())]
