"""Features of dictionaries: accounts close, edges are what autograd gives, and files are not trusted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import yaml
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from truing.errors import TargetError, UsageError
from truing.targets.local import Functional
from truing.targets.local.inside import read
from truing.targets.local.tree import plant
from truing.trace import dictionaries
from truing.trace.dictionaries import Dictionary, load
from truing.trace.engine import Engine, Goal, Layer
from truing.trace.features import DictionaryEngine
from truing.trace.hand import HandEngine
from truing.trace.influence import closure, prune, scores
from truing.trace.rows import rows
from truing.trace.select import assembled, select

CLOSED = 1e-5
D, LAYERS, F = 24, 3, 60
KINDS = ("plain", "skip", "jump", "cross", "sae", "topk")
SITES = ("before norm", "normalized", "mlp in")


@pytest.fixture(scope="module")
def model() -> Any:
    config = LlamaConfig(
        vocab_size=60, hidden_size=D, intermediate_size=40, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(5)
    made = LlamaForCausalLM(config).eval()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(False).normal_(1.0 if "norm" in name else 0.0, 0.3)
    torch.set_rng_state(state)
    return made


def case() -> Functional:
    """Two continuations of one prompt, of two and three tokens."""
    rng = random.Random(1)
    prompt = [rng.randrange(60) for _ in range(10)]
    tree, routes = plant([[*prompt, 7, 8], [*prompt, 9, 8, 11]])
    nodes = torch.cat([route[len(prompt) :] for route in routes])
    return Functional(tree, nodes, torch.tensor([0.5, 0.5, -1 / 3, -1 / 3, -1 / 3]), len(prompt))


def made(kind: str, site: Any = "mlp in", layers: int = LAYERS) -> tuple[Dictionary, ...]:
    """Random dictionaries, a few features of which are active."""
    g = torch.Generator().manual_seed(KINDS.index(kind))
    found = []
    for layer in range(layers):
        writes = layers - layer if kind == "cross" else 1
        found.append(
            Dictionary(
                "mlp out" if kind in {"sae", "topk"} else site, torch.randn(F, D, generator=g),
                torch.randn(F, generator=g) - 2, torch.randn(writes, F, D, generator=g) * 0.1,
                torch.randn(D, generator=g) * 0.1, torch.rand(F, generator=g) if kind == "jump" else torch.zeros(F),
                5 if kind == "topk" else None, torch.randn(D, D, generator=g) * 0.1 if kind == "skip" else None,
            )
        )  # fmt: skip
    return tuple(found)


def some_features(engine: DictionaryEngine, count: int = 3) -> list[Goal]:
    """The decision, then active features of each layer, from above."""
    goals: list[Goal] = [None]
    for layer in range(engine.layers - 1, -1, -1):
        active = engine.active[layer]
        places = torch.linspace(0, len(active.value_S) - 1, count).long().unique()
        goals += [(layer, int(active.node_S[p]), int(active.index_S[p])) for p in places]
    return goals


# -- accounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_activations_add_up(model: Any, kind: str) -> None:
    for site in SITES if kind in {"plain", "skip"} else SITES[-1:]:
        engine = DictionaryEngine(model, case(), made(kind, site))
        found = rows(engine, some_features(engine))
        assert len(found) > 6
        for row in found:
            assert row.error <= CLOSED
            assert abs(row.bias) > 0
        ids = case().tree.ids_N.tolist()
        graph = assembled(select(engine, 30, batch=8), engine, ids)
        assert graph.of("neuron").sum() == 30
        assert closure(graph) <= CLOSED
        assert closure(prune(graph)) <= CLOSED


def test_a_layer_without_a_dictionary_is_error(model: Any) -> None:
    one, _, three = made("plain")
    engine = DictionaryEngine(model, case(), (one, None, three))
    found = select(engine, 40, batch=8)
    assert {row.goal[0] for row in found if row.goal} == {0, 2}
    assert max(row.error for row in found) <= CLOSED
    assert any((row.rest_layer_Q == 1).any() for row in found)


def test_nothing_at_the_beginning_is_a_feature(model: Any) -> None:
    for beginning in (0, 1, 4):
        engine = DictionaryEngine(model, case(), made("plain"), beginning=beginning)
        assert min(int(active.node_S.min()) for active in engine.active) == beginning
        assert max(row.error for row in rows(engine, some_features(engine))) <= CLOSED


def test_what_is_not_active_is_not_explained(model: Any) -> None:
    engine = DictionaryEngine(model, case(), made("plain"))
    active = {(int(n), int(i)) for n, i in zip(engine.active[1].node_S, engine.active[1].index_S, strict=True)}
    silent = next((5, i) for i in range(F) if (5, i) not in active)
    with pytest.raises(UsageError, match=f"feature {silent[1]} of layer 1 is not active at node 5"):
        rows(engine, [(1, *silent)])


def test_a_topk_dictionary_keeps_the_largest(model: Any) -> None:
    one = made("topk")[0]
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(0))
    node, index, value = one.active(x)
    plain = (x @ one.encoder_FD.T + one.bias_F).clamp(min=0)
    kept = torch.zeros_like(plain)
    kept[node, index] = value
    top = plain.topk(5, 1)
    torch.testing.assert_close(kept, torch.zeros_like(plain).scatter_(1, top.indices, top.values))


# -- oracles -----------------------------------------------------------------------------------------------------------


def gathered(engine: Engine, goals: list[Goal]) -> dict[int, Any]:
    """Every layer's totals and all single contributions, (B, T, F)."""
    found: dict[int, Any] = {}

    def keep(layer: Layer) -> None:
        B = len(layer.total_BT)
        cells = torch.cartesian_prod(torch.arange(B), torch.arange(engine.nodes))
        parts = layer.parts(cells).view(B, engine.nodes, -1)
        assert bool((parts.abs().amax(-1) <= layer.bound_BT * (1 + 1e-5)).all())
        if layer.largest is not None:
            row, node, index, weight = layer.largest(torch.zeros(B), 10**6)
            again = torch.zeros_like(parts)
            again[row.long(), node.long(), index.long()] = weight.float()
            assert torch.equal(again, parts)
        found[layer.number] = (layer.total_BT, parts)

    engine.into(goals, keep)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_what_autograd_gives(model: Any, kind: str) -> None:
    """Of a replacement model written out: features, errors and embeddings are leaves, and the rest is frozen."""
    functional, dicts = case(), made(kind)
    engine = DictionaryEngine(model, functional, dicts, beginning=0)
    goals = some_features(engine)
    sources: dict[int, Any] = gathered(engine, goals)
    leaves = Replaced(model, functional, dicts)
    for b, goal in enumerate(goals):
        output = leaves.decision if goal is None else leaves.before[goal[0]][goal[1], goal[2]]
        wanted = [*leaves.features, *leaves.errors, leaves.embed]
        grads = torch.autograd.grad(output, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        given = [grad * source.detach() for grad, source in zip(grads, wanted, strict=True)]
        for layer in range(LAYERS if goal is None else goal[0]):
            total_BT, parts_BTF = sources[layer]
            close(parts_BTF[b], given[layer])
            close(total_BT[b], given[layer].sum(-1) + given[LAYERS + layer].sum(-1))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5 * max(float(expected.abs().max()), 1e-3), rtol=1e-4)


