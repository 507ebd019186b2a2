"""Text that neurons are labelled from: what ships with Truing, and the first of what targets wrote in a store."""

from __future__ import annotations

from truing.measure import passages, requests
from truing.store import Store
from truing.trace.contexts import each_stored

MOST, LONGEST = 6000, 600
"""Characters of the store's text in all, and of one text: each takes as long to read as a bundled one."""


def reading(store: Store) -> tuple[str, ...]:
    """Bundled passages and requests; then replies, turns and episodes of the store, each in the order of arrival, as
    far as there is room. No more records are read than that takes.
    """
    found: dict[str, None] = {}
    left = MOST
    for text in each_stored(store):
        part = text[: min(LONGEST, left)]
        if part not in found:
            found[part] = None
            left -= len(part)
        if not left:
            break
    return (*passages(), *requests(), *found)
