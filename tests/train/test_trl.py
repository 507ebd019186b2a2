"""Losses beside TRL's own, on the same log-probabilities."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

import torch

from truing.train.losses import Sides, dpo, ipo_per_token, kto, mismatch, nll, robust, simpo

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BETA, FLIPPED, WEIGHT = 0.3, 0.1, 0.7
ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f"Question {number}: is it red?"}],
        "chosen": [{"role": "assistant", "content": "It is red." + " Yes." * number}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for number in range(3)
]


def moved(model: Any) -> Any:
    """A copy whose weights are a little off, free to be trained."""
    policy = deepcopy(model).requires_grad_(True)
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=made) * weight.abs().mean())
    return policy


def beside(wild: Any, place: Path, rows: list[dict[str, Any]], **how: Any) -> tuple[float, Sides, Sides, Sides]:
    """TRL's loss of a batch of these rows; log-probabilities of policy and reference, and tokens, for ours."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(place), per_device_train_batch_size=len(rows), beta=BETA, max_length=512, bf16=False,
        gradient_checkpointing=False, use_cpu=True, report_to=[], disable_tqdm=True, **how,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=moved(wild.model), ref_model=deepcopy(wild.model), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=wild.tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))

    @torch.no_grad()
    def sums(model: Any) -> Sides:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
        log_p = torch.log_softmax(logits, -1)[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return Sides(*(log_p * batch["completion_mask"][:, 1:]).sum(1).chunk(2))

    theirs = float(trainer.compute_loss(trainer.model, batch))
    policy, reference = sums(trainer.model), sums(trainer.ref_model)
    assert float((policy.chosen - reference.chosen).abs().max()) > 0.01
    return theirs, policy, reference, Sides(*batch["completion_mask"].sum(1).chunk(2))


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "ipo"])
def test_a_loss_is_that_of_trl(wild: Any, tmp_path: Path, kind: str) -> None:
    smoothing = FLIPPED if kind == "robust" else 0.0
    theirs, policy, reference, tokens = beside(wild, tmp_path, ROWS, loss_type=[kind], label_smoothing=smoothing)
    ours = {
        "sigmoid": dpo(policy, reference, beta=BETA),
        "robust": robust(policy, reference, beta=BETA, flipped=FLIPPED),
        "ipo": ipo_per_token(policy, reference, tokens, beta=BETA),
    }[kind]
    assert theirs == pytest.approx(float(ours.mean()), rel=1e-6)


def test_the_likelihood_of_what_is_chosen_as_a_second_loss_is_that_of_trl(wild: Any, tmp_path: Path) -> None:
    """TRL means over all tokens of a batch, ours over those of each reply: the same where all are as long."""
    rows = [row | {"chosen": ROWS[0]["chosen"]} for row in ROWS]
    both: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, WEIGHT]}
    theirs, policy, reference, tokens = beside(wild, tmp_path, rows, **both)
    ours = dpo(policy, reference, beta=BETA) + WEIGHT * nll(policy, tokens)
    assert theirs == pytest.approx(float(ours.mean()), rel=1e-6)


def test_simpo_is_that_of_trl() -> None:
    from trl.experimental.cpo import CPOTrainer

    made = torch.Generator().manual_seed(0)
    sums = Sides(*(-30 * torch.rand(2, 50, generator=made, dtype=torch.double)))
    tokens = Sides(*torch.randint(1, 40, (2, 50), generator=made))
    asked = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    theirs, *_ = CPOTrainer.cpo_loss(asked, sums.chosen / tokens.chosen, sums.rejected / tokens.rejected)
    torch.testing.assert_close(simpo(sums, tokens, beta=2.0, gamma=0.5), theirs, atol=1e-9, rtol=1e-9)


def test_kto_is_that_of_trl(wild: Any, tmp_path: Path) -> None:
    """As many wanted as unwanted replies, which TRL then weighs alike: the mean of ours over pairs in any order."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in ROWS
        for side in ("chosen", "rejected")
    ]
    config = KTOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=len(rows), beta=BETA, max_length=512, bf16=False,
        gradient_checkpointing=False, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = KTOTrainer(
        model=moved(wild.model), ref_model=deepcopy(wild.model), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=wild.tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = torch.as_tensor(batch["label"], dtype=torch.bool)

    @torch.no_grad()
    def sums(model: Any, begin: str = "") -> torch.Tensor:
        ids, sees, mask = (batch[f"{begin}{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
        log_p = torch.log_softmax(model(ids, attention_mask=sees).logits.double(), -1)[:, :-1]
        return (log_p.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1)

    policy, reference = (Sides(*(sums(model)[wanted == side] for side in (True, False))) for model in
                         (trainer.model, trainer.ref_model))  # fmt: skip
    kl = mismatch(sums(trainer.model, "KL_"), sums(trainer.ref_model, "KL_"))
    theirs = float(trainer.compute_loss(trainer.model, batch))
    assert theirs == pytest.approx(float(kto(policy, reference, kl, beta=BETA).mean()), rel=1e-6)
    assert abs(theirs - 0.5) > 1e-3
