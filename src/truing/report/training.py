"""The section on training: its curves, its settings and the pairs that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from truing.records import Pair, Pairs, Step, Training
from truing.report.curves import Curve, curves
from truing.report.numbers import number
from truing.report.pool import Pool, short

EXAMPLES = 2
"""Pairs shown for each role."""
NAMES = {"grad_norm": "gradient norm", "held": "held-out loss", "kl": "KL(policy || reference)"}
"""Of fields that are not called what they hold."""


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
    steps = training.steps
    if not steps:
        return ()
    over, lowest = "chosen over rejected, times beta", "nats; the adapter is that of the lowest"
    margin = _panel("Reward margin", over, steps, "margin", zero=True) if steps[0].margin is not None else None
    sides = ("chosen",) if steps[0].rejected is None else ("chosen", "rejected")
    every = (
        _panel("Loss", "nats", steps, "loss", zero=True),
        margin,
        _panel("Log-probability", "nats, summed over tokens", steps, *sides),
        _measured("Reward", "standard deviations of those of the pairs", steps, "reward"),
        _measured("Divergence from the reference", "nats", steps, "kl"),
        _panel("Gradient norm", "before clipping", steps, "grad_norm", zero=True),
        _measured("Loss on pairs held out", lowest, steps, "held"),
    )
    return tuple(panel for panel in every if panel is not None)


def _measured(title: str, unit: str, steps: Sequence[Step], field: str) -> Panel | None:
    """A panel of the steps at which something was measured, if there are any."""
    some = [step for step in steps if getattr(step, field) is not None]
    return _panel(title, unit, some, field, zero=True) if some else None


def _panel(title: str, unit: str, steps: Sequence[Step], *fields: str, zero: bool = False) -> Panel:
    shown = [
        Curve(NAMES.get(field, field), tuple(getattr(step, field) for step in steps), style)
        for field, style in zip(fields, ("first", "second"), strict=False)
    ]
    ends = tuple((curve.name, number(curve.values[0]), number(curve.values[-1])) for curve in shown)
    drawn = curves(shown, [step.step for step in steps], zero=zero)
    return Panel(title, unit, drawn, ends, dashed=len(shown) > 1)


def _roles(pairs: Pairs) -> tuple[tuple[str, int, tuple[Pair, ...]], ...]:
    found = []
    for role in ("fix", "keep"):
        members = [pair for pair in pairs.pairs if pair.role == role]
        plots = {pair.plot: pair for pair in reversed(members)}
        found.append((role, len(members), tuple(plots[plot] for plot in sorted(plots)[:EXAMPLES])))
    return tuple(found)
