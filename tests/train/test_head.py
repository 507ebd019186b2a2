"""Log-probabilities and their gradient from hidden states, against log-softmax and autograd."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
import transformers
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from truing.train import head


def asked(rows: int, *, bias: bool) -> tuple[Tensor, nn.Linear, Tensor]:
    made = torch.Generator().manual_seed(rows)
    torch.manual_seed(0)
    layer = nn.Linear(24, 301, bias=bias).double().requires_grad_(False)
    hidden = torch.randn(rows, 24, generator=made, dtype=torch.double)
    return hidden, layer, torch.randint(301, (rows,), generator=made)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, head.ROWS, 2 * head.ROWS + 3])
def test_values_and_gradients_are_those_of_log_softmax(rows: int, bias: bool) -> None:
    hidden, layer, tokens = asked(rows, bias=bias)
    weights = torch.linspace(-1, 2, rows, dtype=torch.double)

    def by(log_probs: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = torch.autograd.grad((log_probs * weights).sum(), x)
        return log_probs.detach().double(), grad

    x, y = (hidden.clone().requires_grad_() for _ in range(2))
    ours = by(head.log_probs(x, layer, tokens), x)
    theirs = by(layer(y).log_softmax(-1).gather(-1, tokens[:, None])[:, 0], y)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_a_gradient_none_is_computed() -> None:
    hidden, layer, tokens = asked(5, bias=False)
    assert not head.log_probs(hidden, layer, tokens).requires_grad


def test_a_head_that_is_trained_is_refused() -> None:
    hidden, layer, tokens = asked(5, bias=False)
    with pytest.raises(ValueError, match="the head is trained"):
        head.log_probs(hidden, layer.requires_grad_(True), tokens)


def test_logits_are_not_held_for_the_way_back() -> None:
    hidden, layer, tokens = asked(4 * head.ROWS, bias=True)
    held = []
    with saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        head.log_probs(hidden.requires_grad_(), layer, tokens).sum().backward()
    assert max(held, default=0) <= hidden.numel()


SMALL = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more", "plain"),
    [
        ("Llama", {}, True),
        ("Llama", {"tie_word_embeddings": True}, True),
        ("Qwen2", {}, True),
        ("Phi", {"head_dim": 16}, True),  # its head has a bias
        ("Gemma2", {}, False),  # a soft cap
        ("Cohere", {}, False),  # a scale
        ("Granite", {"logits_scaling": 8.0}, False),
    ],
)
def test_a_head_is_plain_where_nothing_is_done_to_what_comes_out_of_it(
    kind: str, more: dict[str, object], plain: bool
) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL | more)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    assert head.plain_head(model) is (model.get_output_embeddings() if plain else None)
    model.get_output_embeddings().requires_grad_(True)
    assert head.plain_head(model) is None
