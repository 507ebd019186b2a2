"""Preference losses against their closed forms and against autograd by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st

from truing.train import LogProbs, dpo, margin, sft

nats = st.floats(-60, 0)
rows = st.lists(st.tuples(nats, nats, nats, nats), min_size=1, max_size=5)
betas = st.sampled_from([0.01, 0.1, 0.5, 2.0])


def split(values: list[tuple[float, ...]]) -> tuple[LogProbs, LogProbs]:
    """Policy and reference from rows of (policy chosen, policy rejected, reference chosen, reference rejected)."""
    columns = torch.tensor(values, dtype=torch.double).T
    return LogProbs(columns[0], columns[1]), LogProbs(columns[2], columns[3])


@given(rows, betas)
def test_dpo_is_its_closed_form(values: list[tuple[float, ...]], beta: float) -> None:
    policy, reference = split(values)
    gaps = [beta * ((pc - rc) - (pr - rr)) for pc, pr, rc, rr in values]
    # -log sigmoid(x) = log(1 + exp(-x)), written so that it does not overflow.
    losses = [max(-x, 0) + math.log1p(math.exp(-abs(x))) for x in gaps]
    assert margin(policy, reference, beta=beta).tolist() == pytest.approx(gaps, abs=1e-9)
    assert float(dpo(policy, reference, beta=beta)) == pytest.approx(sum(losses) / len(losses), rel=1e-9, abs=1e-12)


@given(rows, betas)
def test_the_gradient_of_dpo_is_that_of_the_paper(values: list[tuple[float, ...]], beta: float) -> None:
    """Below equation 7: -beta * sigmoid(-margin) on the chosen, plus the same on the rejected."""
    policy, reference = split(values)
    chosen, rejected = (side.clone().requires_grad_() for side in policy)
    dpo(LogProbs(chosen, rejected), reference, beta=beta).backward()
    gaps = [beta * ((pc - rc) - (pr - rr)) for pc, pr, rc, rr in values]
    wanted = [-beta / (1 + math.exp(gap)) / len(gaps) for gap in gaps]
    assert chosen.grad.tolist() == pytest.approx(wanted, rel=1e-8, abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx([-g for g in wanted], rel=1e-8, abs=1e-12)


@given(rows, betas)
def test_it_is_ln_2_where_policy_and_reference_are_one(values: list[tuple[float, ...]], beta: float) -> None:
    policy, _ = split(values)
    assert float(dpo(policy, policy, beta=beta)) == pytest.approx(math.log(2), abs=1e-12)


@given(rows, betas)
def test_swapping_chosen_and_rejected_flips_the_margin(values: list[tuple[float, ...]], beta: float) -> None:
    policy, reference = split(values)
    swapped = (LogProbs(*reversed(policy)), LogProbs(*reversed(reference)))
    there, back = margin(policy, reference, beta=beta), margin(*swapped, beta=beta)
    torch.testing.assert_close(there, -back)
    # log(1 + exp(-x)) - log(1 + exp(x)) = -x
    difference = dpo(policy, reference, beta=beta) - dpo(*swapped, beta=beta)
    assert float(difference) == pytest.approx(float(-there.mean()), abs=1e-9)


@given(rows)
def test_sft_is_the_mean_of_what_is_chosen(values: list[tuple[float, ...]]) -> None:
    policy, _ = split(values)
    assert float(sft(policy)) == pytest.approx(-sum(row[0] for row in values) / len(values))


def test_the_loss_of_a_large_margin_is_finite() -> None:
    def one(value: float) -> Any:
        return torch.tensor([value])

    far = LogProbs(one(0.0), one(-1e5))
    same = LogProbs(one(0.0), one(0.0))
    assert float(dpo(far, same, beta=1.0)) == 0
    assert float(dpo(same, far, beta=1.0)) == pytest.approx(1e5)
