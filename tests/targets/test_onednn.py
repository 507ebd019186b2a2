"""Products through oneDNN: same numbers, same gradients, and only where they may be used."""

from __future__ import annotations

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


def test_long_sums_are_left_to_the_blas() -> None:
    layer = nn.Sequential(nn.Linear(onednn.LONGEST + 1, 100), nn.Linear(onednn.LONGEST, 100)).requires_grad_(False)
    onednn.speed_up(layer)
    assert [type(part) for part in layer] == [nn.Linear, onednn.Linear]
