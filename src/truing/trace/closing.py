"""Whether contributions to the decision add up in a model, before anything is chosen by them."""

from __future__ import annotations

from truing.targets.local import LocalTarget
from truing.targets.local.inside import llama_shaped
from truing.trace.attribute import Scoring
from truing.trace.auto import AutoEngine
from truing.trace.engine import Sources
from truing.trace.hand import HandEngine
from truing.trace.leak import apart, check_closed
from truing.trace.rules import Rule
from truing.trace.twins import Twin


def closed(target: LocalTarget, twin: Twin, rule: Scoring) -> float | None:
    """How far what tokens and biases add by all paths is from the decision in a twin's first cell, over the sum of what
    they add in absolute value: through all that scores go through. None by rules under which nothing is to add up.

    TargetError, with the architecture and the module that leaks, where it is too large.
    """
    if rule != "relp" and rule != "gate-frozen":  # noqa: PLR1714 - mypy narrows by these alone
        return None
    error = apart(*_added(target, twin, rule))
    check_closed(target, twin.first.functional, rule, error)
    return error


def _added(target: LocalTarget, twin: Twin, rule: Rule) -> tuple[Sources, float]:
    """What tokens and biases add to the decision, and the decision with its probabilities held."""
    case = twin.first.functional
    if llama_shaped(target.model):
        hand = HandEngine(target.model, case, rule)
        return hand.by_all_paths(())[0], hand.value(None)
    engine = AutoEngine(target.model, case, rule, neurons="passed")
    return engine.into([None], lambda _: None), engine.value(None)


__all__ = ["closed"]
