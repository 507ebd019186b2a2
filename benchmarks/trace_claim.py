"""Whether units carry the claim that the demo carries on, by every rule: the twins of `anchoring`.

Units are chosen on topics of the develop half and tested on other topics, in other wordings. Twins of one topic are not
independent: every figure is a mean over topics of means over their twins, and its interval is over topics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import Row
from trace_circuits import (
    AMONG,
    DERIVED,
    RULES,
    SAMPLED,
    Curve,
    Floats,
    beside_patching,
    curve,
    curve_rows,
    resamples,
    sample,
    site_of,
)

from truing.trace.attribute import Attribution, Scoring, attribute
from truing.trace.twins import Twin, by_plot, twins

FAMILY = "anchoring"
TO_CHOOSE, TO_TEST = 3, 6
"""Twins of a topic, of seven topics each."""
Scored = dict[Scoring, list[Attribution]]


def halves(target: Any, to_choose: int = TO_CHOOSE, to_test: int = TO_TEST) -> tuple[list[Twin], list[Twin]]:
    """Twins to choose by, and twins to test on."""
    from truing.audit import lay_out

    laid = [lay_out(FAMILY), lay_out(FAMILY, half="held-out", wordings="held-out")]
    choosing, testing = (
        twins(target, one.surfaces, one.family.carry.twins, per_plot=count)[0]
        for one, count in zip(laid, (to_choose, to_test), strict=True)
    )
    return choosing, testing


def claim_rows(target: Any, *, to_choose: int = TO_CHOOSE, to_test: int = TO_TEST) -> list[Row]:
    """Curves of every rule, and scores beside exact patching. Texts differ in length, so units are at all positions."""
    began = time.perf_counter()
    choosing, testing = halves(target, to_choose, to_test)
    segments = tuple(dict.fromkeys(s for t in choosing for side in (t.first, t.second) for s in side.segment_T))
    scored: Scored = {rule: [attribute(target.model, twin, segments, rule) for twin in choosing] for rule in RULES}
    print(f"claim, scores: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    plots = by_plot(testing)
    rows = [_counted("claim: twins, to choose", choosing), _counted("claim: twins, to test", testing)]
    for level in ("neurons", "heads"):
        found = curves(target.model, plots, level, {rule: mean_of(some, level) for rule, some in scored.items()})
        rows += curve_rows(f"claim, {level}", found, *resamples(len(plots)))
    print(f"claim, curves: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return [*rows, *patched_rows(target, choosing, scored), Row("claim: seconds", time.perf_counter() - began, "s")]


def _counted(name: str, some: Sequence[Twin]) -> Row:
    return Row(name, float(len(some)), f"twins of {len(by_plot(some))} topics; intervals are over topics")


def mean_of(found: Sequence[Attribution], level: str) -> torch.Tensor:
    """Mean scores of all heads or neurons, flat."""
    return torch.stack([getattr(one, level) for one in found]).mean(0).flatten()


def curves(
    model: Any, plots: dict[str, list[Twin]], level: str, scores: dict[Scoring, torch.Tensor]
) -> dict[Scoring, Curve]:
    """All circuits of all rules as rows of one batch, twin by twin; the mean over the twins of a plot."""
    kept: list[torch.Tensor] = []

    def note(taken: torch.Tensor) -> Floats:
        kept.append(taken)
        return np.zeros(1)

    sizes = {rule: curve(note, np.zeros(1), one).sizes for rule, one in scores.items()}
    masks = torch.stack(kept)
    means = [np.mean([decisions(model, twin, level, masks) for twin in members], axis=0) for members in plots.values()]
    by_plot_DP = np.stack(means, -1)
    by_rule, full = by_plot_DP[:-1].reshape(len(scores), -1, len(means)), by_plot_DP[-1]
    return {
        rule: Curve(sizes[rule], np.concatenate([rows[:-1], full[None]]), full, rows[-1])
        for rule, rows in zip(scores, by_rule, strict=True)
    }


def decisions(model: Any, twin: Twin, level: str, masks: torch.Tensor) -> Floats:
    """The decision of a twin's first cell with marked units (rows, units) from the second, and last as it is; nats."""
    from truing.targets.local.inside import Patch, run
    from truing.trace.attribute import read_side
    from truing.trace.derive import decision_of
    from truing.trace.mediate import _alike

    layers, site = model.config.num_hidden_layers, site_of(level)
    first, nodes = read_side(model, twin.first)
    second, _ = read_side(model, twin.second)
    by_layer = masks.unflatten(1, (layers, -1))
    take = {(site, layer): by_layer[:, layer] for layer in range(layers) if bool(by_layer[:, layer].any())}
    patch, case = Patch(take, second, twin.onto_T, twin.from_T), twin.first.functional
    logits = run(model, case.tree, nodes, rows=len(masks), patch=patch, start=_alike(twin))
    assert first.logits is not None  # read_side() sets them
    found: Floats = torch.cat([decision_of(case, logits), decision_of(case, first.logits[None])]).double().cpu().numpy()
    return found


# -- beside exact patching ---------------------------------------------------------------------------------------------


def patched_rows(target: Any, choosing: Sequence[Twin], scored: Scored) -> list[Row]:
    """Scores beside what patching every unit by itself takes away, in all twins that choose; topics are drawn anew."""
    plots, rows = by_plot(choosing), [_counted("claim: twins patched", choosing)]
    draws = resamples(len(plots))
    for level, among in (("neurons", AMONG), ("neurons", 0), ("heads", 0)):
        by = {rule: torch.stack([getattr(one, level).flatten() for one in some]) for rule, some in scored.items()}
        chosen = sample([by[rule] for rule in DERIVED], count=SAMPLED, among=among)
        exact = alone(target.model, choosing, level, chosen, by["relp"].shape[1])
        of = f"{len(chosen)} of {'the strongest' if among else 'all'} {level}"
        chosen_by: dict[Scoring, Floats] = {
            rule: by_topic(mine[:, chosen].T.double().numpy(), choosing) for rule, mine in by.items()
        }
        rows += beside_patching(f"claim, {of}", chosen_by, by_topic(exact, choosing), draws)
    return rows


def by_topic(values_UB: Floats, some: Sequence[Twin]) -> Floats:
    """Means over the twins of each topic: (units, topics)."""
    members = [[n for n, twin in enumerate(some) if twin.plot == plot] for plot in by_plot(some)]
    return np.stack([values_UB[:, one].mean(-1) for one in members], -1)


def alone(model: Any, some: Sequence[Twin], level: str, chosen: Sequence[int], total: int) -> Floats:
    """What every single unit takes away when it is patched, for each twin: (units, twins), nats."""
    masks = torch.zeros(len(chosen), total, dtype=torch.bool)
    masks[torch.arange(len(chosen)), torch.tensor(chosen)] = True
    found = [decisions(model, twin, level, masks) for twin in some]
    return np.stack([one[-1] - one[:-1] for one in found], -1)
