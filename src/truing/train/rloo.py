"""RLHF, for comparison: a reward model of the pairs, then policy gradients on replies that the policy writes.

REINFORCE with a leave-one-out baseline, one step for each batch of replies, so that what is trained on is always what
the policy of that moment wrote: Ahmadian et al. 2024 (arXiv 2402.14740).
"""

# P prompts  G replies to each

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from truing.errors import TrainingError, UsageError
from truing.records import Pairs, Step, Training, digest_of
from truing.runner import Watcher
from truing.store import Store
from truing.targets import need
from truing.targets.local import LocalTarget
from truing.targets.local.generate import Batch, write
from truing.targets.local.sample import Sampling
from truing.targets.local.write import Ask
from truing.train.batches import Path, batches, fitted, planted, prompt_of, truncated
from truing.train.loop import Job, follow, go
from truing.train.policy import Policy
from truing.train.reward import Judge, Rewards
from truing.train.settings import Settings

REWARD = Settings(method="reward", lr=5e-4)
POLICY = Settings(method="rloo", beta=0.05)


@dataclass(frozen=True, slots=True)
class Rlhf:
    """How both halves are trained. Of the policy's settings, beta weighs its divergence from the reference."""

    reward: Settings = REWARD
    policy: Settings = POLICY
    samples: int = 4
    """Replies to a prompt, whose rewards are each other's baseline."""
    max_tokens: int = 32
    """The longest reply that is written."""
    unended: float = 1.0
    """Taken off the reward of a reply that was cut off, in standard deviations of rewards."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UsageError(f"samples is {self.samples}; a reply is judged by the others, so give at least 2")
        if self.max_tokens < 1 or not self.unended >= 0:
            raise UsageError(
                f"max_tokens is {self.max_tokens} and unended {self.unended}; give at least 1, and 0 or more"
            )

    @property
    def longest(self) -> int:
        """Tokens of a reply that is judged: one that is cut off gets an end."""
        return self.max_tokens + 1

    @property
    def plain(self) -> dict[str, float | int | str]:
        """What is recorded of the policy's half."""
        return self.policy.plain | {"samples": self.samples, "max_tokens": self.max_tokens, "unended": self.unended}


def rlhf(
    target: LocalTarget, pairs: Pairs, store: Store, *, how: Rlhf | None = None, watcher: Watcher | None = None
) -> Training:
    """Train a reward model on the pairs, then, on replies to their prompts, the adapter that is given.

    TrainingError where there are no pairs or a loss is not finite. Killed and rerun, training goes on from its last
    chunk and ends with the same bytes.
    """
    need(target, "Trainable")
    how = how or Rlhf()
    if not pairs.pairs:
        raise TrainingError("there are no pairs to train on")
    about = (target.card.id, pairs.id)
    # Before the reward model is trained: they may be too long.
    prompts = [
        fitted(target, pair.surface, prompt_of(target, pair), how.longest, how.policy.max_length)
        for pair in pairs.pairs
    ]
    rewards = Rewards(target, pairs.pairs, how.reward)
    lost = truncated(target, pairs.pairs, how.reward.max_length, watcher)
    job = Job("reward", about[0], how.reward.plain, about[1], lambda: Policy(target, how.reward, scores=True),
              inputs={}, every=how.reward.checkpoint_every, truncated=lost)  # fmt: skip
    judging = go(job, rewards, store, watcher=watcher, label="rlhf: reward model")

    @cache
    def judge() -> Judge:
        """Loaded when first asked: not at all, where the store has every step."""
        return Judge(target, pairs.pairs, how.reward, store.blob_path(judging.state).read_bytes())

    lost = truncated(target, pairs.pairs, how.policy.max_length, watcher, more=how.longest)
    job = Job("rloo", about[0], how.plain, about[1], lambda: Policy(target, how.policy),
              inputs={"reward": judging.id}, parents=(judging.id,), every=how.policy.checkpoint_every,
              truncated=lost)  # fmt: skip
    return go(job, Rloo(target, prompts, judge, how), store, watcher=watcher, label="rlhf: policy")


def advantages(rewards_PG: Tensor) -> Tensor:
    """Each reward less the mean of the others to the same prompt, shape (P, G). They add up to 0 over G.

    The leave-one-out baseline of Ahmadian et al. 2024: independent of the reply that it is for, so that the gradient
    stays unbiased.
    """
    count = rewards_PG.shape[1]
    others = (rewards_PG.sum(1, keepdim=True) - rewards_PG) / (count - 1)
    return rewards_PG - others


class Rloo:
    """Prompts to which a policy learns to write what is rewarded, step by step."""

    def __init__(
        self, target: LocalTarget, prompts: Sequence[Sequence[int]], judge: Callable[[], Judge], how: Rlhf
    ) -> None:
        settings = how.policy
        self.target, self.judge, self.how, self.settings = target, judge, how, settings
        self.prompts = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
        self.order = batches(range(len(self.prompts)), settings)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return len(self.order)

    def step(self, policy: Policy, number: int) -> Step:
        """Write, rate, and follow the gradient once."""
        how = self.how
        paths, cut = self._written(policy, number)
        rated = self.judge()(paths) - how.unended * cut
        batch = planted(paths)
        before = batch.sums(self.target.lifted.model, len(paths))  # without gradient: nothing of it is trained
        log_p = batch.sums(policy.model, len(paths))
        ratio = log_p.detach() - before
        gain = advantages((rated - self.settings.beta * ratio).view(-1, how.samples)).flatten()
        loss = -(gain * log_p).mean()
        loss.backward()
        # Rewards that are all alike teach nothing, and that is nothing to stop at.
        norm = follow(policy, self.settings, number, self.steps, loss=loss.item(), still=True)
        return Step(
            step=number, loss=loss.item(), margin=None, chosen=float(log_p.detach().mean()), rejected=None,
            grad_norm=norm, reward=float(rated.mean()), kl=float(ratio.mean()), cut=float(cut.mean()),
        )  # fmt: skip

    @torch.no_grad()
    def _written(self, policy: Policy, number: int) -> tuple[list[Path], Tensor]:
        """Replies to the prompts of a step, those to one prompt side by side, and 1 for each that was cut off."""
        asks = [
            Ask(
                tuple(self.prompts[place]), self.how.max_tokens, self.target.stop_ids,
                sampling=Sampling(1.0, seed=seed_of(self.settings.seed, number, place, turn)),
            )
            for place in self.order[number]
            for turn in range(self.how.samples)
        ]  # fmt: skip
        found = write(Batch(policy.model, budget=self.target.budget, say=self.target.say), asks)
        paths = [(list(ask.prompt), list(written.ids)) for ask, written in zip(asks, found, strict=True)]
        return paths, torch.tensor([float(written.ended != "stop") for written in found])


def seed_of(*parts: int) -> int:
    """A seed that these numbers determine, and that tells nothing of those of others."""
    return int(digest_of(list(parts))[:15], 16)
