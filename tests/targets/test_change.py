"""Interventions in every architecture, against the same done by hand; activations and gradients."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from truing.errors import TargetError
from truing.records import Decision, Message
from truing.targets.local import LocalTarget, change
from truing.targets.local.change import Units, ablate, add, patch
from truing.targets.local.generate import Batch, write
from truing.targets.local.write import Ask

from .test_architectures import ARCHITECTURES, random_model

EXPERTS = {"mixtral", "qwen3_moe", "gpt_oss"}
SQUARE = {"gpt2", "gpt_neox", "opt", "stablelm"}
"""Whose heads together are always as wide as the stream."""
PROJECTIONS = {
    "phi": ("self_attn.dense", "mlp.fc2"), "gpt2": ("attn.c_proj", "mlp.c_proj"), "opt": ("self_attn.out_proj", "fc2"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"), "starcoder2": ("self_attn.o_proj", "mlp.c_proj"),
}  # fmt: skip
"""Behind heads and behind neurons, where they are called otherwise than in a Llama."""
IDS = [5, 9, 20, 33, 7, 11, 250]


def target(kind: str, tiny: Any) -> LocalTarget:
    return LocalTarget(f"local/{kind}", random_model(kind, ARCHITECTURES[kind]), tiny.tokenizer, weights="7" * 64)


def logits(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_steering_and_patching_reach_every_architecture(kind: str, tiny: Any) -> None:
    subject = target(kind, tiny)
    model, before = subject.model, logits(subject.model)
    hidden = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    stream = Units("residual", 0)
    torch.testing.assert_close(subject.activations(IDS, [stream])[stream], hidden[1][0], atol=1e-4, rtol=1e-4)

    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    steered = subject.under([add(stream, vector, 0.5)])
    shifted = steered.activations(IDS, [stream])[stream]
    torch.testing.assert_close(shifted, hidden[1][0] + 0.5 * vector, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(steered.model), before, atol=1e-3)
    assert torch.equal(logits(model), before)  # the model itself is as it was
    assert {id(p) for p in steered.model.parameters()} == {id(p) for p in model.parameters()}
    # Taking the vector away again gives the model back.
    torch.testing.assert_close(logits(steered.under([add(stream, vector, -0.5)]).model), before, atol=1e-4, rtol=1e-4)

    other = [5, 9, 20, 100, 7, 11, 250]  # another token at position 3
    last = len(change.layers(model)) - 1
    at = Units("residual", last, positions=(6,))
    moved = subject.under([patch(at, subject.activations(other, [at])[at])])
    torch.testing.assert_close(logits(moved.model)[-1], logits(model, other)[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(moved.model)[:-1], before[:-1], atol=1e-4, rtol=1e-4)

    for site in (Units("head", 1), Units("neuron", 1)):
        if site.kind == "neuron" and kind in EXPERTS:
            with pytest.raises(TargetError, match=r"no neurons to be found in layer 1 .* mixture of experts"):
                subject.under([ablate(site)])
            continue
        one = Units(site.kind, 1, which=(2,))
        whole, part = (subject.activations(IDS, [x])[x] for x in (site, one))
        width = part.shape[-1]
        assert torch.equal(whole[:, 2 * width : 3 * width], part)
        without = subject.under([ablate(one)]).activations(IDS, [site])[site]
        assert not without[:, 2 * width : 3 * width].any()
        assert torch.equal(without[:, : 2 * width], whole[:, : 2 * width])


@pytest.mark.parametrize("place", [0, 1], ids=["head", "neuron"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_unit_that_is_ablated_is_one_whose_weights_are_nought(kind: str, place: int, tiny: Any) -> None:
    if place and kind in EXPERTS:
        pytest.skip("experts have no neurons of a layer")
    settings = ARCHITECTURES[kind] | ({} if kind in SQUARE else {"head_dim": 20})  # 4 heads, 80 wide in a stream of 64
    model = random_model(kind, settings)
    subject, before = LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="7" * 64), logits(model)
    projection = change.layers(model)[1].get_submodule(
        PROJECTIONS.get(kind, ("self_attn.o_proj", "mlp.down_proj"))[place]
    )
    weight = projection.weight if isinstance(projection, torch.nn.Linear) else projection.weight.T  # Conv1D
    width = 1 if place else settings.get("head_dim", 16)
    assert weight.shape[1] == width * (weight.shape[1] // width)
    assert place or weight.shape[1] == 4 * width
    # Of neurons many: a rectifier leaves half of them at nought.
    for which in (tuple(range(1, 40, 3)), tuple(range(40, 60)), None) if place else ((2,), (0, 3), None):
        at = Units("neuron" if place else "head", 1, which=which)
        found = logits(subject.under([ablate(at)]).model)
        kept = weight.clone()
        for unit in range(weight.shape[1] // width) if which is None else which:
            weight[:, unit * width : (unit + 1) * width] = 0
        expected = logits(model)
        weight.copy_(kept)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (expected - before).abs().max() > 1e-3 * before.std()
    assert torch.equal(logits(model), before)


def test_changes_go_together_in_their_order(wild: Any) -> None:
    at = Units("residual", 0, which=(3, 5))
    steered = wild.under([ablate(at), add(at, torch.tensor([1.0, -2.0]))])
    assert steered.activations(IDS, [at])[at].tolist() == [[1.0, -2.0]] * len(IDS)
    other = wild.under([add(at, torch.tensor([1.0, -2.0])), ablate(at)])
    assert not other.activations(IDS, [at])[at].any()
    assert steered.card.id != other.card.id != wild.card.id
    assert steered.card == wild.under([ablate(at), add(at, torch.tensor([1.0, -2.0]))]).card


def test_a_change_at_positions_is_the_same_in_a_tree_in_rows_and_in_a_plain_pass(wild: Any) -> None:
    at = Units("residual", 0, positions=(2, 9))
    values = torch.randn(2, 48, generator=torch.Generator().manual_seed(3))
    steered = wild.under([patch(at, values)])
    prompts = [[5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [5, 6]]
    for prompt, written in zip(prompts, write(Batch(steered.model), [Ask(tuple(p), 9) for p in prompts]), strict=True):
        ids = list(prompt)
        for _ in range(9):
            ids.append(int(logits(steered.model, ids)[-1].argmax()))
        assert list(written.ids) == ids[len(prompt) :]
        found, _ = steered.log_probs([(prompt, written.ids)])
        log_p = torch.log_softmax(logits(steered.model, ids), -1)[len(prompt) - 1 : -1]
        torch.testing.assert_close(
            found[0], log_p.gather(1, torch.tensor(written.ids)[:, None])[:, 0], atol=1e-5, rtol=0
        )
    assert [w.ids for w in write(Batch(wild.model), [Ask(tuple(prompts[1]), 9)])] != [written.ids]


def test_gradients_are_those_of_finite_differences(wild: Any) -> None:
    functional = wild.functional(
        Decision(actions=("yes it is",), alternatives=("no", "not at all")), (Message(role="user", content="Is it?"),)
    )
    sites = [Units("residual", 0), Units("head", 1, which=(1, 3)), Units("neuron", 0, which=(4,))]
    value, gradients = wild.gradients(functional, sites)
    tokens = functional.tree.ids_N.tolist()
    node, step = functional.prompt - 1, 1e-2

    def moved(site: Units, column: int, by: float) -> float:
        vector = torch.zeros(gradients[site].shape[-1])
        vector[column] = by
        at = Units(site.kind, site.layer, site.which, positions=(node,))
        return float(wild.under([add(at, vector)]).gradients(functional, [])[0])

    assert moved(sites[0], 0, 0.0) == pytest.approx(value, abs=1e-6)
    for site in sites:
        assert gradients[site].shape[0] == len(tokens)
        for column in (0, gradients[site].shape[-1] - 1):
            slope = (moved(site, column, step) - moved(site, column, -step)) / (2 * step)
            assert float(gradients[site][node, column]) == pytest.approx(slope, abs=2e-3, rel=2e-2)
    assert gradients[sites[0]].abs().sum() > 0


def test_a_file_of_changes_says_all_that_they_do(wild: Any, tmp_path: Path) -> None:
    changes = (
        add(Units("residual", 1), torch.randn(48), 2.0),
        ablate(Units("neuron", 0, which=(1, 2), positions=(0, 3))),
        patch(Units("head", 1, which=(0,), positions=(2,)), torch.randn(1, 12)),
    )
    change.write(tmp_path / "steer.safetensors", changes)
    again = change.read(tmp_path / "steer.safetensors")
    assert [one.id for one in again] == [one.id for one in changes]
    assert torch.equal(logits(wild.under(again).model), logits(wild.under(changes).model))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"truing": "["}, {"truing": "[{}]"}, {"truing": json.dumps([{"kind": "x"}])}, {"truing": "7"}],
)
def test_another_file_is_refused(tmp_path: Path, metadata: Any) -> None:
    save_file({"0": torch.zeros(2)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(TargetError, match=r"cannot read changes from .*other\.safetensors"):
        change.read(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(TargetError, match=r"cannot read changes from .*text\.safetensors"):
        change.read(tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ablate(Units("head", 9)), r"no layer 9 in a model of 2 layers \(0 to 1\)"),
        (lambda: ablate(Units("head", 0, which=(4,))), r"no head 4 in layer 0: there are 4 \(0 to 3\)"),
        (lambda: ablate(Units("thing", 0)), "unknown kind of unit 'thing'; known: residual, head, neuron"),
        (lambda: add(Units("residual", 0), torch.ones(7)), "7 values for the 48 units of .*: give one for each"),
        (lambda: patch(Units("residual", 0, positions=(1, 2)), torch.ones(3, 48)), r"shape \(3, 48\) do not fit"),
        (lambda: add(Units("residual", 0), torch.full((48,), torch.nan)), "are not all finite"),
    ],
)
def test_what_fits_nowhere_is_refused(wild: Any, make: Any, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        logits(wild.under([make()]).model)


def test_copies_of_a_changed_model_mind_their_own_positions(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks are copied with a model; what they share must not be what another thread's pass is about."""
    paths, far = [(IDS[:6], IDS[6:8])], [(IDS[:3], IDS[3:4])]
    steered = wild.under([patch(Units("residual", 0, positions=(4,)), torch.randn(1, 48))])
    again = steered.under([add(Units("residual", 1), torch.zeros(1))])
    expected = steered.log_probs(paths)[0][0]
    assert not torch.allclose(expected, wild.log_probs(paths)[0][0], atol=1e-3)
    layer, forward = steered.model.model.layers[0], type(steered.model.model.layers[0]).forward

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer:  # a pass of the other begins and ends within this one
            thread = threading.Thread(target=again.log_probs, args=(far,))
            thread.start()
            thread.join()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", slow)
    assert torch.equal(steered.log_probs(paths)[0][0], expected)


def test_a_position_is_named_once(wild: Any) -> None:
    with pytest.raises(TargetError, match="names a position twice"):
        patch(Units("residual", 0, positions=(2, 2)), torch.zeros(2, 48))
