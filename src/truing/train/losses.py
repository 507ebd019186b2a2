"""Preference losses: pure functions of log-probabilities, with one value for each pair.

`policy` and `reference` are log-probabilities summed over continuations, in nats; rewards are implicit ones,
beta * (policy - reference).
"""

# B pairs

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Sides(NamedTuple):
    """A number for the chosen and one for the rejected continuation of every pair, shape (B,) each."""

    chosen: Tensor
    rejected: Tensor


def ratios(policy: Sides, reference: Sides) -> Sides:
    """log(policy / reference) of both sides."""
    return Sides(policy.chosen - reference.chosen, policy.rejected - reference.rejected)


def margin(policy: Sides, reference: Sides, *, beta: float) -> Tensor:
    """Chosen minus rejected reward, shape (B,)."""
    ratio = ratios(policy, reference)
    return beta * (ratio.chosen - ratio.rejected)


def dpo(policy: Sides, reference: Sides, *, beta: float) -> Tensor:
    """-log sigmoid(margin). Rafailov et al. 2023 (arXiv 2305.18290), equation 7. ln 2 at the start."""
    return -F.logsigmoid(margin(policy, reference, beta=beta))


def robust(policy: Sides, reference: Sides, *, beta: float, flipped: float) -> Tensor:
    """DPO where a share `flipped` (under 1/2) of the pairs is the wrong way round: unbiased for the loss without flips.

    Chowdhury et al. 2024 (arXiv 2403.00409), section 3. Can be negative. ln 2 at the start.
    """
    gap = margin(policy, reference, beta=beta)
    return (flipped * F.logsigmoid(-gap) - (1 - flipped) * F.logsigmoid(gap)) / (1 - 2 * flipped)


def ipo(policy: Sides, reference: Sides, *, beta: float) -> Tensor:
    """(log-ratio difference - 1 / (2 beta))^2 of summed log-probabilities.

    Azar et al. 2023 (arXiv 2310.12036), equation 17. 1 / (4 beta^2) at the start.
    """
    return (margin(policy, reference, beta=1.0) - 1 / (2 * beta)) ** 2


def ipo_per_token(policy: Sides, reference: Sides, tokens: Sides, *, beta: float) -> Tensor:
    """The same of means over each continuation's tokens, which is what TRL calls `ipo`: another optimum."""
    return ipo(_means(policy, tokens), _means(reference, tokens), beta=beta)


def kto(policy: Sides, reference: Sides, kl: Tensor, *, beta: float) -> Tensor:
    """Both sides of every pair as a wanted and an unwanted reply of their own, weighted alike: the mean of the two.

    Ethayarajh et al. 2024 (arXiv 2402.01306), equation 8. `kl`: the reference point, a number of at least 0 without
    gradient, estimated by `mismatch`. 1/2 at the start, between 0 and 1.
    """
    ratio = ratios(policy, reference)
    wanted, unwanted = 1 - (beta * (ratio.chosen - kl)).sigmoid(), 1 - (beta * (kl - ratio.rejected)).sigmoid()
    return (wanted + unwanted) / 2


def mismatch(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's reference point: the mean log-ratio of replies under prompts that they do not belong to, or 0 if less."""
    return (policy - reference).mean().clamp(min=0).detach()


def simpo(policy: Sides, tokens: Sides, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid of the difference of beta * mean log-probability per token, less `gamma`. Without a reference.

    Meng et al. 2024 (arXiv 2405.14734), equation 6.
    """
    mean = _means(policy, tokens)
    return -F.logsigmoid(beta * (mean.chosen - mean.rejected) - gamma)


def sft(policy: Sides) -> Tensor:
    """Negative log-probability of the chosen continuation."""
    return -policy.chosen


def nll(policy: Sides, tokens: Sides) -> Tensor:
    """The same per token: a term that holds up the chosen continuation's likelihood, which DPO lets fall.

    Pang et al. 2024 (arXiv 2404.19733), equation 1.
    """
    return -policy.chosen / tokens.chosen


def _means(sums: Sides, tokens: Sides) -> Sides:
    return Sides(sums.chosen / tokens.chosen, sums.rejected / tokens.rejected)
