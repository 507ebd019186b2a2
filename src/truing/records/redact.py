"""Replace what looks like a secret before a transcript is stored."""

from __future__ import annotations

import re

_PATTERNS = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
    "api key": re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bAIza[0-9A-Za-z_-]{30,}|\bxox[abpr]-[0-9A-Za-z-]{10,}"),
    "access token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bhf_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    "cloud key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "web token": re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "bearer": re.compile(r"(?i)\bbearer\s+[A-Za-z0-9._~+/-]{16,}=*"),
    "password": re.compile(r"(?i)\b(?:password|passwd|secret[_-]?key|api[_-]?key)\s*[=:]\s*[^\s,;'\"]{6,}"),
}


def redact(text: str) -> tuple[str, int]:
    """The text with every secret replaced by "[redacted: what it was]", and how many there were."""
    count = 0
    for name, pattern in _PATTERNS.items():
        text, found = pattern.subn(f"[redacted: {name}]", text)
        count += found
    return text, count
