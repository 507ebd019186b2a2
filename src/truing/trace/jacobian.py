"""The Jacobian lens: an earlier layer read through the mean derivative of the end of the residual stream.

J_l = mean over positions t of d(sum over t' >= t of h_final,t') / d h_l,t, over some ordinary text; what is read is
J_l h_l in place of h_l (Gurnee et al. 2026). Nothing is trained.
"""

# B texts  T tokens of each  L layers  D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truing.errors import DesignError, TargetError
from truing.records import Measurement, Named
from truing.stats import cluster_mean
from truing.targets.local import LocalTarget
from truing.targets.local.attention import alone
from truing.targets.local.change import Units, layers, seen
from truing.trace.lens import ROWS, Read, end, residuals

LENGTH, WINDOWS = 32, 16
"""Tokens of a piece of text, and how many pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class Jacobian:
    """Mean derivatives of the end of the residual stream by what each block gives. A `Read` for `lens`."""

    map_LDD: Tensor
    """Row i: the gradient of dimension i. As large as the width squared for every layer."""
    positions: int
    """How many they are means over."""

    def __call__(self, layer: int, x_ND: Tensor) -> Tensor:
        """What the end is expected to be."""
        return x_ND @ self.map_LDD[layer].T.to(x_ND)


def fit_jacobian(
    target: LocalTarget, texts: Sequence[str], *, length: int = LENGTH, windows: int = WINDOWS, later: bool = True
) -> Jacobian:
    """The mean derivatives over the first `windows` pieces, of `length` tokens each, of the texts.

    One pass, and as many passes back as the residual stream is wide. Without `later`, what a position does to later
    ones is left out (its expectation: each position is weighed by a random sign). The first position, which all others
    look at, is not counted. DesignError where the texts are too short.
    """
    pieces = _pieces(target, texts, length)[:windows]
    if not pieces:
        raise DesignError(f"no text of {length} tokens among {len(texts)} texts; give longer ones, or a smaller length")
    model = target.model
    sites = [Units("residual", layer) for layer in range(len(layers(model)))]
    with torch.enable_grad(), alone(model), seen(model, sites) as found:
        # Weights are frozen: the graph begins at the embeddings.
        start = model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
        try:
            model(input_ids=torch.tensor(pieces, device=model.device), use_cache=False)
        finally:
            start.remove()
        return Jacobian(_maps(model, [found[site] for site in sites], later), len(pieces) * (length - 1))


def _maps(model: Any, streams: list[Tensor], later: bool) -> Tensor:
    last, earlier = streams[-1], streams[:-1]
    if last.dim() != 3:
        raise TargetError(f"the blocks of a {type(model).__name__} hand on no stream (rows, tokens, width)")
    width = last.shape[-1]
    signs_BT1 = torch.ones(*last.shape[:2], 1)
    if not later:
        signs_BT1 = torch.randint(0, 2, signs_BT1.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    signs_BT1 = signs_BT1.to(last)
    maps = torch.zeros(len(streams), width, width, device=last.device)
    maps[-1] = torch.eye(width)
    for i in range(width):
        goal = (last[..., i : i + 1] * signs_BT1).sum()
        grads = torch.autograd.grad(goal, earlier, retain_graph=i < width - 1)
        for layer, grad in enumerate(grads):
            maps[layer, i] = (grad * signs_BT1)[:, 1:].float().mean((0, 1))
    return maps.cpu()


def compare_lenses(target: LocalTarget, texts: Sequence[str], read: Read, *, which: Sequence[int] = ()) -> Measurement:
    """How well the logit lens, and a lens by `read`, predict the model's own next token, by layer, on texts that the
    latter was not made from: the share of positions at which both have the same likeliest token, paired by text.
    """
    which = tuple(which) or tuple(range(len(layers(target.model)) - 1))
    plain: dict[int, list[float]] = {layer: [] for layer in which}
    other: dict[int, list[float]] = {layer: [] for layer in which}
    for text in texts:
        ids = _begun(target, text)
        stream = residuals(target, ids, range(len(ids)), (*which, len(layers(target.model)) - 1))
        own = _likeliest(target, stream[len(layers(target.model)) - 1])
        for layer in which:
            plain[layer].append(float((_likeliest(target, stream[layer]) == own).float().mean()))
            other[layer].append(float((_likeliest(target, read(layer, stream[layer])) == own).float().mean()))
    names = [f"text {number:03d}" for number in range(len(texts))]
    rows = [
        Named(name=f"layer {layer}: {what}", quantity=cluster_mean(values, names, unit="share of positions"))
        for layer in which
        for what, values in (
            ("logit lens", plain[layer]), ("other lens", other[layer]),
            ("other - logit lens", [b - a for a, b in zip(plain[layer], other[layer], strict=True)]),
        )
    ]  # fmt: skip
    return Measurement(
        name="lens", targets=(target.card.id,), parents=(target.card.id,), quantities=tuple(rows),
        note="the same likeliest next token as the model's own; intervals over texts",
    )  # fmt: skip


def _likeliest(target: LocalTarget, x_ND: Tensor) -> Tensor:
    return torch.cat([end(target.model, part).argmax(-1) for part in x_ND.split(ROWS)])


def _pieces(target: LocalTarget, texts: Sequence[str], length: int) -> list[list[int]]:
    """Texts cut into pieces of equal length; what is left over is left out."""
    found = []
    for text in texts:
        ids = _begun(target, text)
        found += [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    return found


def _begun(target: LocalTarget, text: str) -> list[int]:
    """Tokens of a text after a begin token, where there is one."""
    start = target.tokenizer.bos_token_id
    return [*([] if start is None else [start]), *target.text_ids(text)]


__all__ = ["Jacobian", "compare_lenses", "fit_jacobian"]
