"""Pairs as trees: the prompt once, chosen and rejected as its branches, and whole batches as one forest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from truing.errors import TargetError, TrainingError
from truing.records import Message, Pair
from truing.runner import Watcher
from truing.targets.local import LocalTarget
from truing.targets.local.inside import forward, hidden
from truing.targets.local.tree import Tree, plant
from truing.targets.tools import PLAIN, turns
from truing.text import short
from truing.train.head import ROWS, log_probs, plain_head
from truing.train.losses import Sides
from truing.train.settings import Settings

Path = tuple[list[int], list[int]]
"""A prompt and what follows it, in tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs laid out in one tree; scored are M tokens.

    `before_M`: the node that predicts each; `token_M`: its id; `owner_M`: its sequence (2i chosen, 2i + 1 rejected).
    """

    tree: Tree
    before_M: Tensor
    token_M: Tensor
    owner_M: Tensor
    places: tuple[int, ...]
    """Where its pairs stand among all."""

    def log_probs(self, model: Any) -> Sides:
        """Summed log-probability of every continuation, with gradient where the model has one."""
        sums = self.sums(model, 2 * len(self.places))
        return Sides(sums[0::2], sums[1::2])

    def sums(self, model: Any, count: int) -> Tensor:
        """The same of so many sequences, whatever they are the sides of, shape (count,)."""
        log_p = self._log_p(model)
        return torch.zeros(count, dtype=log_p.dtype).index_add(0, self.owner_M, log_p.cpu())

    @torch.no_grad()
    def divergence(self, model: Any, other: Any) -> Tensor:
        """KL(model || other) over the whole vocabulary wherever a token is predicted, nats; a value for each node."""
        kept = self.before_M.unique()
        both = [forward(one, self.tree, kept).logits[0].split(ROWS) for one in (model, other)]
        found = []
        for p, q in zip(*both, strict=True):
            log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
            found.append((log_p.exp() * (log_p - log_q)).sum(-1).cpu())
        return torch.cat(found)

    def _log_p(self, model: Any) -> Tensor:
        """Of every token, shape (M,)."""
        if (head := plain_head(model)) is not None:
            at_M = self.before_M.to(model.device)
            return log_probs(hidden(model, self.tree)[at_M], head, self.token_M.to(model.device))
        kept, inverse = self.before_M.unique(return_inverse=True)
        logits = forward(model, self.tree, kept).logits[0].float()
        return logits.log_softmax(-1)[inverse, self.token_M]

    @property
    def tokens(self) -> Sides:
        """Tokens of every continuation."""
        counts = self.owner_M.bincount(minlength=2 * len(self.places))
        return Sides(counts[0::2], counts[1::2])


def batches(places: Sequence[int], settings: Settings) -> list[list[int]]:
    """These places in the order of training: shuffled anew each epoch, the last batch of an epoch maybe smaller."""
    order, size = random.Random(settings.seed), settings.batch
    laid = []
    for _ in range(settings.epochs):
        shuffled = order.sample(places, len(places))
        laid += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    return laid[: settings.most_steps or None]


def lay_out(
    target: LocalTarget, pairs: Sequence[Pair], places: Sequence[int] = (), *, rejected: bool = True, most: int = 0
) -> Batch:
    """One batch of the pairs at these places, or of all. TrainingError where a pair says nothing.

    `rejected`, `most`: as for `tokens_of`.
    """
    places = places or range(len(pairs))
    sides = [tokens_of(target, pairs[place], rejected=rejected, most=most) for place in places]
    return planted([path for both in sides for path in both], places)


def mismatched(target: LocalTarget, pairs: Sequence[Pair], places: Sequence[int], *, most: int = 0) -> Batch:
    """The same batch of two pairs or more, but each prompt with the replies of the next pair."""
    sides = [tokens_of(target, pairs[place], most=most) for place in places]
    following = [*sides[1:], sides[0]]
    paths = []
    for place, ((prompt, _), _), others in zip(places, sides, following, strict=True):
        replies = [reply for _, reply in others]
        before = fitted(target, pairs[place].surface, prompt, max(map(len, replies)), most)
        paths += [(before, reply) for reply in replies]
    return planted(paths, places)


def planted(paths: Sequence[Path], places: Sequence[int] = ()) -> Batch:
    """Prompts with what follows them as one batch."""
    # Nothing follows the last token of a reply, so it needs no node.
    tree, routes = plant([[*prompt, *reply[:-1]] for prompt, reply in paths])
    before = [route[len(prompt) - 1 :][: len(reply)] for (prompt, reply), route in zip(paths, routes, strict=True)]
    tokens = torch.tensor([token for _, reply in paths for token in reply])
    owner = torch.cat([torch.full((len(reply),), number) for number, (_, reply) in enumerate(paths)])
    return Batch(tree, torch.cat(before), tokens, owner, tuple(places))


def tokens_of(target: LocalTarget, pair: Pair, *, rejected: bool = True, most: int = 0) -> tuple[Path, Path]:
    """Prompt and reply of the chosen and of the rejected side. TrainingError where that is not what both texts are.

    Each reply is closed as the model's template closes it, so that stopping is trained with it. Without `rejected` that
    side has no tokens. `most`: tokens that the prompt and the longer reply may have; the prompt's beginning is cut off.
    """
    if pair.chosen == pair.rejected:
        raise TrainingError(f"{pair.surface}: chosen and rejected are the same text {pair.chosen!r}; drop the pair")
    text = _text(target, pair)
    prompt = target.encoded(text)
    replies = []
    for reply in (pair.chosen, pair.rejected) if rejected else (pair.chosen,):
        ids = target.text_ids(reply)
        if target.encoded(text + reply) != [*prompt, *ids]:
            raise TrainingError(
                f"{pair.surface}: the prompt and {short(reply)!r} have other tokens together than apart, so that no"
                " token begins the reply; move the blank between them to the reply's beginning"
            )
        if not target.stop_ids.isdisjoint(ids):
            raise TrainingError(f"{pair.surface}: {short(reply)!r} holds the mark that ends a turn; leave it out")
        replies.append([*ids, *_closing(target, pair, text, reply)])
    prompt = fitted(target, pair.surface, prompt, max(map(len, replies)), most)
    for ids in replies:
        target.fits(ids)
    return (prompt, replies[0]), (prompt, replies[1] if rejected else [])


def prompt_of(target: LocalTarget, pair: Pair) -> list[int]:
    """All tokens of a pair's prompt."""
    return target.encoded(_text(target, pair))