class Replaced:
    """A forward pass by autograd with features for MLPs, everything nonlinear held at its value.

    `through`: features are what they read, and what is added to them is a leaf; else they are leaves themselves.
    """

    def __init__(
        self, model: Any, functional: Functional, dicts: tuple[Dictionary, ...], *, through: bool = False
    ) -> None:
        leaves: list[Any] = []
        kept = functional.before_M.unique()
        seen = read(model, functional.tree, kept)
        self.features: list[Any] = []
        self.errors: list[Any] = []
        self.before: list[Any] = []
        x = self.embed = seen.embed_TD.clone().requires_grad_()
        for layer, block in enumerate(model.model.layers):
            normed = x * seen.norm1[layer][:, None] * block.input_layernorm.weight
            v = block.self_attn.v_proj(normed).view(len(x), 2, 8).repeat_interleave(2, 1)
            P = torch.cat([seen.pattern(layer, g) for g in range(2)])
            x = x + block.self_attn.o_proj(torch.einsum("hqk,khe->qhe", P, v).reshape(len(x), -1))
            inner = x * seen.norm2[layer][:, None] * block.post_attention_layernorm.weight
            gate, up = block.mlp.gate_proj(inner), block.mlp.up_proj(inner)
            ratio = torch.sigmoid(gate).detach()
            of_mlp = block.mlp.down_proj(0.5 * (gate * ratio * up.detach() + (gate * ratio).detach() * up))
            one = dicts[layer]
            reads = of_mlp if one.reads == "mlp out" else inner
            before = reads @ one.encoder_FD.T + one.bias_F
            on = before.detach() > one.threshold_F
            if one.most:
                on &= before.detach() >= before.detach().topk(one.most, 1).values[:, -1:]
            self.before.append(before)
            leaves.append((torch.zeros_like(before) if through else before.detach() * on).requires_grad_())
            self.features.append(before * on + leaves[-1] if through else leaves[-1])
            by = sum(self.features[low] @ dicts[low].decoders_WFD[layer - low] for low in range(layer + 1)
                     if layer - low < len(dicts[low].decoders_WFD)) + one.offset_D  # fmt: skip
            if one.skip_DD is not None:
                by = by + reads @ one.skip_DD.T
            self.errors.append((of_mlp - by).detach().requires_grad_())
            x = x + by + self.errors[-1]
        logits = model.lm_head(x * seen.norm_out[:, None] * model.model.norm.weight)[functional.before_M]
        tokens = functional.tree.ids_N[functional.nodes_M]
        p = torch.softmax(logits, -1).detach()
        chosen = logits[torch.arange(len(tokens)), tokens]
        self.decision = (functional.weight_M * (chosen - (p * logits).sum(-1))).sum()
        self.added = leaves


