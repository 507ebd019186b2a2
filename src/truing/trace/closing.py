"""Whether contributions to the decision add up in a model, before anything is chosen by them."""

from __future__ import annotations

from truing.targets.local import LocalTarget
from truing.targets.local.inside import llama_shaped
from truing.trace.accounts import by_autograd
from truing.trace.attribute import Scoring
from truing.trace.averaging import segments_of
from truing.trace.draw import account
from truing.trace.leak import check_closed
from truing.trace.twins import Twin


def closed(target: LocalTarget, twin: Twin, rule: Scoring) -> float | None:
    """The relative closure error of the decision in a twin's first cell; None by rules under which nothing is to add
    up. TargetError, with the architecture and the module that leaks, where it is too large.
    """
    if rule != "relp" and rule != "gate-frozen":  # noqa: PLR1714 - mypy narrows by these alone
        return None
    books = account if llama_shaped(target.model) else by_autograd
    error = books(target.model, twin.first, (), segments_of([twin])).error
    check_closed(target, twin.first.functional, rule, error)
    return error


__all__ = ["closed"]
