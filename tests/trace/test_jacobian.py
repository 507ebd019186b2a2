"""The Jacobian lens against derivatives written out."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from truing.errors import DesignError
from truing.measure import passages
from truing.records import Estimate
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units, add
from truing.trace.jacobian import Jacobian, compare_lenses, fit_jacobian
from truing.trace.lens import lens

TEXTS = passages()[:3]


def by_hand(target: LocalTarget, ids: list[int], layer: int) -> Tensor:
    """d h_final[t', i] / d h_layer[t, j], shape (T, D, T, D), by adding to what the block gives."""
    model = target.model

    def end_of(more: Tensor) -> Tensor:
        found: list[Tensor] = []
        first = model.model.layers[layer].register_forward_hook(lambda _, __, out: out + more)
        last = model.model.layers[-1].register_forward_hook(lambda _, __, out: found.append(out))
        model(torch.tensor([ids]), use_cache=False)
        first.remove()
        last.remove()
        return found[0][0]

    found: Tensor = torch.autograd.functional.jacobian(end_of, torch.zeros(len(ids), model.config.hidden_size))
    return found


def test_it_is_the_mean_of_what_every_position_does_to_the_end(tiny: LocalTarget) -> None:
    found = fit_jacobian(tiny, TEXTS[:1], length=6, windows=2)
    ids = [tiny.tokenizer.bos_token_id, *tiny.encoded(TEXTS[0])]
    for layer in (0, 1):
        parts = [by_hand(tiny, piece, layer).sum(0)[:, 1:] for piece in (ids[:6], ids[6:12])]
        expected = torch.cat(parts, dim=1).mean(1)
        torch.testing.assert_close(found.map_LDD[layer], expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)
    assert torch.equal(found.map_LDD[-1], torch.eye(64))
    assert found.positions == 10


def test_without_later_positions_it_is_what_a_position_does_to_itself(tiny: LocalTarget) -> None:
    model = deepcopy(tiny.model)
    for block in model.model.layers:
        block.self_attn.o_proj.weight.zero_()  # no position does anything to another
    target = LocalTarget("local/apart", model, tiny.tokenizer, weights="apart")
    both = [fit_jacobian(target, TEXTS[:1], length=6, windows=1, later=later).map_LDD for later in (True, False)]
    torch.testing.assert_close(*both)
    with_others = [fit_jacobian(tiny, TEXTS[:1], length=6, windows=1, later=later).map_LDD for later in (True, False)]
    assert float((with_others[0] - with_others[1]).abs().max()) > 1e-2


def test_a_lens_reads_through_it(tiny: LocalTarget) -> None:
    """Row by row: the map, then the norm and the head of the model."""
    maps = torch.stack(
        [2 * torch.eye(64), torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), torch.eye(64)]
    )
    read = Jacobian(maps, 1)
    ids = tiny.encoded("The moon is round.")
    plain, through = lens(tiny, ids, tokens=(9,)), lens(tiny, ids, tokens=(9,), read=read)
    torch.testing.assert_close(through.log_p_LPK[0], plain.log_p_LPK[0], atol=1e-3, rtol=1e-3)  # norms undo a scale
    torch.testing.assert_close(through.log_p_LPK[2], plain.log_p_LPK[2])
    x = tiny.activations(ids, [Units("residual", 1)])[Units("residual", 1)][-1]
    x = maps[1] @ x
    x = x * torch.rsqrt(x.pow(2).mean() + tiny.model.config.rms_norm_eps) * tiny.model.model.norm.weight
    expected = (tiny.model.lm_head.weight @ x).log_softmax(-1)[9]
    assert float(through.log_p_LPK[1, -1, 0]) == pytest.approx(float(expected), abs=1e-4)


def test_lenses_are_compared_on_texts(tiny: LocalTarget) -> None:
    texts = passages()[:6]
    # A layer that another one undoes: the logit lens misreads it, and a lens that knows of it does not.
    turned = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))[0]
    push = 40 * turned[0]
    target = tiny.under([add(Units("residual", 0), push), add(Units("residual", 2), -push)])

    def read(layer: int, x: Tensor) -> Tensor:
        return x - push if layer < 2 else x

    record = compare_lenses(target, texts, read, which=(1,))
    found: dict[str, Any] = {named.name: named.quantity for named in record.quantities}
    assert list(found) == ["layer 1: logit lens", "layer 1: other lens", "layer 1: other - logit lens"]
    assert all(isinstance(quantity, Estimate) and quantity.clusters == 6 for quantity in found.values())
    gap = found["layer 1: other lens"].value - found["layer 1: logit lens"].value
    assert found["layer 1: other - logit lens"].value == pytest.approx(gap)
    assert gap > 0.05
    same = compare_lenses(tiny, texts, lambda _, x: x, which=(0, 1))
    assert [q.quantity.value for q in same.quantities if "other - " in q.name] == [0, 0]  # type: ignore[union-attr]


def test_texts_that_are_too_short_are_a_design_error(tiny: LocalTarget) -> None:
    with pytest.raises(DesignError, match="no text of 32 tokens among 1 texts"):
        fit_jacobian(tiny, ["Short."])
