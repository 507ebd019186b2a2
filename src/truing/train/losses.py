"""Preference losses: pure functions of summed log-probabilities."""

# B pairs

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LogProbs(NamedTuple):
    """Summed log-probabilities of the chosen and the rejected continuations, nats, shape (B,) each."""

    chosen: Tensor
    rejected: Tensor


def margin(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Implicit reward margin beta * ((policy - reference) chosen - (policy - reference) rejected), shape (B,)."""
    return beta * ((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))


def dpo(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Mean of -log sigmoid(margin). Rafailov et al. 2023 (arXiv 2305.18290), equation 7. ln 2 at the start."""
    return -F.logsigmoid(margin(policy, reference, beta=beta)).mean()


def sft(policy: LogProbs) -> Tensor:
    """Mean negative log-probability of the chosen continuations."""
    return -policy.chosen.mean()
