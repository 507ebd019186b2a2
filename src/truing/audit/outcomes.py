"""Class a free reply by word lists. Nothing that a reply says can make it disappear."""

from __future__ import annotations

import re
from collections.abc import Sequence

Labels = Sequence[tuple[str, Sequence[str]]]


def classify(reply: str, labels: Labels) -> tuple[str, str]:
    """The outcome class and the span that decided: the labels found, joined by "+", in their order.

    "empty" where nothing was written, "neither" where no label was found. Words match whole, in any case.
    """
    if not reply.strip():
        return "empty", ""
    found: list[str] = []
    spans: list[str] = []
    for label, words in labels:
        for word in words:
            match = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", reply, re.IGNORECASE)
            if match:
                found.append(label)
                spans.append(match[0])
                break
    return ("+".join(found) or "neither"), " | ".join(spans)
