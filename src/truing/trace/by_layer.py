"""Where along the layers a decision forms: what the model would decide if its last block ended where an earlier does.

The logit lens of `lens`, put on a decision: actions against alternatives, mean log-probabilities per token, over the
same tree and with the same weights as the decision itself, which is what stands after the last layer.
"""

# L layers  T nodes of the tree  K nodes that predict something  M tokens of continuations  D width

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.errors import TargetError
from truing.records import BY_LAYER, CaseGraph, Estimate, Measurement, Named
from truing.store import Store
from truing.targets.local import Functional, LocalTarget
from truing.targets.local.attention import alone
from truing.targets.local.change import Units, layers, seen
from truing.targets.local.inside import forward
from truing.trace.derive import decision_of
from truing.trace.lens import ROWS, Read, end

AGREES = 1e-3
"""How far the last layer may be from the decision, nats per token, and relative to it."""


def beside(target: LocalTarget, values: Sequence[float], case: CaseGraph, store: Store) -> Measurement:
    """The decision of a case as `by_layer` reads it after each layer, kept beside the case."""
    quantities = tuple(Named(name=f"layer {layer}", quantity=_read_off(value)) for layer, value in enumerate(values))
    record = Measurement(
        name=BY_LAYER, targets=(target.card.id,), quantities=quantities, note=said(values),
        parents=(target.card.id, case.id),
    )  # fmt: skip
    store.add(record)
    return record


@torch.no_grad()
def by_layer(target: LocalTarget, functional: Functional, *, read: Read | None = None) -> list[float]:
    """The decision after each layer, nats per token; the last is the model's own.

    `read` comes between a layer and the model's end, such as a `Jacobian`; without it this is the logit lens.
    TargetError where the end of the architecture cannot be used by itself, or is not the model's.
    """
    model, kept_K = target.model, functional.before_M.unique()
    sites = [Units("residual", layer) for layer in range(len(layers(model)))]
    with alone(model), seen(model, sites) as found:
        own = float(decision_of(functional, forward(model, functional.tree, kept_K).logits.detach())[0])
    values = []
    for layer, site in enumerate(sites):
        whole_TD = found[site].flatten(0, -2)
        x_KD = whole_TD[kept_K.to(whole_TD.device)]
        values.append(_decided(target, functional, x_KD if read is None else read(layer, x_KD)))
    if read is None and not abs(values[-1] - own) <= AGREES * max(1.0, abs(own)):
        raise TargetError(
            f"the end of a {type(model).__name__} after its last block gives a decision of {values[-1]:+.4f}, the model"
            f" one of {own:+.4f} nats per token, so no lens can be put on it"
        )
    return values


def _decided(target: LocalTarget, functional: Functional, x_KD: Tensor) -> float:
    """The decision where the last block gives this at the nodes that predict something."""
    tokens_M = functional.tree.ids_N[functional.nodes_M]
    _, row_M = functional.before_M.unique(return_inverse=True)
    log_p_M = torch.zeros(len(tokens_M), dtype=torch.double)
    for start in range(0, len(x_KD), ROWS):
        here = ((row_M >= start) & (row_M < start + ROWS)).nonzero()[:, 0]
        log_p = end(target.model, x_KD[start : start + ROWS]).log_softmax(-1).cpu()
        log_p_M[here] = log_p[row_M[here] - start, tokens_M[here]].double()
    return float((log_p_M * functional.weight_M.double()).sum())


def said(values: Sequence[float]) -> str:
    """From which layer on the reading has the sign of the decision, and from which at least half of its size."""
    last = values[-1]
    if not last:
        return "the decision is 0"
    signed = _from_on([value * last > 0 for value in values])
    half = _from_on([value / last >= 0.5 for value in values])
    return f"of the decision's sign from layer {signed} on, and at least half of it from layer {half} on"


def _from_on(holds: Sequence[bool]) -> int:
    """The first place from which on all hold; the last one does."""
    return max((place + 1 for place, one in enumerate(holds) if not one), default=0)


def _read_off(value: float) -> Estimate:
    return Estimate(
        value=value, low=value, high=value, level=1.0, n=1, clusters=1, unit="nats/token",
        estimator="logit lens, exact in this case",
    )  # fmt: skip


__all__ = ["beside", "by_layer", "said"]