@pytest.mark.parametrize("kind", KINDS)
def test_what_features_add_by_all_paths_is_what_autograd_gives(model: Any, kind: str) -> None:
    functional, dicts = case(), made(kind)
    engine = DictionaryEngine(model, functional, dicts, beginning=0)
    spots = [goal for goal in some_features(engine, 20) if goal is not None]
    sources, found = engine.by_all_paths(spots)
    whole = Replaced(model, functional, dicts, through=True)
    *given, embedding = torch.autograd.grad(whole.decision, [*whole.added, whole.embed], retain_graph=True)
    close(found, torch.stack([given[at][t, i] * whole.features[at][t, i].detach() for at, t, i in spots]))
    close(sources.embeddings_BT[0], (embedding * whole.embed.detach()).sum(-1))
    # Errors are the sources that are left.
    errors = torch.autograd.grad(whole.decision, whole.errors)
    rest = sum((grad * error.detach()).sum() for grad, error in zip(errors, whole.errors, strict=True))
    total = sources.embeddings_BT.double().sum() + sources.biases_B.sum() + rest
    assert float(total) == pytest.approx(engine.value(None), abs=2e-5 * float(sources.embeddings_BT.abs().sum()))


def test_features_that_are_coordinates_leave_no_error(model: Any) -> None:
    """x = relu(x) - relu(-x): what each adds is the coordinate's part of what all neurons add, which is the oracle."""
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    none = Dictionary("mlp out", both, torch.zeros(2 * D), both[None], torch.zeros(D), torch.zeros(2 * D))
    engine = DictionaryEngine(model, case(), (none,) * LAYERS, beginning=0)
    by_features, by_neurons = gathered(engine, [None]), gathered(HandEngine(model, case()), [None])
    for layer in range(LAYERS):
        assert float(engine.active[layer].error_TD.abs().max()) <= 1e-6
        close(by_features[layer][0], by_neurons[layer][0])
        close(by_features[layer][1].sum(-1), by_neurons[layer][0])
    # A feature is a weighted sum of neurons: its row is theirs.
    layer, node = 2, 11
    output = (
        read(model, case().tree, torch.tensor([0])).neurons[layer][node]
        @ model.model.layers[layer].mlp.down_proj.weight.T
    )
    coordinate = int(output.argmax())
    weights = model.model.layers[layer].mlp.down_proj.weight[coordinate]
    theirs = gathered(HandEngine(model, case()), [(layer, node, j) for j in range(len(weights))])
    mine = gathered(engine, [(layer, node, coordinate)])
    for low in range(layer):
        close(mine[low][0][0], torch.einsum("b,bt->t", weights, theirs[low][0]))


