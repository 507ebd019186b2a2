"""The section on gates: is a behaviour gone or only hidden, and what was tried to bring it back."""

from __future__ import annotations

from dataclasses import dataclass

from truing.records import Gate, Target
from truing.report.intervals import Chart, by_unit, named
from truing.report.pool import Pool, short

INSIDE = "What is left inside (nothing calibrates this yet: the verdict does not rest on it)"


@dataclass(frozen=True, slots=True)
class GateView:
    """A gate's record as it stands in the page."""

    title: str
    verdict: str
    why: str
    harmed: tuple[str, ...]
    targets: tuple[tuple[str, str], ...]
    budget: tuple[tuple[str, str], ...]
    blocks: tuple[tuple[str, tuple[Chart, ...]], ...]


def view(gate: Gate, pool: Pool) -> GateView:
    """A gate's view."""
    source = f"Source: gate {short(gate.id)}"
    roles = (("before", gate.before), ("after", gate.after), ("control", gate.control))
    shown = (
        ("On held-out cases", by_unit(named(gate.direct), split=True, source=source)),
        ("What each probe brings back, above the control", by_unit(named(gate.probes), signed=True, source=source)),
        ("What it cost", by_unit(named(gate.cost), split=True, source=source)),
        (INSIDE, by_unit(named(gate.inside), split=True, source=source)),
    )
    return GateView(
        title=f"{gate.behaviour}{f' ({gate.clause})' if gate.clause else ''}", verdict=gate.verdict, why=gate.why,
        harmed=gate.harmed, targets=tuple((role, _name(one, pool)) for role, one in roles if one),
        budget=tuple((name.replace("_", " "), f"{value:g}") for name, value in gate.budget),
        blocks=tuple((title, tuple(charts)) for title, charts in shown if charts),
    )  # fmt: skip


def _name(target: str, pool: Pool) -> str:
    card = pool.get(Target, target)
    return card.name if card else short(target)
