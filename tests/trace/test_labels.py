"""Labels of neurons: brute force beside the stream, and neurons whose meaning is written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from truing.errors import DesignError, TargetError
from truing.measure import passages
from truing.records import Deed, Episodes, Estimate, Played, Replies, Said, Turn, Unmeasured
from truing.store import open_store
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units, add
from truing.trace import contexts, labels
from truing.trace.contexts import Strongest, activations, pieces, stored_texts
from truing.trace.labels import label, label_measurement, written

DETECTOR, PAIR = (0, 5), (2, 9)
TEXTS = passages()


def token_of(target: LocalTarget, text: str) -> int:
    (token,) = target.encoded(text)
    return token


@pytest.fixture(scope="module")
def planted(tiny: LocalTarget) -> LocalTarget:
    """`local/tiny` with a neuron that answers to one token and writes another."""
    model = deepcopy(tiny.model)
    read, write = (model.model.embed_tokens.weight[token_of(tiny, word)] for word in (" the", " and"))
    # What the MLP of the first layer is given is the embedding but for what attention adds; others point elsewhere.
    with torch.no_grad():
        block, index = model.model.layers[DETECTOR[0]], DETECTOR[1]
        block.self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight[token_of(tiny, " the")] *= 3  # so that no other token is as near
        block.mlp.gate_proj.weight[index] = 3 * read / read.norm()
        block.mlp.up_proj.weight[index] = 3 * read / read.norm()
        block.mlp.down_proj.weight[:, index] = write / write.norm()
    return LocalTarget("local/planted", model, tiny.tokenizer, weights="planted")


def value(quantity: Any) -> Estimate:
    assert isinstance(quantity, Estimate), quantity
    return quantity


def test_a_neuron_that_detects_a_token_is_labelled_by_it(planted: LocalTarget) -> None:
    (found,) = label(planted, [DETECTOR], TEXTS, top=4)
    assert (found.layer, found.index) == DETECTOR
    assert found.tokens[0][0] == " the"
    assert found.promotes[0] == " and"
    assert all(one.token == " the" for one in found.strongest)
    score, control = value(found.score), found.shuffled
    assert score.low > 0.9
    assert score.clusters == len(TEXTS) // 2
    assert isinstance(control, Unmeasured) or control.high < 0.6
    for one in (*found.strongest, *found.held):
        assert (one.before + one.token + one.after).strip()[:20] in " ".join(TEXTS)
    assert {one.text % 2 for one in found.strongest} == {0}
    assert {one.text % 2 for one in (*found.held, *found.ordinary)} == {1}
    record = label_measurement(planted, [found])
    assert [named.name for named in record.quantities] == ["neuron 0.5", "neuron 0.5, another's label"]
    assert record.quantities[0].note.startswith(" the")


def test_a_neuron_that_answers_to_a_pair_needs_the_pair(planted: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations made up: 1 where " of the" ends, else a little noise."""
    of, the = token_of(planted, " of"), token_of(planted, " the")

    def made(_: Any, some: Any, neurons: Any) -> Iterator[Any]:
        for piece in some:
            ids = np.array(piece.ids)
            hit = (ids[:-1] == of) & (ids[1:] == the)
            yield piece, np.repeat(hit[:, None] * 1.0, len(neurons), axis=1) + 0.01 * np.sin(ids[1:])[:, None]

    monkeypatch.setattr(labels, "activations", made)
    texts = [f"{text} That is the end of the book, and of the story." for text in TEXTS]
    (found,) = label(planted, [DETECTOR], texts, top=3)
    assert found.pairs[0][0] == " of the"
    assert value(found.score).value > 0.9
    ids = [piece.ids for piece in pieces(planted, texts)]
    at_the = np.concatenate([np.array(x[1:]) == the for x in ids])
    at_both = np.concatenate([(np.array(x[1:]) == the) & (np.array(x[:-1]) == of) for x in ids])
    assert np.corrcoef(at_the, at_both)[0, 1] < 0.8  # what the token by itself would reach
    assert value(found.shuffled).value == pytest.approx(value(found.score).value)  # all neurons are alike here


