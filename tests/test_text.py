"""Text from outside neither steers a terminal nor makes lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.text import escaped, one_line, short

pytestmark = pytest.mark.base


@given(st.text(st.characters(categories=("Cc", "Cf", "Zl", "Zp", "Zs", "Co", "L", "So"))))
def test_nothing_unseen_is_left(text: str) -> None:
    assert one_line(text).isprintable()
    assert short(text).isprintable()
    plain = {"a": [text], text: 1}
    shown = escaped(json.dumps(plain, indent=2, ensure_ascii=False))
    assert all(line.isprintable() for line in shown.split("\n"))
    assert json.loads(shown) == plain


def test_what_is_fit_to_print_stays() -> None:
    for text in ("", "a  b", "naïve 雪 ⟨x⟩ 😀"):
        assert one_line(text) == text
    assert one_line("a\x1b[2J\nb\r\nc\x9b\u202ed") == "a\ufffd[2J b c\ufffd\ufffdd"
    assert short("x" * 300, length=3) == "xxx..."
    assert escaped("\ud800") == "\\ud800"
