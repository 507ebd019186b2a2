"""Commit now, reveal later: a salted hash that binds to a value and tells nothing of it."""

from __future__ import annotations

import secrets
from typing import Any

from truing.records import digest_of

SALT = 32
"""Bytes of a salt: guessing what was committed to is hopeless, however few things it could be."""


def salt() -> str:
    """A fresh one, as hexadecimal digits."""
    return secrets.token_hex(SALT)


def commitment(value: Any, salt: str) -> str:
    """SHA-256 of the canonical JSON of the salt and a value of plain data."""
    return digest_of({"salt": salt, "value": value})