def test_a_label_says_means_and_predicts_them(tiny: LocalTarget) -> None:
    """Every number by brute force."""
    neurons = [(1, 3), (0, 7)]
    found = label(tiny, neurons, TEXTS, top=6)
    for one, neuron in zip(found, neurons, strict=True):
        making = [(p, v) for p, v in activations(tiny, pieces(tiny, TEXTS), [neuron]) if p.text % 2 == 0]
        seen: dict[int, list[float]] = {}
        for piece, values in making:
            for token, activation in zip(piece.ids[1:], values[:, 0], strict=True):
                seen.setdefault(token, []).append(float(activation))
        mean = np.mean([x for some in seen.values() for x in some])
        drawn = {token: (sum(some) + mean) / (len(some) + 1) for token, some in seen.items()}
        gain = {token: len(some) * (drawn[token] - mean) ** 2 for token, some in seen.items()}
        best = sorted(gain, key=lambda token: (-gain[token], token))[:6]
        assert dict(one.tokens) == pytest.approx({tiny.tokenizer.decode([t]): drawn[t] for t in best})
        x, y = [], []
        pairs = dict(one.pairs)
        for piece, values in activations(tiny, pieces(tiny, TEXTS), [neuron]):
            if piece.text % 2:
                for at in range(1, len(piece.ids)):
                    two = tiny.tokenizer.decode(list(piece.ids[at - 1 : at + 1]))
                    token = piece.ids[at]
                    x.append(pairs.get(two, drawn[token] if token in best else mean))
                    y.append(values[at - 1, 0])
        assert value(one.score).value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.02)
        assert value(one.score).n == len(x)


def test_batches_do_not_change_labels(tiny: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    neurons = [(0, 1), (2, 3), (1, 3), (1, 0)]
    whole = label(tiny, neurons, TEXTS[:8], top=3)
    monkeypatch.setattr(labels, "CELLS", 1)
    assert label(tiny, neurons, TEXTS[:8], top=3) == whole
    assert label(tiny, neurons, [*TEXTS[:8], *TEXTS[:3]], top=3) == whole  # texts that repeat
    assert [(one.layer, one.index) for one in whole] == neurons


def test_the_stream_finds_what_all_at_once_would(tiny: LocalTarget) -> None:
    neurons = [(0, 1), (2, 3), (1, 3)]
    some = pieces(tiny, TEXTS[:6], length=20)
    assert max(len(piece.ids) for piece in some) == 20
    assert [t for piece in some if piece.text == 2 for t in piece.ids[1:]] == tiny.encoded(TEXTS[2])
    for sign in (1, -1):
        stream = Strongest(3, 7, sign=sign)
        every: list[list[tuple[float, int, int]]] = [[], [], []]
        for number, (_, values) in enumerate(activations(tiny, some, neurons)):
            stream.see(number, values)
            for u in range(3):
                every[u] += [(-sign * v, number, at + 1) for at, v in enumerate(values[:, u].tolist())]
        for u in range(3):
            expected = sorted(every[u])[:7]
            found = stream.contexts(tiny, some, u)
            assert [one.activation for one in found] == [-sign * v for v, _, _ in expected]
            assert [one.token for one in found] == [tiny.tokenizer.decode([some[n].ids[at]]) for _, n, at in expected]


def test_ties_go_to_the_earlier_place() -> None:
    stream = Strongest(1, 3)
    for number in range(4):
        stream.see(number, np.ones((2, 1)))
    assert stream._place_KU2[:, 0].tolist() == [[0, 1], [0, 2], [1, 1]]


def test_activations_are_those_of_the_model(tiny: LocalTarget) -> None:
    (piece,) = pieces(tiny, ["The moon is round."])
    assert piece.ids == (tiny.tokenizer.bos_token_id, *tiny.encoded("The moon is round."))
    ((_, found),) = activations(tiny, [piece], [(2, 9), (0, 3), (2, 1)])
    seen = tiny.activations(piece.ids, [Units("neuron", 2), Units("neuron", 0)])
    expected = torch.stack([seen[Units("neuron", 2)][1:, 9], seen[Units("neuron", 0)][1:, 3],
                            seen[Units("neuron", 2)][1:, 1]], 1)  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_a_neuron_writes_is_its_column_through_norm_and_head(tiny: LocalTarget) -> None:
    (found,) = written(tiny, [(1, 4)])
    column = tiny.model.model.layers[1].mlp.down_proj.weight[:, 4]
    direct = tiny.model.lm_head.weight @ (tiny.model.model.norm.weight * column)
    # In proportion, by the length of the column.
    torch.testing.assert_close(found / found.norm(), direct / direct.norm(), atol=1e-5, rtol=1e-4)
    with pytest.raises(TargetError, match="no neuron 128 in layer 1: there are 128"):
        list(written(tiny, [(1, 128)]))


SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "ffn_dim": 96, "word_embed_proj_dim": 64,
}  # fmt: skip


