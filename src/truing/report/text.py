"""Text from records is hostile: what cannot be seen, or turns the reading order, is made visible."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from markupsafe import Markup

KEPT = "\n\t"
UNSEEN = ("Cc", "Cf", "Cs", "Co")
"""Unicode categories of controls, format characters (direction marks, zero-width), surrogates, private use."""


def visible(value: Any) -> Any:
    """Text with its invisible characters as code points; anything else, and finished markup, as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or (value.isascii() and value.isprintable()):
        return value
    return "".join(character if _seen(character) else f"⟨U+{ord(character):04X}⟩" for character in value)


def clip(text: str, most: int) -> str:
    """Text cut to a number of characters, with a sign that it was cut."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def slug(text: str) -> str:
    """Text as a part of an element's id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _seen(character: str) -> bool:
    return character in KEPT or unicodedata.category(character) not in UNSEEN