def test_more_features_explain_more(model: Any) -> None:
    engine = DictionaryEngine(model, case(), made("cross"))
    found = [scores(assembled(select(engine, k), engine, case().tree.ids_N.tolist())) for k in (4, 32, 256)]
    assert found[0].replacement < found[1].replacement < found[2].replacement <= 1


# -- files -------------------------------------------------------------------------------------------------------------


def write_transcoders(folder: Path, dicts: tuple[Dictionary, ...], hook: str = "mlp.hook_in", **more: Any) -> None:
    for layer, one in enumerate(dicts):
        tensors = {"W_enc": one.encoder_FD, "W_dec": one.decoders_WFD[0], "b_enc": one.bias_F, "b_dec": one.offset_D}
        if one.skip_DD is not None:
            tensors["W_skip"] = one.skip_DD
        if bool(one.threshold_F.any()):
            tensors["activation_function.threshold"] = one.threshold_F
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"layer_{layer}.safetensors")
    settings = {"model_kind": "transcoder_set", "feature_input_hook": hook, "feature_output_hook": "mlp.hook_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | more))


def write_cross_layer(folder: Path, dicts: tuple[Dictionary, ...]) -> None:
    for n, one in enumerate(dicts):
        save_file({f"W_enc_{n}": one.encoder_FD, f"b_enc_{n}": one.bias_F, f"b_dec_{n}": one.offset_D,
                   f"threshold_{n}": one.threshold_F}, folder / f"W_enc_{n}.safetensors")  # fmt: skip
        decoder = one.decoders_WFD.transpose(0, 1).contiguous()  # (F, W, D)
        save_file({f"W_dec_{n}": decoder}, folder / f"W_dec_{n}.safetensors")
    settings = {"model_kind": "cross_layer_transcoder", "feature_input_hook": "hook_resid_mid",
                "feature_output_hook": "hook_mlp_out"}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def write_sae(folder: Path, one: Dictionary, **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    tensors = {"W_enc": one.encoder_FD.T, "W_dec": one.decoders_WFD[0], "b_enc": one.bias_F, "b_dec": one.offset_D}
    if one.skip_DD is not None:
        tensors["W_skip"] = one.skip_DD
    if "jumprelu" in settings.get("architecture", ""):
        tensors["threshold"] = one.threshold_F
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))


def same(found: Dictionary | None, wanted: Dictionary) -> None:
    assert found is not None
    for name in Dictionary.__slots__:
        a, b = getattr(found, name), getattr(wanted, name)
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b, name


@pytest.mark.parametrize(("kind", "hook", "site"), [
    ("plain", "hook_resid_mid", "before norm"), ("jump", "ln2.hook_normalized", "normalized"),
    ("skip", "mlp.hook_in", "mlp in"),
])  # fmt: skip
def test_transcoders_of_circuit_tracer_are_read(model: Any, tmp_path: Path, kind: str, hook: str, site: str) -> None:
    wanted = made(kind, site)
    write_transcoders(tmp_path, wanted, hook)
    for one, other in zip(load(tmp_path, model), wanted, strict=True):
        same(one, other)
    write_transcoders(tmp_path, wanted, hook, transcoders=[f"layer_{n}.safetensors" for n in (2, 1, 0)])
    same(load(tmp_path, model)[0], wanted[2])


