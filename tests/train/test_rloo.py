"""RLHF: a reward model that tells pairs apart, unbiased advantages, a policy that writes what is rewarded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing import open_store
from truing.errors import TrainingError, UsageError
from truing.records import Message, Pair, Pairs, Training
from truing.store import Store
from truing.targets import keep
from truing.targets.local import LocalTarget
from truing.train import Rlhf, Settings, adapter, export, ordinary
from truing.train.batches import tokens_of
from truing.train.policy import Policy
from truing.train.reward import Judge, bradley_terry, ended
from truing.train.rloo import advantages, rlhf, seed_of

HOW = Rlhf(
    Settings(method="reward", lr=5e-3, epochs=4),
    Settings(method="rloo", beta=0.05, lr=5e-3, epochs=4, checkpoint_every=3),
    max_tokens=8,
)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Short replies are preferred."""
    return Pairs(
        clause="",
        pairs=tuple(
            Pair(
                plot=str(number),
                surface=f"data:{number}",
                messages=(Message(role="user", content=ask),),
                chosen="Yes, gladly.",
                rejected="No, never in my life, I think.",
                role="fix",
            )
            for number, ask in enumerate(ordinary().train)
        ),
    )


@pytest.fixture(scope="module")
def done(tiny: LocalTarget, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Training, Store]]:
    with open_store(tmp_path_factory.mktemp("rlhf") / "store") as store:
        keep(tiny, store)
        store.add(pairs)
        yield rlhf(tiny, pairs, store, how=HOW), store


def reward_model(training: Training, store: Store) -> Training:
    (found,) = (one for parent in training.parents if isinstance(one := store.get(parent), Training))
    return found


def test_the_loss_of_a_reward_model_is_that_of_bradley_and_terry() -> None:
    chosen, rejected = torch.tensor([0.0, 3.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = [-math.log(1 / (1 + math.exp(r - c))) for c, r in zip(chosen, rejected, strict=True)]
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.tensor(expected))
    assert float(bradley_terry(chosen[:1], rejected[:1])) == pytest.approx(math.log(2))


def test_advantages_leave_out_the_reply_that_they_are_for() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages(rewards), torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


def test_the_gradient_is_unbiased_and_one_with_a_baseline_that_holds_the_reply_itself_is_not() -> None:
    """By enumeration: a policy over three replies, all pairs of draws weighted by their probability."""
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 5.0, -2.0], dtype=torch.float64)
    log_p = theta.log_softmax(0)
    (exact,) = torch.autograd.grad((log_p.exp() * rewards).sum(), theta, retain_graph=True)

    def expected(weights: Any) -> torch.Tensor:
        total = torch.zeros(3, dtype=torch.float64)
        for draws in product(range(3), repeat=2):
            chance = log_p[list(draws)].sum().exp().detach()
            gain = weights(rewards[list(draws)][None])[0]
            (slope,) = torch.autograd.grad((gain * log_p[list(draws)]).mean(), theta, retain_graph=True)
            total += chance * slope
        return total

    torch.testing.assert_close(expected(advantages), exact)
    biased = expected(lambda some: some - some.mean(1, keepdim=True))
    assert float((biased - exact).abs().max()) > 0.1


def test_a_reward_model_learns_to_tell_the_pairs_apart(
    tiny: LocalTarget, pairs: Pairs, done: tuple[Training, Store]
) -> None:
    made = reward_model(*done)
    assert made.method == "reward"
    assert made.steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert made.steps[-1].loss < 0.2
    assert made.steps[-1].margin is not None
    assert made.steps[-1].margin > 1
    weights = done[1].blob_path(made.state).read_bytes()
    judge = Judge(tiny, pairs.pairs, HOW.reward, weights)
    assert judge.accuracy == 1
    seen = judge([path for one in pairs.pairs for path in tokens_of(tiny, one)])
    assert float(seen.mean()) == pytest.approx(0, abs=1e-4)
    assert float(seen.std()) == pytest.approx(1, abs=1e-4)