def _text(target: LocalTarget, pair: Pair) -> str:
    return target.prompt_text(pair.messages) if pair.messages else pair.text


def fitted(target: LocalTarget, name: str, prompt: Sequence[int], more: int, most: int) -> list[int]:
    """A prompt that so many more tokens are to follow. TrainingError where both are longer than the context.

    `most`: the tokens of both, to which the beginning of the prompt is cut off; TrainingError where none of it is left.
    0: nothing is.
    """
    room = most - more if most else len(prompt)
    if room < 1:
        raise TrainingError(f"{name}: {more} tokens leave none for their prompt within max_length ({most}); raise it")
    try:
        return target.fits(prompt[-room:], more=more)
    except TargetError as error:
        hint = "lower max_length" if most else "let prompts be cut off (max_length, --max-length)"
        raise TrainingError(f"{name}: {error}, drop the pair, or {hint}") from error


def truncated(
    target: LocalTarget, pairs: Sequence[Pair], most: int, watcher: Watcher | None, *, rejected: bool = True,
    more: int = 0,
) -> int | None:  # fmt: skip
    """How many of the pairs have a prompt that is cut off; None for none. It is said.

    `rejected`, `most`: as for `tokens_of`. `more`: tokens that follow a prompt, where it is not the pair's replies.
    """
    if not most:
        return None

    def kept(pair: Pair, prompt: list[int]) -> int:
        if more:
            return len(fitted(target, pair.surface, prompt, more, most))
        return len(tokens_of(target, pair, rejected=rejected, most=most)[0][0])

    found = sum(kept(pair, prompt) < len(prompt) for pair in pairs if (prompt := prompt_of(target, pair)))
    if found and watcher:
        watcher.say(f"{found} of {len(pairs)} prompts lose their beginning, to be within {most} tokens with a reply")
    return found or None


def _closing(target: LocalTarget, pair: Pair, text: str, reply: str) -> list[int]:
    """What the template puts behind a reply, with one token that ends the turn; else that token alone."""
    alone = [target.tokenizer.eos_token_id]
    if not pair.messages:
        return alone
    said, _ = turns([*pair.messages, Message(role="assistant", content=reply)], (), PLAIN)
    try:
        whole = str(target.tokenizer.apply_chat_template(said, tokenize=False))
    except (TemplateError, TypeError, ValueError):  # it takes the conversation up to the reply, which is enough
        return alone
    if not whole.startswith(text + reply):  # it changes replies, say by leaving out blanks around them
        return alone
    closing = target.encoded(whole.removeprefix(text + reply))
    ends = sum(token in target.stop_ids for token in closing)
    if ends > 1:
        raise TrainingError(
            f"{pair.surface}: the template of {target.card.name} closes {short(reply)!r} with {ends} tokens that end"
            " a turn; one is what training needs"
        )
    return closing if ends else alone
