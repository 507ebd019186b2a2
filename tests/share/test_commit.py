"""A commitment binds, and hides."""

from __future__ import annotations

from truing.share.commit import commitment, salt


def test_it_binds_to_value_and_salt_and_to_nothing_else() -> None:
    first, second = salt(), salt()
    assert first != second
    assert len(bytes.fromhex(first)) == 32
    assert commitment({"a": 1, "b": [2]}, first) == commitment({"b": [2], "a": 1}, first)
    made = {commitment(value, some) for value in ({"a": 1}, {"a": 2}, ["a", 1]) for some in (first, second)}
    assert len(made) == 6