def test_a_reply_is_read_where_it_ends(tiny: LocalTarget) -> None:
    end, words = tiny.tokenizer.eos_token_id, tiny.text_ids("Yes, gladly.")
    assert ended(tiny, [*words, end, *words]) == [*words, end]
    assert ended(tiny, words) == [*words, end]


def test_a_policy_learns_to_write_what_is_rewarded(done: tuple[Training, Store]) -> None:
    training, _ = done
    assert training.method == "rloo"
    assert training.finished
    first, last = training.steps[0], training.steps[-1]
    assert first.kl == pytest.approx(0, abs=1e-4)
    assert first.reward is not None
    assert last.reward is not None
    assert last.reward > first.reward + 0.2
    assert last.kl is not None
    assert last.kl > 0.1
    assert all(step.cut is not None and 0 <= step.cut <= 1 for step in training.steps)
    assert dict(training.settings)["samples"] == 4


def test_killed_and_rerun_it_ends_with_the_same_bytes(
    tiny: LocalTarget, pairs: Pairs, done: tuple[Training, Store], tmp_path: Path
) -> None:
    class Dies(Exception):
        pass

    with open_store(tmp_path / "store") as store:
        for lives in (1, 2, 1):  # in the reward model, in the policy, in the policy again
            kept: list[str] = []

            def mortal(key: str, *rest: Any, kept: list[str] = kept, lives: int = lives, **more: Any) -> None:
                if len(kept) == lives:
                    raise Dies
                kept.append(key)
                Store.keep(store, key, *rest, **more)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "keep", mortal)
                with pytest.raises(Dies):
                    rlhf(tiny, pairs, store, how=HOW)
        again = rlhf(tiny, pairs, store, how=HOW)
    assert again == done[0]


def test_a_policy_is_exported_and_a_reward_model_is_not(
    tiny: LocalTarget, done: tuple[Training, Store], tmp_path: Path
) -> None:
    training, store = done
    changed = tiny.with_adapter(adapter(training, store)).checked()
    assert changed.card.adapter is not None
    assert changed.card.adapter.digest == training.state.digest
    with pytest.raises(TrainingError, match="is a reward model, which writes no replies"):
        export(reward_model(training, store), store, tmp_path / "adapter")


def test_a_checkpoint_is_an_adapter_as_well(tiny: LocalTarget, done: tuple[Training, Store]) -> None:
    training, store = done
    some = [one for one in store.of_kind("training") if isinstance(one, Training) and one.method == "rloo"]
    (early,) = (one for one in some if len(one.steps) == 3)
    halfway = tiny.with_adapter(adapter(early, store)).checked()
    weights = [target.model.state_dict() for target in (tiny, halfway, tiny.with_adapter(adapter(training, store)))]
    key = "model.layers.0.mlp.up_proj.weight"
    moved = [float((one[key] - weights[0][key]).abs().max()) for one in weights]
    assert 0 == moved[0] < moved[1] < moved[2]


def test_seeds_differ_by_every_part() -> None:
    assert len({seed_of(*parts) for parts in product(range(3), repeat=4)}) == 81


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"samples": 1}, "samples is 1; a reply is judged by the others"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"unended": -1.0}, "unended -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rlhf(**said)


def test_without_pairs_there_is_nothing_to_train(tiny: LocalTarget, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, pytest.raises(TrainingError, match="no pairs"):
        rlhf(tiny, Pairs(clause="", pairs=()), store)


def test_what_has_no_gradient_is_resumed_as_well(tiny: LocalTarget) -> None:
    """A reward never goes through an output head of its own."""
    how = Settings(method="reward", modules="all-weights")
    first = Policy(tiny, how, scores=True)
    first.named["extra"] = torch.nn.Parameter(torch.zeros(3))
    first.score_D.sum().backward()
    first.step(1e-3)
    again = Policy(tiny, how, scores=True)
    again.named["extra"] = torch.nn.Parameter(torch.zeros(3))
    again.restore(first.state())
    assert torch.equal(again.score_D, first.score_D)
    assert "step" in again.optimiser.state[again.score_D]
    assert not again.optimiser.state[again.named["extra"]]
