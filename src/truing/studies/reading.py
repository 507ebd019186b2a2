"""Text that neurons are labelled from: what ships with Truing, and the first of what targets wrote in a store."""

from __future__ import annotations

from truing.measure import passages, requests
from truing.store import Store
from truing.trace.contexts import stored_texts

MOST, LONGEST = 6000, 600
"""Characters of the store's text in all, and of one text: each takes as long to read as a bundled one."""


def reading(store: Store) -> tuple[str, ...]:
    """Bundled passages and requests, then what targets wrote, in the order of arrival: a store that grows does not
    change it once the room is taken.
    """
    found, left = [], MOST
    for text in stored_texts(store):
        part = text[: min(LONGEST, left)]
        found.append(part)
        left -= len(part)
        if not left:
            break
    return (*passages(), *requests(), *found)
