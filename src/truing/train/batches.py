"""Pairs as trees: the prompt once, chosen and rejected as its branches, and whole batches as one forest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truing.errors import TrainingError
from truing.records import Pair
from truing.targets.local import LocalTarget
from truing.targets.local.inside import forward
from truing.targets.local.tree import Tree, plant
from truing.train.losses import LogProbs


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs laid out in one tree; scored are M tokens.

    `before_M`: the node that predicts each; `token_M`: its id; `owner_M`: its sequence (2i chosen, 2i + 1 rejected).
    """

    tree: Tree
    before_M: Tensor
    token_M: Tensor
    owner_M: Tensor
    pairs: int

    def log_probs(self, model: Any) -> LogProbs:
        """Summed log-probability of every continuation, with gradient where the model has one."""
        kept, inverse = self.before_M.unique(return_inverse=True)
        logits = forward(model, self.tree, kept).logits[0].float()
        log_p = torch.log_softmax(logits, -1)[inverse, self.token_M]
        sums = torch.zeros(2 * self.pairs, dtype=log_p.dtype).index_add(0, self.owner_M, log_p)
        return LogProbs(sums[0::2], sums[1::2])


def batches(target: LocalTarget, pairs: Sequence[Pair], *, size: int, epochs: int, seed: int) -> list[Batch]:
    """Batches in the order of training: shuffled anew each epoch, the last one of an epoch maybe smaller."""
    order = random.Random(seed)
    laid = []
    for _ in range(epochs):
        shuffled = order.sample(list(pairs), len(pairs))
        laid += [lay_out(target, shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
    return laid


def lay_out(target: LocalTarget, pairs: Sequence[Pair]) -> Batch:
    """One batch. TrainingError where a pair says nothing: chosen equal to rejected."""
    stop = target.tokenizer.eos_token_id
    prompts, replies = [], []
    for pair in pairs:
        if pair.chosen == pair.rejected:
            raise TrainingError(f"{pair.surface}: chosen and rejected are the same text {pair.chosen!r}; drop the pair")
        prompt = target.prompt_ids(pair.messages)
        for text in (pair.chosen, pair.rejected):
            # One end-of-turn token closes each reply, so that stopping is trained with it.
            prompts.append(prompt)
            replies.append([*target.text_ids(text), stop])
    # Nothing follows the last token of a reply, so it needs no node.
    tree, routes = plant([target.fits([*prompt, *reply[:-1]]) for prompt, reply in zip(prompts, replies, strict=True)])
    before = [route[len(prompt) - 1 :] for prompt, route in zip(prompts, routes, strict=True)]
    tokens = torch.tensor([token for reply in replies for token in reply])
    owner = torch.cat([torch.full((len(reply),), number) for number, reply in enumerate(replies)])
    return Batch(tree, torch.cat(before), tokens, owner, len(pairs))
