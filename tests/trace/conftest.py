"""The claim that is true of `local/tiny` by construction: it asserts what its context says."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def claim(tiny: Any) -> Any:
    """A claim record to trace; nothing in it is read but its id."""
    from truing.records import Claim, Unmeasured

    none = Unmeasured(reason="a planted truth, not measured")
    return Claim(
        family="anchoring", clause="C1", outcome="preference", statement="It takes over what the context says.",
        design="0" * 64, target=tiny.card.id, naive=none, specific=none, controls=(), bound=0.1, p=None, p_holm=None,
        minimum_detectable=None, classes=(), verdict="supported", why="planted",
    )  # fmt: skip


@pytest.fixture(scope="session")
def effect(claim: Any) -> Any:
    """Its twins: a false statement against a true one."""
    from truing.audit import lay_out
    from truing.trace import Effect

    develop = lay_out("anchoring", most=2)
    held = lay_out("anchoring", half="held-out", wordings="held-out", most=2)
    return Effect(claim, develop.family.carry.twins, develop.surfaces, held.surfaces)