def random_target(tiny: LocalTarget, kind: str) -> LocalTarget:
    from transformers import AutoConfig, AutoModelForCausalLM

    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).add_(0.2 * torch.randn(parameter.shape))
    torch.set_rng_state(state)
    return LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="")


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox"])
@torch.no_grad()
def test_a_neuron_that_drowns_all_else_writes_what_is_said(tiny: LocalTarget, kind: str) -> None:
    """Norms with biases, a head or projections behind them, weights laid out the other way."""
    target = random_target(tiny, kind)
    at = Units("neuron", 1, which=(4,))
    up, down = (target.under([add(at, torch.tensor([by]))]).model(torch.tensor([[5, 9, 7]])).logits[0, -1]
                for by in (1e5, -1e5))  # fmt: skip
    (found,) = written(target, [(1, 4)])
    torch.testing.assert_close(found, (up - down) / 2, atol=2e-3 * float(found.abs().max()), rtol=1e-2)


@pytest.mark.parametrize("kind", ["gemma2", "olmo2"])
@torch.no_grad()
def test_a_norm_behind_the_mlp_is_gone_through(tiny: LocalTarget, kind: str) -> None:
    target = random_target(tiny, kind)
    body, more = target.model.model, 1.0 if kind == "gemma2" else 0.0  # Gemma's norms hold their weights less 1
    column = body.layers[1].mlp.down_proj.weight[:, 4]
    after = (more + body.layers[1].post_feedforward_layernorm.weight) * column
    direct = target.model.lm_head.weight @ ((more + body.norm.weight) * after)
    (found,) = written(target, [(1, 4)])
    assert float(torch.corrcoef(torch.stack([found, direct]))[0, 1]) > 0.99  # Gemma caps its logits
    plain = target.model.lm_head.weight @ ((more + body.norm.weight) * column)
    assert float(torch.corrcoef(torch.stack([found, plain]))[0, 1]) < 0.99


def test_too_little_text_is_a_design_error(tiny: LocalTarget) -> None:
    with pytest.raises(DesignError, match="give at least 2"):
        label(tiny, [(0, 0)], ["One text alone.", "One text alone."])


def test_the_texts_of_a_store(tmp_path: Path) -> None:
    target, none = "0" * 64, "1" * 64
    said = tuple(Said(surface="s", cell="c", reply=text, outcome="o") for text in ("one", "two", "  "))
    deed = Deed(turn=0, tool="t", arguments=(), ok=True, result="not written by the target")
    played = Played(cell="c", ending="e", stage="", deeds=(deed,), said=("three", "two"), answer="four", tokens=1)
    with open_store(tmp_path) as store:
        store.add(Replies(target=target, plot="p", rows=said, tokens=3))
        store.add(Turn(target=target, prompt=none, epoch=0, text="five", calls=(), tokens=1, finished=True,
                       unparsed=False, refused=False))  # fmt: skip
        store.add(Episodes(target=target, family="f", plot="p", surface="s", rows=(played,), rules=none, way=()))
        assert stored_texts(store) == ("one", "two", "five", "three", "four")
    assert contexts.stored_texts is stored_texts
