"""Queries that every Python reads alike."""

import re
from pathlib import Path

import truing.store


def test_placeholders_have_no_numbers() -> None:
    """Those with numbers count as named: Python 3.12 warns where a sequence is given for them, and 3.14 refuses."""
    folder = Path(truing.store.__file__).parent
    assert [file.name for file in folder.glob("*.py") if re.search(r"\?\d", file.read_text(encoding="utf-8"))] == []
