"""Preference losses against their closed forms and against autograd by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st

from truing.train.losses import Sides, dpo, ipo, ipo_per_token, kto, margin, mismatch, nll, robust, sft, simpo

nats = st.floats(-60, 0)
rows = st.lists(st.tuples(nats, nats, nats, nats), min_size=1, max_size=5)
betas = st.sampled_from([0.01, 0.1, 0.5, 2.0])


def split(values: list[tuple[float, ...]]) -> tuple[Sides, Sides]:
    """Policy and reference from rows of (policy chosen, policy rejected, reference chosen, reference rejected)."""
    columns = torch.tensor(values, dtype=torch.double).T
    return Sides(columns[0], columns[1]), Sides(columns[2], columns[3])


@given(rows, betas)
def test_dpo_is_its_closed_form(values: list[tuple[float, ...]], beta: float) -> None:
    policy, reference = split(values)
    gaps = [beta * ((pc - rc) - (pr - rr)) for pc, pr, rc, rr in values]
    # -log sigmoid(x) = log(1 + exp(-x)), written so that it does not overflow.
    losses = [max(-x, 0) + math.log1p(math.exp(-abs(x))) for x in gaps]
    assert margin(policy, reference, beta=beta).tolist() == pytest.approx(gaps, abs=1e-9)
    assert dpo(policy, reference, beta=beta).tolist() == pytest.approx(losses, rel=1e-9, abs=1e-12)


@given(rows, betas)
def test_the_gradient_of_dpo_is_that_of_the_paper(values: list[tuple[float, ...]], beta: float) -> None:
    """Below equation 7: -beta * sigmoid(-margin) on the chosen, plus the same on the rejected."""
    policy, reference = split(values)
    chosen, rejected = (side.clone().requires_grad_() for side in policy)
    dpo(Sides(chosen, rejected), reference, beta=beta).sum().backward()
    gaps = [beta * ((pc - rc) - (pr - rr)) for pc, pr, rc, rr in values]
    wanted = [-beta / (1 + math.exp(gap)) for gap in gaps]
    assert chosen.grad.tolist() == pytest.approx(wanted, rel=1e-8, abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx([-g for g in wanted], rel=1e-8, abs=1e-12)


@given(rows, betas)
def test_it_is_ln_2_where_policy_and_reference_are_one(values: list[tuple[float, ...]], beta: float) -> None:
    policy, _ = split(values)
    assert dpo(policy, policy, beta=beta).tolist() == pytest.approx([math.log(2)] * len(values), abs=1e-12)


@given(rows, betas)
def test_swapping_chosen_and_rejected_flips_the_margin(values: list[tuple[float, ...]], beta: float) -> None:
    policy, reference = split(values)
    swapped = (Sides(*reversed(policy)), Sides(*reversed(reference)))
    there, back = margin(policy, reference, beta=beta), margin(*swapped, beta=beta)
    torch.testing.assert_close(there, -back)
    # log(1 + exp(-x)) - log(1 + exp(x)) = -x
    difference = dpo(policy, reference, beta=beta) - dpo(*swapped, beta=beta)
    torch.testing.assert_close(difference, -there, atol=1e-9, rtol=0)


@given(rows)
def test_sft_is_what_is_chosen_and_nll_the_same_per_token(values: list[tuple[float, ...]]) -> None:
    policy, _ = split(values)
    tokens = counted(values)
    assert sft(policy).tolist() == [-row[0] for row in values]
    assert nll(policy, tokens).tolist() == pytest.approx([-row[0] / (2 + at) for at, row in enumerate(values)])


def counted(values: list[tuple[float, ...]]) -> Sides:
    """Tokens of continuations: 2, 3, 4, ... chosen and 7, 7, ... rejected."""
    return Sides(torch.arange(2, 2 + len(values)), torch.full((len(values),), 7))


@given(rows, betas)
def test_ipo_is_its_closed_form_and_per_token_that_of_means(values: list[tuple[float, ...]], beta: float) -> None:
    policy, reference = split(values)
    sums = [(pc - rc) - (pr - rr) for pc, pr, rc, rr in values]
    means = [(pc - rc) / (2 + at) - (pr - rr) / 7 for at, (pc, pr, rc, rr) in enumerate(values)]
    tokens = counted(values)
    found = ipo(policy, reference, beta=beta), ipo_per_token(policy, reference, tokens, beta=beta)
    for loss, gaps in zip(found, (sums, means), strict=True):
        assert loss.tolist() == pytest.approx([(gap - 1 / (2 * beta)) ** 2 for gap in gaps], rel=1e-9, abs=1e-9)
    best = Sides(policy.chosen - policy.chosen + 1 / (2 * beta), policy.rejected * 0)
    assert ipo(best, Sides(*(side * 0 for side in best)), beta=beta).tolist() == [0] * len(values)


@given(rows, betas, st.sampled_from([0.0, 0.1, 0.3]))
def test_robust_dpo_is_without_bias_where_pairs_are_flipped(
    values: list[tuple[float, ...]], beta: float, flipped: float
) -> None:
    """Its mean over flips, each with this probability, is the loss of the pairs as they should be."""
    policy, reference = split(values)
    right = robust(policy, reference, beta=beta, flipped=flipped)
    wrong = robust(Sides(*reversed(policy)), Sides(*reversed(reference)), beta=beta, flipped=flipped)
    torch.testing.assert_close((1 - flipped) * right + flipped * wrong, dpo(policy, reference, beta=beta))


@given(rows, betas, st.floats(0, 20))
def test_kto_is_its_closed_form(values: list[tuple[float, ...]], beta: float, kl: float) -> None:
    policy, reference = split(values)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))

    losses = [(2 - sigmoid(beta * (pc - rc - kl)) - sigmoid(beta * (kl - (pr - rr)))) / 2 for pc, pr, rc, rr in values]
    found = kto(policy, reference, torch.tensor(kl, dtype=torch.double), beta=beta)
    assert found.tolist() == pytest.approx(losses, rel=1e-6, abs=1e-9)
    assert kto(policy, policy, torch.tensor(0.0), beta=beta).tolist() == [0.5] * len(values)


def test_the_reference_point_of_kto_is_a_mean_that_is_never_below_zero_and_has_no_gradient() -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert float(mismatch(policy, torch.tensor([-2.0, -4.0]))) == 1.5
    assert float(mismatch(policy, torch.tensor([0.0, 0.0]))) == 0
    assert not mismatch(policy, torch.tensor([-2.0, -4.0])).requires_grad


@given(rows, betas, st.floats(0, 2))
def test_simpo_is_its_closed_form(values: list[tuple[float, ...]], beta: float, gamma: float) -> None:
    policy, _ = split(values)
    gaps = [beta * (pc / (2 + at) - pr / 7) - gamma for at, (pc, pr, *_) in enumerate(values)]
    losses = [max(-x, 0) + math.log1p(math.exp(-abs(x))) for x in gaps]
    found = simpo(policy, counted(values), beta=beta, gamma=gamma)
    assert found.tolist() == pytest.approx(losses, rel=1e-9, abs=1e-12)


def test_the_loss_of_a_large_margin_is_finite() -> None:
    def one(value: float) -> Any:
        return torch.tensor([value])

    far = Sides(one(0.0), one(-1e5))
    same = Sides(one(0.0), one(0.0))
    assert float(dpo(far, same, beta=1.0)) == 0
    assert float(dpo(same, far, beta=1.0)) == pytest.approx(1e5)
