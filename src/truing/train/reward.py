"""A reward model: what pairs prefer, as one number for every reply. The first half of RLHF."""

# R replies  D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.records import Pair, Step
from truing.targets.local import LocalTarget
from truing.targets.local.inside import hidden
from truing.targets.local.tree import Tree, plant
from truing.train.batches import Path, batches, tokens_of
from truing.train.loop import follow
from truing.train.policy import Policy
from truing.train.settings import Settings

AT_ONCE = 64
"""Replies that are rated in one pass."""


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r(chosen) - r(rejected)) of rewards, one value for each pair. ln 2 where they are alike.

    Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), equation 1.
    """
    return -F.logsigmoid(chosen - rejected)


@dataclass(frozen=True, slots=True)
class Replies:
    """Replies laid out in one tree, each read at the token that ends it."""

    tree: Tree
    end_R: Tensor

    def rewards(self, model: Policy) -> Tensor:
        """One number for each, shape (R,), with gradient where the model has one."""
        at_RD = hidden(model.model, self.tree)[self.end_R.to(model.model.device)]
        return (at_RD.float() @ model.score_D).cpu()


def lay_out_replies(target: LocalTarget, paths: Sequence[Path]) -> Replies:
    """Prompts with replies up to the first token that ends a turn; one that was cut off is read as if it ended."""
    ends = [[*prompt, *ended(target, reply)] for prompt, reply in paths]
    tree, routes = plant([target.fits(ids) for ids in ends])
    return Replies(tree, torch.stack([route[-1] for route in routes]))


def ended(target: LocalTarget, reply: Sequence[int]) -> list[int]:
    """A reply up to the first token that ends a turn, or with one put behind it."""
    for place, token in enumerate(reply):
        if token in target.stop_ids:
            return list(reply[: place + 1])
    return [*reply, target.tokenizer.eos_token_id]


class Rewards:
    """Pairs that a reward model learns to tell apart, step by step."""

    def __init__(self, target: LocalTarget, pairs: Sequence[Pair], settings: Settings) -> None:
        self.order, self.settings = batches(range(len(pairs)), settings), settings
        sides = [tokens_of(target, pair, most=settings.max_length) for pair in pairs]
        self.laid = [lay_out_replies(target, [path for place in step for path in sides[place]]) for step in self.order]

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return len(self.order)

    def step(self, policy: Policy, number: int) -> Step:
        """One step of the optimiser."""
        found = self.laid[number].rewards(policy)
        chosen, rejected = found[0::2], found[1::2]
        loss = bradley_terry(chosen, rejected).mean()
        loss.backward()
        norm = follow(policy, self.settings, number, self.steps, loss=loss.item())
        means = [float(side.detach().mean()) for side in (chosen, rejected)]
        return Step(
            step=number, loss=loss.item(), margin=means[0] - means[1], chosen=means[0], rejected=means[1],
            grad_norm=norm,
        )  # fmt: skip


class Judge:
    """A trained reward model: rewards in standard deviations of those that it gives to both sides of the pairs."""

    def __init__(self, target: LocalTarget, pairs: Sequence[Pair], settings: Settings, weights: bytes) -> None:
        self._target, self._model = target, Policy(target, settings, weights, scores=True)
        self._mean, self._scale = 0.0, 1.0
        seen = self([path for pair in pairs for path in tokens_of(target, pair, most=settings.max_length)])
        self.accuracy = float((seen[0::2] > seen[1::2]).float().mean())
        """Share of the pairs that it was trained on whose chosen side it rates higher."""
        self._mean, self._scale = float(seen.mean()), float(seen.std().clamp(min=1e-6))

    @torch.no_grad()
    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Of prompts with replies, shape (R,)."""
        some = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
        found = torch.cat([lay_out_replies(self._target, paths).rewards(self._model) for paths in some])
        return (found - self._mean) / self._scale
