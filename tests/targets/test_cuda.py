"""All that a target does, on an accelerator where there is one, against plain passes of the same weights on the cpu."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.records import Decision, Message
from truing.targets.local import LocalTarget
from truing.targets.local.adapter import MODULES, Adapter, peft_quiet
from truing.targets.local.change import Units, patch
from truing.targets.local.generate import write
from truing.targets.local.sample import Sampling
from truing.targets.local.write import Ask


def some_paths() -> list[tuple[list[int], list[int]]]:
    """Several of them share a beginning."""
    rng = random.Random(3)
    start = rng.choices(range(4, 1536), k=30)
    paths = [([*start, *rng.choices(range(4, 1536), k=k)], rng.choices(range(4, 1536), k=6)) for k in (1, 5, 9)]
    return [*paths, (start[:12], [7, 8, 9]), ([5], [6, 7])]


def plain(model: Any, prompt: list[int], continuation: list[int]) -> torch.Tensor:
    """Log-probability of each token of the continuation by one ordinary pass on the cpu."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *continuation]])).logits[0]
    log_p = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1]
    return log_p.gather(1, torch.tensor(continuation)[:, None])[:, 0]


def scores_are_plain(target: LocalTarget, model: Any) -> None:
    found, _ = target.log_probs(some_paths())
    for values, (prompt, continuation) in zip(found, some_paths(), strict=True):
        torch.testing.assert_close(values.cpu().double(), plain(model, prompt, continuation), atol=1e-4, rtol=0)


def test_scores_through_a_tree(there: LocalTarget, wild: Any) -> None:
    scores_are_plain(there, wild.model)


def test_greedy_replies(there: LocalTarget) -> None:
    prompts = [prompt for prompt, _ in some_paths()]
    written = write(there.batch(rows=3, block=16), [Ask(tuple(prompt), 12) for prompt in prompts])
    for prompt, found in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt], device=there.model.device)
        out = there.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=-1,
            pad_token_id=0, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        assert min(float(-score[0].topk(2).values.diff()) for score in out.scores) > 1e-4  # no tie
        assert list(found.ids) == out.sequences[0, len(prompt) :].tolist()


def test_a_change_at_positions(there: LocalTarget, wild: Any) -> None:
    values = torch.randn(2, 48, generator=torch.Generator().manual_seed(3))
    by_hand = deepcopy(wild.model)

    def replace(_: Any, __: Any, out: Any) -> Any:
        stream = (out[0] if isinstance(out, tuple) else out).clone()
        for place, row in zip((2, 9), values, strict=True):
            if place < stream.shape[1]:
                stream[:, place] = row
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    by_hand.model.layers[0].register_forward_hook(replace)
    scores_are_plain(there.under([patch(Units("residual", 0, positions=(2, 9)), values)]), by_hand)


def test_gradients_and_activations(there: LocalTarget, wild: Any) -> None:
    decision = Decision(actions=("yes it is",), alternatives=("no", "not at all"))
    sites = [Units("residual", 0), Units("head", 1, which=(1, 3)), Units("neuron", 0, which=(4,))]
    functional = there.functional(decision, (Message(role="user", content="Is it?"),))
    value, found = there.gradients(functional, sites)
    expected, gradients = wild.gradients(functional, sites)
    assert value == pytest.approx(expected, abs=1e-4)
    inside, known = (target.activations(some_paths()[0][0], sites) for target in (there, wild))
    for site in sites:
        assert found[site].abs().sum() > 0
        torch.testing.assert_close(found[site].cpu(), gradients[site], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(inside[site].cpu(), known[site], atol=1e-4, rtol=1e-4)


def test_sampled_replies_are_those_of_the_cpu(there: LocalTarget, wild: Any) -> None:
    asks = [
        Ask(tuple(prompt), 12, sampling=Sampling(temperature=0.8, top_p=0.9, seed=seed))
        for prompt, _ in some_paths()
        for seed in range(3)
    ]
    found, expected = (write(target.batch(), asks) for target in (there, wild))
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert len({one.ids for one in found}) == len(asks)


def test_an_adapter(there: LocalTarget, wild: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=16, target_modules=list(MODULES), init_lora_weights=False)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    with peft_quiet():
        peft = get_peft_model(deepcopy(wild.model), config).eval()
        peft.save_pretrained(tmp_path)
    torch.set_rng_state(state)
    adapted = there.with_adapter(Adapter.read(tmp_path))
    assert adapted.model.device == there.model.device
    scores_are_plain(adapted, peft)
    with pytest.raises(AssertionError):
        scores_are_plain(there, peft)  # it is not the base


def test_memory_that_runs_out_halves_the_block(there: LocalTarget, wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, said = there.model.model.layers[1], []
    forward = type(layer).forward

    def narrow(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # As an accelerator says it; the first layer has taken the block into its cache by now.
        if self is layer and hidden.shape[1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", narrow)
    monkeypatch.setattr(there, "say", said.append)
    scores_are_plain(there, wild.model)
    assert said[0].startswith("out of memory: going on with blocks of")