def test_cross_layer_transcoders_are_read(model: Any, tmp_path: Path) -> None:
    wanted = made("cross", "before norm")
    write_cross_layer(tmp_path, wanted)
    for one, other in zip(load(tmp_path, model), wanted, strict=True):
        same(one, other)


def test_dictionaries_of_saelens_are_read(model: Any, tmp_path: Path) -> None:
    """What SAELens computes, written out, against what is read: a decoder bias taken from the input, norms folded."""
    plain, skip, jump = made("sae")[0], made("skip", "mlp in")[1], made("jump", "normalized")[2]
    write_sae(tmp_path / "a", plain, architecture="topk", k=7, rescale_acts_by_decoder_norm=True,
              metadata={"hook_name": "blocks.0.hook_mlp_out"}, apply_b_dec_to_input=True)  # fmt: skip
    write_sae(tmp_path / "b", skip, architecture="skip_transcoder", hook_name="blocks.1.mlp.hook_in",
              hook_name_out="blocks.1.hook_mlp_out", apply_b_dec_to_input=False)  # fmt: skip
    write_sae(tmp_path / "c", jump, architecture="jumprelu_transcoder", hook_name="blocks.2.ln2.hook_normalized")
    found = load(tmp_path, model)
    same(found[1], skip)
    same(found[2], jump)
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(2))
    norm_F = plain.decoders_WFD[0].norm(dim=1)
    before = ((x - plain.offset_D) @ plain.encoder_FD.T + plain.bias_F) * norm_F
    values, places = before.topk(7, 1)
    expected = torch.zeros_like(before).scatter_(1, places, values.relu()) / norm_F @ plain.decoders_WFD[0]
    one = found[0]
    assert one is not None
    node, index, value = one.active(x)
    mine = torch.zeros_like(before)
    mine[node, index] = value
    torch.testing.assert_close(mine @ one.decoders_WFD[0], expected, atol=1e-5, rtol=1e-4)
    assert load(tmp_path / "b", model)[0] is None  # one folder is one layer


