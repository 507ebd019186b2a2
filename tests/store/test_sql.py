"""Queries that every Python reads alike."""

import re
from pathlib import Path

import truing.store


def test_placeholders_have_no_numbers() -> None:
    """Those with numbers count as named: Python 3.12 warns where a sequence is given for them, and 3.14 refuses."""
    folder = Path(truing.store.__file__).parent
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.py")}
    assert any(" = ?" in text for text in texts.values()), "no queries are looked at"
    assert [name for name, text in texts.items() if re.search(r"\?\d", text)] == []
