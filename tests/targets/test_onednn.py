"""Products through oneDNN: same numbers, same gradients, and only where they may be used."""

from __future__ import annotations

import gc
from copy import deepcopy

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from truing.targets.local import onednn

WIDE = (300, 400)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def frozen(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    assert WIDE[0] <= onednn.LONGEST
    return nn.Sequential(nn.Linear(*WIDE, bias=bias), nn.SiLU(), nn.Linear(WIDE[1], 5)).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, WIDE[0]), (2, 7, WIDE[0]), (1, 1, WIDE[0]), (0, WIDE[0])])
def test_values_and_input_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    plain = frozen(bias=bias)
    fast = deepcopy(plain)
    onednn.speed_up(fast)
    assert [type(layer) for layer in fast] == [onednn.Linear, nn.SiLU, nn.Linear]  # the last layer is too small

    def seen(model: nn.Module) -> tuple[Tensor, Tensor]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = model(x)
        y.square().sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad

    for ours, theirs in zip(seen(fast), seen(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast(torch.ones(shape)), plain(torch.ones(shape)), atol=1e-5, rtol=1e-5)


def test_trainable_weights_and_other_types_go_the_ordinary_way() -> None:
    layer = frozen(bias=True)[:1]
    onednn.speed_up(layer)
    layer.requires_grad_(True)
    layer(torch.ones(2, WIDE[0])).sum().backward()
    assert layer[0].weight.grad is not None
    assert layer.double()(torch.ones(2, WIDE[0], dtype=torch.float64)).dtype is torch.float64


LONG = (2 * onednn.LONGEST - 3, 100)


def test_what_is_too_long_for_one_sum_is_summed_up_in_halves_and_what_is_longer_is_left_to_the_blas() -> None:
    layer = nn.Sequential(nn.Linear(2 * onednn.LONGEST + 1, 100), nn.Linear(*LONG), nn.Linear(onednn.LONGEST, 100))
    layer.requires_grad_(False)
    plain = deepcopy(layer)
    onednn.speed_up(layer)
    assert [type(part) for part in layer] == [nn.Linear, onednn.Linear, onednn.Linear]
    x = torch.randn(2, 7, LONG[0], generator=torch.Generator().manual_seed(1), requires_grad=True)
    exact = x.double() @ plain[1].weight.double().T + plain[1].bias.double()
    torch.testing.assert_close(layer[1](x).double(), exact, atol=3e-6, rtol=0)
    (ours,) = torch.autograd.grad(layer[1](x).square().sum(), x)
    (theirs,) = torch.autograd.grad(plain[1](x).square().sum(), x)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [WIDE, LONG])
def test_copies_follow_their_weights(shape: tuple[int, int], packed: bool) -> None:
    layer = nn.Sequential(nn.Linear(*shape)).requires_grad_(False)
    onednn.speed_up(layer, room=10**9 * packed)
    x = torch.ones(1, shape[0])
    before = layer(x)
    other = deepcopy(layer)
    torch.testing.assert_close(other(x), before)
    for edited in (slice(None), 3, (slice(None), -1)):  # through `.data`, as adapters are merged: no version counts it
        other[0].weight.data[edited] += 1
        torch.testing.assert_close(other(x), nn.functional.linear(x, other[0].weight, other[0].bias), atol=1e-2, rtol=0)
    other[0].weight.data = layer[0].weight.data.clone()
    torch.testing.assert_close(other(x), before)
    layer[0].weight.add_(1)
    torch.testing.assert_close(layer(x), before + shape[0], atol=1e-2, rtol=0)
    if packed or shape == LONG:
        held = len(onednn._copies)
        assert held >= 2
        del layer, other
        gc.collect()
        assert len(onednn._copies) <= held - 2


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6), (12, 18), (18, 12), (1, 9), (9, 1), (576, 1536)])
def test_what_is_looked_at_again_is_of_every_row_and_every_column(shape: tuple[int, int]) -> None:
    place = onednn._throughout(torch.arange(shape[0] * shape[1]).view(shape))
    assert {int(x) // shape[1] for x in place} == set(range(shape[0]))
    assert {int(x) % shape[1] for x in place} == set(range(shape[1]))


@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_packed_weights_give_the_same_and_are_made_where_all_of_them_fit(rows: int) -> None:
    plain = nn.Sequential(nn.Linear(*WIDE), nn.Linear(WIDE[1], 1200), nn.Linear(1200, 100)).requires_grad_(False)
    packed, tight = deepcopy(plain), deepcopy(plain)
    weights = 4 * sum(layer.weight.numel() for layer in plain)
    onednn.speed_up(packed, room=weights)
    onednn.speed_up(tight, room=weights - 1)
    assert [layer.packed for layer in packed] == [True] * 3
    assert [layer.packed for layer in tight] == [False] * 3
    x = torch.randn(rows, WIDE[0], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed(x), tight(x), atol=1e-5, rtol=1e-5)
