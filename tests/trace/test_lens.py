"""Lenses: the last layer is the model, in every architecture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.errors import DesignError, TargetError
from truing.records import Decision, Message
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units, add
from truing.targets.local.probe import probe
from truing.trace.lens import decision_lens, end, lens


def _architectures() -> Any:
    path = Path(__file__).resolve().parents[1] / "targets" / "test_architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KNOWN = _architectures()
SETTINGS: dict[str, dict[str, Any]] = KNOWN.ARCHITECTURES | KNOWN.APART
SETTINGS |= {
    "gemma2": SETTINGS["gemma2"] | {"final_logit_softcapping": 5.0},
    "granite": SETTINGS["granite"] | {"logits_scaling": 3.0},
    "cohere": SETTINGS["cohere"] | {"logit_scale": 0.3},
}


def random_target(tiny: LocalTarget, kind: str) -> LocalTarget:
    model = KNOWN.random_model(kind, SETTINGS[kind])
    probe(model)
    return LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="")


@pytest.mark.parametrize("kind", SETTINGS)
@torch.no_grad()
def test_the_last_layer_is_the_model(tiny: LocalTarget, kind: str) -> None:
    target = random_target(tiny, kind)
    ids = KNOWN.prompts()[2] + [5, 9, 11]
    found = lens(target, ids, tokens=(5, 9, 250))
    own = target.model(torch.tensor([ids]), use_cache=False).logits[0].float()
    log_p = own.log_softmax(-1)
    torch.testing.assert_close(found.log_p_LPK[-1], log_p[:, [5, 9, 250]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.chance_LPN[-1], log_p.topk(5).values.exp(), atol=1e-4, rtol=1e-4)
    middle = found.log_p_LPK[0] - found.log_p_LPK[-1]
    assert float(middle.abs().max()) > 1e-3  # an earlier layer is not


@torch.no_grad()
def test_every_layer_is_norm_and_head_written_out(tiny: LocalTarget) -> None:
    ids = tiny.encoded("The moon is round, and the sun is warm.")
    found = lens(tiny, ids, tokens=(7, 400), positions=(0, -1, 3), layers=(1, 0), top=4)
    assert (found.layers, found.positions) == ((1, 0), (0, len(ids) - 1, 3))
    sites = [Units("residual", layer) for layer in (1, 0)]
    stream = tiny.activations(ids, sites)
    for at, site in enumerate(sites):
        for p, position in enumerate(found.positions):
            x = stream[site][position]
            x = x * torch.rsqrt(x.pow(2).mean() + tiny.model.config.rms_norm_eps) * tiny.model.model.norm.weight
            log_p = (tiny.model.lm_head.weight @ x).log_softmax(-1)
            order = log_p.argsort(descending=True)
            assert found.top_LPN[at, p].tolist() == order[:4].tolist()
            for k, token in enumerate((7, 400)):
                assert int(found.rank_LPK[at, p, k]) == order.tolist().index(token)
                assert float(found.log_p_LPK[at, p, k]) == pytest.approx(float(log_p[token]), abs=1e-4)
    reading = found.readings(tiny)[2]
    assert (reading.layer, reading.position) == (1, 3)
    assert reading.top[0][0] == tiny.tokenizer.decode([int(found.top_LPN[0, 2, 0])])
    assert reading.given[1][0] == int(found.rank_LPK[0, 2, 1])


def test_many_rows_are_each_alone(tiny: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny.encoded("One two three four five six seven eight nine ten.")
    whole = lens(tiny, ids, tokens=(3,))
    monkeypatch.setattr("truing.trace.lens.ROWS", 2)
    parts = lens(tiny, ids, tokens=(3,))
    torch.testing.assert_close(whole.log_p_LPK, parts.log_p_LPK)
    assert torch.equal(whole.top_LPN, parts.top_LPN)


def test_a_lens_sees_changes(tiny: LocalTarget) -> None:
    ids = tiny.encoded("The moon is round.")
    token = 300
    push = 50 * tiny.model.lm_head.weight[token]
    for layer in (0, 2):
        steered = tiny.under([add(Units("residual", layer), push)])
        ranks = lens(steered, ids, tokens=(token,)).rank_LPK[:, -1, 0].tolist()
        assert ranks[layer] == 0
        assert ranks[:layer] == lens(tiny, ids, tokens=(token,)).rank_LPK[:layer, -1, 0].tolist()


def test_a_decision_is_followed_where_its_replies_part(tiny: LocalTarget) -> None:
    ask = [Message(role="user", content="Is it the moon or the sun?")]
    decision = Decision(actions=(" It is the moon.", " It is the moon light."), alternatives=(" It is the sun.",))
    found, actions = decision_lens(tiny, decision, ask)
    assert actions == 1
    assert [tiny.tokenizer.decode([token]) for token in found.tokens] == [" mo", " sun"]
    before = [*tiny.prompt_ids(ask), *tiny.encoded(" It is the")]
    (moon, sun), _ = tiny.log_probs([(before, [token]) for token in found.tokens])
    torch.testing.assert_close(found.log_p_LPK[-1, 0], torch.cat([moon, sun]), atol=1e-4, rtol=1e-4)
    assert found.positions == (len(before) - 1,)
    for action, other in ((" moon", " moon!"), (" moon", " moon")):
        with pytest.raises(DesignError, match="go on alike"):
            decision_lens(tiny, Decision(actions=(action,), alternatives=(other,)), ask)


def test_what_no_lens_can_be_put_on_is_refused_by_name(tiny: LocalTarget) -> None:
    with pytest.raises(TargetError, match="positions 0 to 2; asked for"):
        lens(tiny, [5, 6, 7], positions=(3,))
    with pytest.raises(TargetError, match="LlamaForCausalLM cannot be used by themselves"):
        end(tiny.model, torch.zeros(2, 63))
    other = random_target(tiny, "llama")
    tokens = [0]
    first = other.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: tokens.__setitem__(0, args[0].shape[1])
    )
    # A head that minds how long the text is.
    last = other.model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] + 0.1 * tokens[0],))
    with pytest.raises(TargetError, match="LlamaForCausalLM after its last block does not give"):
        lens(other, [5, 6, 7])
    first.remove()
    last.remove()
    assert lens(other, [5, 6, 7]).layers == (0, 1, 2)
