"""The section on training: its curves, its settings and the pairs that it was given."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from truing.records import Pair, Pairs, Training
from truing.report.curves import Curve, curves
from truing.report.numbers import number
from truing.report.pool import Pool, short

EXAMPLES = 2
"""Pairs shown for each role."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart with its first and last values in words."""

    title: str
    unit: str
    svg: Markup
    ends: tuple[tuple[str, str, str], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class TrainingView:
    """A training run as it stands in the page."""

    training: Training
    panels: tuple[Panel, ...]
    settings: tuple[tuple[str, str], ...]
    roles: tuple[tuple[str, int, tuple[Pair, ...]], ...]
    source: str
    state: str


def view(training: Training, pool: Pool) -> TrainingView:
    """A training run's view."""
    pairs = pool.get(Pairs, training.pairs)
    return TrainingView(
        training=training, panels=_panels(training),
        settings=tuple((name, _setting(value)) for name, value in training.settings),
        roles=_roles(pairs) if pairs else (), source=short(training.id), state=short(training.state.digest),
    )  # fmt: skip


def runs(pool: Pool) -> list[Training]:
    """Finished runs, and of each unfinished one the last checkpoint."""
    last: dict[tuple[object, ...], Training] = {}
    for training in sorted(pool.all(Training), key=lambda one: (one.finished, len(one.steps), one.id)):
        last[training.method, training.target, training.pairs, training.settings] = training
    return sorted(last.values(), key=lambda training: training.id)


def _setting(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _panels(training: Training) -> tuple[Panel, ...]:
    if not training.steps:
        return ()
    steps = [step.step for step in training.steps]

    def panel(title: str, unit: str, *shown: Curve, zero: bool = False) -> Panel:
        ends = tuple((curve.name, number(curve.values[0]), number(curve.values[-1])) for curve in shown)
        return Panel(title, unit, curves(shown, steps, zero=zero), ends, dashed=len(shown) > 1)

    def curve(name: str, field: str, style: str = "first") -> Curve:
        return Curve(name, tuple(getattr(step, field) for step in training.steps), style)

    rejected = curve("rejected", "rejected", "second")
    measured = all(step.margin is not None for step in training.steps)
    every = (
        panel("Loss", "nats", curve("loss", "loss"), zero=True),
        panel("Reward margin", "chosen over rejected, times beta", curve("margin", "margin"), zero=True)
        if measured else None,
        panel("Log-probability", "nats, summed over tokens", curve("chosen", "chosen"), rejected),
        panel("Gradient norm", "before clipping", curve("gradient norm", "grad_norm"), zero=True),
    )  # fmt: skip
    return tuple(one for one in every if one is not None)


def _roles(pairs: Pairs) -> tuple[tuple[str, int, tuple[Pair, ...]], ...]:
    found = []
    for role in ("fix", "keep"):
        members = [pair for pair in pairs.pairs if pair.role == role]
        plots = {pair.plot: pair for pair in reversed(members)}
        found.append((role, len(members), tuple(plots[plot] for plot in sorted(plots)[:EXAMPLES])))
    return tuple(found)
