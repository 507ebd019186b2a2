"""Which words of a prompt bring a reply about: what each adds to it by all paths."""

from __future__ import annotations

import re
from collections.abc import Sequence

from truing.records import Message
from truing.targets.local import LocalTarget
from truing.targets.local.inside import llama_shaped
from truing.trace.auto import AutoEngine
from truing.trace.context import between
from truing.trace.engine import Engine
from truing.trace.hand import HandEngine
from truing.trace.leak import apart, check_closed
from truing.trace.readable import check_readable

WORD = re.compile(r"[\w']+")


def by_word(target: LocalTarget, messages: Sequence[Message], said: str, instead: str) -> dict[str, float]:
    """What the words of the last turn add to one reply rather than another, nats per token; in lower case.

    Of a word that stands there several times, the most. Embeddings alone are summed, so that what a template and biases
    add is in none of them. UsageError for replies that are the same, or that do not begin where the prompt ends;
    TargetError for a model that cannot be traced, or in which tokens and biases do not add up to the decision.
    """
    check_readable(target)
    context = between(target, messages, [said], [instead])
    model = target.model
    engine: Engine = (HandEngine if llama_shaped(model) else AutoEngine)(model, context.functional)
    tokens, _ = engine.by_all_paths([])
    check_closed(target, context.functional, "relp", apart(tokens, engine.value(None)))
    text, user = target.prompt_text(messages), messages[-1].content
    added = list(zip(target.offsets(text), tokens.embeddings_BT[0].tolist(), strict=False))  # replies are cut off
    start, found = text.rindex(user.strip()), dict[str, float]()
    for match in WORD.finditer(user.strip()):
        a, b = start + match.start(), start + match.end()
        total = sum(value for (_, (c, d)), value in added if c < b and d > a)
        word = match[0].casefold()
        found[word] = max(found.get(word, total), total)
    return found
