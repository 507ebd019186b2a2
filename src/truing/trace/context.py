"""What is traced in one context: a decision between texts, or the spans of a transcript that was written."""

# T nodes of the tree

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from truing.errors import UsageError
from truing.records import Decision, Message
from truing.targets.local import Functional, LocalTarget
from truing.targets.local.tree import plant
from truing.trace.boundary import check_apart, check_boundary
from truing.trace.twins import REPLY, label_at, spelled, turns


@dataclass(frozen=True, slots=True)
class Context:
    """A decision in a context, and a label for every node of its tree."""

    functional: Functional
    actions: tuple[str, ...]
    alternatives: tuple[str, ...]
    """Empty where what was written is traced by itself."""
    segment_T: tuple[str, ...]


def between(
    target: LocalTarget, messages: Sequence[Message], actions: Sequence[str], alternatives: Sequence[str]
) -> Context:
    """The decision between texts that could follow a conversation.

    Its value is the mean over actions of the mean log-probability per token, minus that of the alternatives. UsageError
    for texts that are the same tokens, or that join with the end of the prompt into other tokens.
    """
    prompt = target.prompt_text(messages)
    check_apart(target, actions, alternatives)
    for text in (*actions, *alternatives):
        check_boundary(target, prompt, text)
    functional = target.functional(Decision(actions=tuple(actions), alternatives=tuple(alternatives)), messages)
    return Context(functional, tuple(actions), tuple(alternatives), _segments(target, messages, prompt, functional))


def written(target: LocalTarget, messages: Sequence[Message], spans: Sequence[str]) -> Context:
    """Why these spans of a transcript were written: the mean log-probability per token of what they are made of.

    A span is looked for in the rendered conversation, so that the arguments of a call can be one, with blanks or
    without; where it is there several times, the last is meant. A token that is partly in a span belongs to it.
    UsageError where one is not there.
    """
    text = target.rendered(messages)
    encoded = target.offsets(text)
    chosen: set[int] = set()
    for span in spans:
        start, said = max((text.rfind(said), said) for said in spelled(span)) if span else (-1, "")
        if start < 0:
            raise UsageError(f"the transcript holds no {span!r}, as the model's template renders it; give a text of it")
        chosen |= {place for place, (_, (a, b)) in enumerate(encoded) if a < start + len(said) and b > start}
    if not chosen or min(chosen) == 0:
        raise UsageError("the first token of a transcript follows nothing; give a span that begins later")
    nodes = torch.tensor(sorted(chosen))
    # Nothing follows the last token of the spans, and a node is only needed as what comes before.
    ids = target.fits([token for token, _ in encoded[: int(nodes[-1]) + 1]], whole=True)
    tree, _ = plant([ids])
    functional = Functional(tree, nodes, torch.full((len(nodes),), 1 / len(nodes)), int(nodes[0]))
    return Context(functional, tuple(spans), (), _segments(target, messages, text, functional))


def _segments(target: LocalTarget, messages: Sequence[Message], text: str, functional: Functional) -> tuple[str, ...]:
    """The turn that each token is in, "2 user"; what the template adds is the frame, what follows the reply."""
    spans = turns(messages, text)
    labels = [label_at(spans, *span) for _, span in target.offsets(text)][: len(functional.tree)]
    return (*labels, *[REPLY] * (len(functional.tree) - len(labels)))