def edit(path: Path, **changes: Any) -> None:
    from safetensors.torch import load_file

    tensors = {**load_file(path), **changes}
    save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, path)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"W_dec": None}, "lacks W_dec"),
    ({"log_thresholds": torch.zeros(F)}, "holds log_thresholds, which is not known"),
    ({"W_enc": torch.zeros(F, D + 1)}, r"W_enc in .* has shape \(60, 25\)"),
    ({"W_dec": torch.zeros(F + 1, D)}, r"W_enc in .* has shape \(60, 24\)"),
    ({"b_enc": torch.zeros(F, 1)}, r"b_enc in .* has shape \(60, 1\)"),
    ({"b_enc": torch.full((F,), float("nan"))}, "values that are not finite"),
    ({"W_dec": torch.full((F, D), float("-inf"))}, "values that are not finite"),
    ({"W_enc": torch.full((F, D), 1e200, dtype=torch.double)}, "values that are not finite"),
    ({"b_dec": torch.zeros(D, dtype=torch.long)}, "is in torch.int64"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_tensors_that_do_not_fit_are_refused(model: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_transcoders(tmp_path, made("plain"))
    edit(tmp_path / "layer_1.safetensors", **changes)
    with pytest.raises(TargetError, match=message):
        load(tmp_path, model)


def test_too_many_features_are_refused(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_transcoders(tmp_path, made("plain"))
    monkeypatch.setattr(dictionaries, "MOST_FEATURES", F - 1)
    with pytest.raises(TargetError, match="has 60 features"):
        load(tmp_path, model)


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 1])
def test_dictionaries_of_a_model_with_other_layers_are_refused(model: Any, tmp_path: Path, layers: int) -> None:
    write_transcoders(tmp_path, made("plain", layers=layers))
    with pytest.raises(TargetError, match=r"layer_2|layer 3"):
        load(tmp_path, model)


@pytest.mark.parametrize("name", [
    "../layer_0.safetensors", "/etc/passwd", "hf://someone/repo/layer_0.safetensors", "layer_0.pt", 7,
    "a\0b.safetensors", "x/../../layer_0.safetensors", "/tmp/layer_0.safetensors",
])  # fmt: skip
def test_files_elsewhere_are_not_read(model: Any, tmp_path: Path, name: Any) -> None:
    write_transcoders(tmp_path, made("plain"), transcoders=[name] * LAYERS)
    with pytest.raises(TargetError, match="only safetensors files in the same folder are read"):
        load(tmp_path, model)


@pytest.mark.parametrize(("settings", "message"), [
    ("model_kind: [", "cannot read"), ("- 1", "holds a list"), ("model_kind: [1, 2]", r"of kind \[1, 2\]"),
    ("!!python/object/apply:os.system ['true']", "cannot read"), ("model_kind: gpt", "of kind 'gpt'"),
    ("model_kind: transcoder_set\nfeature_input_hook: [a]\nfeature_output_hook: mlp.hook_out", r"read at \['a'\]"),
    ("model_kind: transcoder_set\nfeature_input_hook: hook_mlp_out\nfeature_output_hook: mlp.hook_out", "read at"),
    ("model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_z", "write to 'hook_z'"),
    (f"model_kind: {'x' * 2**20}", "longer than"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(model: Any, tmp_path: Path, settings: str, message: str) -> None:
    write_transcoders(tmp_path, made("plain"))
    (tmp_path / "config.yaml").write_text(settings)
    with pytest.raises(TargetError, match=message):
        load(tmp_path, model)


@pytest.mark.parametrize(("settings", "message"), [
    ({"architecture": "gated"}, "architecture 'gated'"), ({"architecture": ["topk"]}, "architecture"),
    ({"architecture": "topk", "k": "many"}, "k = 'many'"), ({"architecture": "topk", "k": True}, "k = True"),
    ({"architecture": "standard", "hook_name": "blocks.0.hook_resid_post"}, "stands in for all layers below"),
    ({"architecture": "transcoder", "hook_name": "blocks.0.hook_mlp_out"}, "transcoders that are known read at"),
    ({"architecture": "transcoder", "hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"},
     "writes to 'blocks.1.hook_mlp_out'"),
    ({"architecture": "transcoder", "hook_name": "blocks.9.mlp.hook_in"}, "of layer 9, and the model has 3 layers"),
    ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
    ({"normalize_activations": ["a"]}, "normalize_activations"), ({"hook_name": 3}, "reads at 3"),
    ({"metadata": "x", "hook_name": None}, "reads at None"),
])  # fmt: skip
def test_saes_that_are_not_known_are_refused(
    model: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    write_sae(tmp_path, made("sae")[0], **({"hook_name": "blocks.0.hook_mlp_out"} | settings))
    with pytest.raises(TargetError, match=message):
        load(tmp_path, model)


def test_pickles_are_not_read(model: Any, tmp_path: Path) -> None:
    torch.save({"W_enc": torch.zeros(F, D)}, tmp_path / "layer_0.pt")
    with pytest.raises(TargetError, match="never from pickles"):
        load(tmp_path, model)
    write_transcoders(tmp_path, made("plain"))
    torch.save({"W_enc": torch.zeros(F, D)}, tmp_path / "layer_0.safetensors")
    with pytest.raises(TargetError, match="cannot read"):
        load(tmp_path, model)
    whole = tmp_path / "layer_1.safetensors"
    write_transcoders(tmp_path, made("plain"))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(TargetError, match="cannot read"):
        load(tmp_path, model)
