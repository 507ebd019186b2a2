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
    """Pairs laid out in one tree. `owner_M` numbers the sequence (2i chosen, 2i + 1 rejected) of each scored node."""

    tree: Tree
    nodes_M: Tensor
    owner_M: Tensor
    pairs: int

    def log_probs(self, model: Any) -> LogProbs:
        """Summed log-probability of every continuation, with gradient where the model has one."""
        before, inverse = self.tree.parent_N[self.nodes_M].unique(return_inverse=True)
        logits = forward(model, self.tree, before).logits[0].float()
        log_p = torch.log_softmax(logits, -1)[inverse, self.tree.ids_N[self.nodes_M]]
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
    paths, starts = [], []
    for pair in pairs:
        if pair.chosen == pair.rejected:
            raise TrainingError(f"{pair.surface}: chosen and rejected are the same text {pair.chosen!r}; drop the pair")
        prompt = target.prompt_ids(pair.messages)
        for text in (pair.chosen, pair.rejected):
            # One end-of-turn token closes each reply, so that stopping is trained with it.
            paths.append([*prompt, *target.text_ids(text), stop])
            starts.append(len(prompt))
    tree, routes = plant(paths)
    scored = [route[start:] for route, start in zip(routes, starts, strict=True)]
    owner = torch.cat([torch.full((len(nodes),), number) for number, nodes in enumerate(scored)])
    return Batch(tree, torch.cat(scored), owner, len(pairs))
