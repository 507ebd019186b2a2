"""How likely the tokens of a text are, and which would have been likelier."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from truing.targets.local import LocalTarget
from truing.targets.local.paths import computed
from truing.targets.local.score import walk
from truing.targets.local.tree import plant
from truing.targets.local.write import Token


def scores(
    target: LocalTarget, texts: Sequence[Sequence[int]], *, top: int
) -> Generator[None, None, list[tuple[Token, ...]]]:
    """Every token of the texts but the first, with the `top` likeliest in its place; shared beginnings are passed once.

    A step is a block of the tree of all texts, so that an engine can do something else between.
    TargetError where there is not memory enough.
    """
    pairs = [(text[:1], text[1:]) for text in texts if len(text) > 1]
    if not pairs:
        return [() for _ in texts]
    tree, routes = plant([[*first, *rest[:-1]] for first, rest in pairs])
    plan = target.plan_scores(pairs, shared=computed(target.model, tree))
    # The tokens that follow each node, in any of the texts.
    follow: list[set[int]] = [set() for _ in range(len(tree))]
    for (_, rest), route in zip(pairs, routes, strict=True):
        for node, token in zip(route.tolist(), rest, strict=True):
            follow[node].add(token)
    found: dict[tuple[int, int], Token] = {}
    at = 0
    nodes = torch.arange(len(tree))

    def take(logits: Tensor) -> int:
        log_p = logits.float().log_softmax(-1)
        best = log_p.topk(top)
        tops = [list(zip(*both, strict=True)) for both in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        for row, tokens in enumerate(follow[at : at + len(logits)]):
            for token in tokens:
                found[at + row, token] = Token(token, float(log_p[row, token]), tuple(tops[row]))
        return len(logits)

    for count, _, _ in walk(target.model, tree, nodes, take, block=plan.block, say=target.say):
        at += count
        yield
    known = iter([
        tuple(found[node, token] for node, token in zip(route.tolist(), rest, strict=True))
        for (_, rest), route in zip(pairs, routes, strict=True)
    ])  # fmt: skip
    return [next(known) if len(text) > 1 else () for text in texts]
