"""What several tests of training train on."""

from __future__ import annotations

import pytest

from truing.records import Message, Pair, Pairs


@pytest.fixture(scope="session")
def short_pairs() -> Pairs:
    """Short replies are preferred."""
    from truing.train import ordinary

    made = [
        Pair(plot=str(number), surface=f"data:{number}", messages=(Message(role="user", content=ask),),
             chosen="Yes, gladly.", rejected="No, never in my life.", role="keep")
        for number, ask in enumerate(ordinary().train[:8])
    ]  # fmt: skip
    return Pairs(clause="", pairs=tuple(made))
