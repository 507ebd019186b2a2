"""PROVE: pack records into one signed file, and check such a file without trusting whoever sent it."""

from __future__ import annotations

from truing.share.bundle import Packed, pack
from truing.share.keys import PublicKey, SigningKey, key_path, load_key, own_key
from truing.share.verify import Verification, extract_report, verify

__all__ = [
    "Packed", "PublicKey", "SigningKey", "Verification", "extract_report", "key_path", "load_key", "own_key", "pack",
    "verify",
]  # fmt: skip
