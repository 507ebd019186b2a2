"""Open weights: every ability against what transformers and PEFT do themselves."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Collection, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from truing.audit import audit, lay_out
from truing.errors import TargetError
from truing.records import Decision, Message, Pair, Tool, ToolCall
from truing.store import open_store
from truing.studies.one import wheel_of
from truing.targets import Chat, Scored, need, resolve
from truing.targets.local import LocalTarget, cache, change, load
from truing.targets.local import tiny as recipe
from truing.targets.local.adapter import BASE, Adapter, mark
from truing.targets.local.change import Units, add
from truing.targets.local.generate import Batch, write
from truing.targets.local.inside import read
from truing.targets.local.probe import probe
from truing.targets.local.write import Ask, Written
from truing.trace import Settings
from truing.train.batches import lay_out as lay


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def log_p(model: Any, ids: Sequence[int]) -> Any:
    """What follows each token, by the model's ordinary forward pass: shape (T, V)."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].double(), -1)


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Collection[int] = ()
) -> list[list[int]]:
    """What is written after each prompt, at most three rows at once, in blocks of seven tokens."""
    asks = [Ask(tuple(prompt), max_tokens, frozenset(stop)) for prompt in prompts]
    return [list(written.ids) for written in write(Batch(model, most=3, block=7), asks)]


# -- generation --------------------------------------------------------------------------------------------------------


def some_prompts() -> list[list[int]]:
    """Prompts of mixed length; some share their beginning, one is the beginning of another."""
    rng = random.Random(7)
    beginning = rng.choices(range(4, 1536), k=9)
    shared = [[*beginning, *rng.choices(range(4, 1536), k=k)] for k in (1, 4, 30)]
    return [*shared, [*shared[1], 5, 6], beginning]


def apart_prompts() -> list[list[int]]:
    rng = random.Random(8)
    return [rng.choices(range(4, 1536), k=k) for k in (1, 2, 17, 40, 5)]


def peers(model: Any, prompt: Sequence[int], *, max_tokens: int, stop: Sequence[int]) -> tuple[list[int], float]:
    """What transformers writes after one prompt alone, and how clearly its closest choice was made."""
    out = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(stop),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    gaps = [float(-score[0].topk(2).values.diff()) for score in out.scores]
    return out.sequences[0, len(prompt) :].tolist(), min(gaps)


@pytest.mark.parametrize("prompts", [some_prompts(), apart_prompts(), [[9]]], ids=["shared", "apart", "one"])
def test_greedy_writes_what_transformers_writes(wild: Any, prompts: list[list[int]]) -> None:
    free = [peers(wild.model, prompt, max_tokens=16, stop=[1535]) for prompt in prompts]
    # Stop tokens that some rows reach, at different steps, so that rows leave the batch one after another.
    stop = {ids[2 + row] for row, (ids, _) in enumerate(free) if row % 2 == 0}
    expected = [peers(wild.model, prompt, max_tokens=16, stop=sorted(stop)) for prompt in prompts]
    assert len(prompts) == 1 or len({len(ids) for ids, _ in expected}) > 1
    assert len({token for ids, _ in free for token in ids}) > 4 * len(prompts)
    assert min(gap for _, gap in expected) > 1e-4  # no tie that rounding could decide
    written = greedy(wild.model, prompts, max_tokens=16, stop=stop)
    assert written == [ids for ids, _ in expected]


def test_a_reply_does_not_depend_on_the_other_rows(wild: Any) -> None:
    asked = [user("Hello."), user("Which of the two is the capital, and why is it not the other one?"), user("x")]
    together = wild.reply(asked, max_tokens=8)
    assert together == [wild.reply([one], max_tokens=8)[0] for one in asked]
    for reply in together:
        assert 1 <= reply.tokens <= 8
        assert reply.finished or reply.tokens == 8


def test_a_reply_that_reaches_the_end_says_so(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (cut,) = wild.reply([user("Hello.")], max_tokens=6)
    assert not cut.finished
    assert cut.tokens == 6
    prompt = wild.prompt_ids(user("Hello."))
    ids, _ = peers(wild.model, prompt, max_tokens=6, stop=[0])
    at = next(i for i in range(1, 6) if ids[i] not in ids[:i])
    monkeypatch.setattr(wild.model.generation_config, "eos_token_id", [0, ids[at]])
    (whole,) = LocalTarget("other", wild.model, wild.tokenizer, weights="").reply([user("Hello.")], max_tokens=6)
    assert whole.finished
    assert whole.tokens == at + 1
    assert whole.text == wild.tokenizer.decode(ids[:at]).strip()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_the_card_says(tiny: Any) -> None:
    assert isinstance(tiny, Scored)
    assert isinstance(tiny, Chat)
    assert tiny.card.abilities == ("Scored", "Chat", "WhiteBox", "Trainable")
    again = resolve("local/tiny")
    assert again.card == tiny.card


def test_an_empty_continuation_is_refused(tiny: Any) -> None:
    surface = lay_out("anchoring", most=1).surfaces[0]
    empty = surface.model_copy(update={"decision": Decision(actions=("",), alternatives=("no",))})
    with pytest.raises(TargetError, match=r"continuation '' has no tokens; give an action"):
        tiny.decide([empty])


def test_what_is_longer_than_the_context_is_refused(tiny: Any) -> None:
    with pytest.raises(TargetError, match=r"text of \d+ tokens is longer than the context of local/tiny \(4096\)"):
        tiny.prompt_ids(user("word " * 5000))
    with pytest.raises(TargetError, match="longer than the context"):
        tiny.bits("word " * 5000)
    # A prompt that fits, and its reply. Nothing follows the last token, so it takes no place.
    with pytest.raises(TargetError, match=r"text of 4097 tokens is longer"):
        tiny.log_probs([([5] * 4000, [6] * 98)])
    (values,), _ = tiny.log_probs([([5] * 4000, [6] * 97)])
    assert len(values) == 97


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "somebody/no-such-model"])
def test_an_unknown_name_is_refused_with_what_could_be_given(name: str) -> None:
    with pytest.raises(TargetError, match=r"cannot load local/.*Give local/smollm2-135m, local/tiny, a folder"):
        resolve(f"local/{name}")


@pytest.fixture
def checkpoint(tiny: Any, tmp_path: Path) -> Path:
    """A user's own folder with a model in it."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(cache.root() / recipe.FOLDER, folder)
    return folder


def test_a_folder_is_a_target(tiny: Any, checkpoint: Path) -> None:
    target = resolve(f"local/{checkpoint}")
    surfaces = lay_out("anchoring", most=1).surfaces[:1]
    assert target.decide(surfaces) == tiny.decide(surfaces)
    assert target.card.template == tiny.card.template


def edited(file: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rms_norm_eps": 1e-3}),
        ("config.json", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
        ("generation_config.json", {"eos_token_id": [0, 17]}),
    ],
)
def test_what_changes_the_answers_changes_the_identity(checkpoint: Path, file: str, change: dict[str, object]) -> None:
    before = resolve(f"local/{checkpoint}").card
    edited(checkpoint / file, **change)
    after = resolve(f"local/{checkpoint}").card
    assert after.weights != before.weights
    assert after.id != before.id


def test_what_changes_no_answer_changes_no_identity(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    before = resolve(f"local/{checkpoint}").card
    assert before.weights == resolve(f"local/{shutil.copytree(checkpoint, tmp_path / 'moved')}").card.weights
    edited(checkpoint / "config.json", transformers_version="4.0.0", _name_or_path="/home/me", use_cache=False)
    assert resolve(f"local/{checkpoint}").card == before


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_checkpoint_is_a_target_error(checkpoint: Path, part: str) -> None:
    file = checkpoint / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TargetError, match="cannot load"):
        resolve(f"local/{checkpoint}")


def test_a_folder_may_have_an_at_in_its_name(checkpoint: Path, adapter: tuple[Path, Any], tmp_path: Path) -> None:
    base, fix = shutil.copytree(checkpoint, tmp_path / "u@h"), shutil.copytree(adapter[0], tmp_path / "fix@2")
    assert resolve(f"local/{base}").card.name == f"local/{base}"
    card = resolve(f"local/{base}@{fix}").card
    assert card.name.startswith(f"local/{base}@")
    assert card.adapter == Adapter.read(fix).blob
    assert resolve(f"local/tiny@{fix}").card.adapter == card.adapter
    with pytest.raises(TargetError, match="no adapter at nowhere"):
        resolve(f"local/{base}@nowhere")


def test_pickled_weights_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(TargetError, match=r"no \.safetensors weights"):
        resolve(f"local/{checkpoint}")


@pytest.mark.parametrize(
    "how",
    [
        {"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "compressed-tensors"},
    ],
    ids=lambda how: how["quant_method"],
)  # fmt: skip
def test_quantised_weights_whose_library_is_not_there_are_a_target_error(checkpoint: Path, how: dict[str, Any]) -> None:
    """What is missing is said in a line, not by a traceback. Where it is there, tracing refuses such weights."""
    edited(checkpoint / "config.json", quantization_config=how)
    with pytest.raises(TargetError, match=r"^cannot load local/.*(install|requires|needs|available|supported).*Give "):
        resolve(f"local/{checkpoint}")


def test_weights_of_another_shape_are_a_target_error(checkpoint: Path) -> None:
    edited(checkpoint / "config.json", intermediate_size=96)
    with pytest.raises(TargetError, match=r"cannot load local/.*Give local/smollm2-135m"):
        resolve(f"local/{checkpoint}")


def test_weights_that_are_missing_are_not_made_up(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        TargetError, match=r"lacks 1 weights that a LlamaForCausalLM has, model\.layers\.0\.mlp\.up_proj"
    ):
        resolve(f"local/{checkpoint}")


# -- information -------------------------------------------------------------------------------------------------------


def test_bits_are_those_of_the_ordinary_forward_pass(wild: Any) -> None:
    text = "The river is wide — and cold, they said. 12 boats!"
    ids = wild.tokenizer(text, add_special_tokens=False)["input_ids"]
    values = log_p(wild.model, [wild.tokenizer.bos_token_id, *ids])
    expected = -sum(float(values[i, token]) for i, token in enumerate(ids)) / math.log(2)
    bits, size, tokens = wild.bits(text)
    assert bits == pytest.approx(expected, rel=1e-6)
    assert (size, tokens) == (len(text.encode("utf-8")), len(ids))


@pytest.fixture(scope="module")
def adapter(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random adapter as PEFT writes it, and PEFT's own unmerged model."""
    import warnings

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    state = torch.get_rng_state()
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft = get_peft_model(deepcopy(tiny.model), config).eval()
        torch.set_rng_state(state)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_" in name:
                    parameter.mul_(0.2)
        peft.save_pretrained(folder)
    return folder, peft


def test_an_adapter_is_what_peft_computes_unmerged(tiny: Any, adapter: tuple[Path, Any]) -> None:
    folder, peft = adapter
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    target = resolve(f"local/tiny@{folder}")
    ids = tiny.prompt_ids(user("What is the word for a baby cat?"))
    torch.testing.assert_close(log_p(target.model, ids), log_p(peft, ids), atol=1e-4, rtol=0)
    assert (log_p(target.model, ids) - log_p(tiny.model, ids)).abs().max() > 0.05  # it is not the base
    after = tiny.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert target.card.adapter is not None
    assert target.card.adapter.digest == cache.file_digest(folder / "adapter_model.safetensors")
    assert target.card.id != tiny.card.id
    assert target.card.weights != tiny.card.weights


def test_an_adapter_leaves_the_object_it_was_put_on_as_it_was(tiny: Any, adapter: tuple[Path, Any]) -> None:
    surfaces = lay_out("anchoring", most=1).surfaces[:1]
    before = tiny.decide(surfaces)
    other = tiny.with_adapter(Adapter.read(adapter[0]))
    assert tiny.decide(surfaces) == before
    assert other.decide(surfaces) != before
    assert tiny.card.adapter is None


@pytest.mark.parametrize(
    "change",
    [{"lora_alpha": 1600}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 1}}],
)
def test_settings_of_an_adapter_are_part_of_the_identity(
    tiny: Any, tmp_path: Path, adapter: tuple[Path, Any], change: dict[str, object]
) -> None:
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    edited(folder / "adapter_config.json", **change)
    before, after = resolve(f"local/tiny@{adapter[0]}"), resolve(f"local/tiny@{folder}")
    assert before.card.adapter == after.card.adapter
    assert len({target.card.id for target in (tiny, before, after)}) == 3
    assert before.card.name != after.card.name
    surfaces = lay_out("anchoring", most=1).surfaces[:1]
    assert before.decide(surfaces) != after.decide(surfaces)


def test_where_an_adapter_came_from_is_not(tmp_path: Path, adapter: tuple[Path, Any]) -> None:
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    # As another version of PEFT writes it elsewhere: sets in another order, its own version, defaults left out.
    said = json.loads((folder / "adapter_config.json").read_text())
    said |= {"peft_version": "0.0.1", "base_model_name_or_path": "/home/me", "inference_mode": False}
    said["target_modules"] = said["target_modules"][::-1]
    del said["use_dora"], said["loftq_config"]
    (folder / "adapter_config.json").write_text(json.dumps(said))
    assert resolve(f"local/tiny@{folder}").card == resolve(f"local/tiny@{adapter[0]}").card


@pytest.mark.parametrize("config", ["[]", "{", "{}", '{"peft_type": "NONE"}', '{"peft_type": "LORA", "r": "x"}'])
def test_a_broken_adapter_config_is_refused(tmp_path: Path, adapter: tuple[Path, Any], config: str) -> None:
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(TargetError, match=rf"cannot .* the adapter {folder}"):
        resolve(f"local/tiny@{folder}")


def test_an_adapter_can_be_put_on_an_adapter(adapter: tuple[Path, Any]) -> None:
    folder = adapter[0]
    twice = resolve(f"local/tiny@{folder}@{folder}")
    once = resolve(f"local/tiny@{folder}")
    assert twice.card.parents == (once.card.id,)
    assert twice.card == once.with_adapter(Adapter.read(folder)).card


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_folder_without_a_file_is_refused(tmp_path: Path, adapter: tuple[Path, Any], missing: str) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    (folder / missing).unlink()
    with pytest.raises(TargetError, match=rf"no adapter at .*{missing} is missing.*Give a folder"):
        resolve(f"local/tiny@{folder}")


def test_a_damaged_adapter_is_refused(tmp_path: Path, adapter: tuple[Path, Any]) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TargetError, match="cannot put the adapter"):
        resolve(f"local/tiny@{folder}")


@pytest.mark.parametrize(("made_on", "put_on"), [(4, 2), (2, 4)])
def test_an_adapter_for_another_base_is_refused(tmp_path: Path, wild: Any, made_on: int, put_on: int) -> None:
    from peft import LoraConfig, get_peft_model

    def base(layers: int) -> Any:
        config = deepcopy(wild.model.config)
        config.num_hidden_layers = layers
        return type(wild.model)(config)

    get_peft_model(base(made_on), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    adapter = Adapter.read(tmp_path)
    assert LocalTarget("local/same", base(made_on), wild.tokenizer, weights="").with_adapter(adapter).checked()
    target = LocalTarget("local/other", base(put_on), wild.tokenizer, weights="").with_adapter(adapter)
    what = "weights for" if made_on > put_on else "no weights for"
    with pytest.raises(TargetError, match=rf"cannot put the adapter .*it has {what} .*layers\.2.*Is it for this model"):
        target.checked()


def test_an_adapter_knows_the_weights_that_it_was_trained_on(
    tiny: Any, wild: Any, adapter: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = adapter
    plain = Adapter.read(folder)
    assert plain.base == ""
    assert tiny.with_adapter(plain).checked()
    assert not caplog.messages
    config = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "somebody/another"}))
    assert mark(tiny.model) == mark(resolve("local/tiny", dtype="bf16").model) != mark(wild.model)
    for base in (mark(tiny.model), mark(wild.model)):
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={BASE: base})
        made = Adapter.read(tmp_path)
        assert made.base == base
        if base == mark(tiny.model):
            assert tiny.with_adapter(made).checked()
        else:
            with pytest.raises(TargetError, match="was trained on other weights than those of local/tiny"):
                tiny.with_adapter(made)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    tiny.with_adapter(Adapter.read(tmp_path))
    assert caplog.messages == [f"the adapter {tmp_path} names somebody/another as its base; it is put on local/tiny"]


def test_what_would_bend_replies_and_is_not_followed_is_said(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    said = json.loads((folder / "generation_config.json").read_text())
    resolve(f"local/{folder}")
    assert not caplog.messages
    (folder / "generation_config.json").write_text(json.dumps(said | {"repetition_penalty": 1.5, "min_length": 0}))
    resolve(f"local/{folder}")
    (message,) = caplog.messages
    assert "asks for repetition_penalty=1.5 when it writes" in message


def test_what_is_made_of_a_target_tells_the_same_user(tiny: Any, adapter: tuple[Path, Any]) -> None:
    heard: list[str] = []
    target = load("tiny")
    target.say = heard.append
    for made in (target.under([]), target.with_adapter(Adapter.read(adapter[0]))):
        made.say("something")
    assert heard == ["something"] * 2
    assert load("tiny").say.__self__.name == "truing.targets.local"


@pytest.fixture(scope="module")
def other(wild: Any) -> Any:
    """`wild` with noise on one matrix."""
    model = deepcopy(wild.model)
    noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.add_(0.2 * noise)
    return LocalTarget("local/other", model, wild.tokenizer, weights="4" * 64)


def test_divergence_is_the_exact_sum_over_the_vocabulary(wild: Any, other: Any) -> None:
    asked, reply = user("Tell me about boats."), "A boat is made of wood."
    prompt, ids = wild.prompt_ids(asked), wild.text_ids(reply)
    p, q = (log_p(t.model, [*prompt, *ids])[len(prompt) - 1 : -1] for t in (wild, other))
    there, back = float((p.exp() * (p - q)).sum()), float((q.exp() * (q - p)).sum())
    assert abs(there - back) > 0.01 * there > 1e-3  # its direction matters
    assert wild.divergence(other, asked, reply) == (pytest.approx(there, rel=1e-4), len(ids))
    assert other.divergence(wild, asked, reply) == (pytest.approx(back, rel=1e-4), len(ids))
    assert wild.divergence(wild, asked, reply) == (0.0, len(ids))


@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_never_below_zero(wild: Any, other: Any, seed: int) -> None:
    rng = random.Random(seed)
    words = wild.tokenizer.decode(rng.choices(range(4, 1536), k=rng.randint(1, 12)))
    assert wild.divergence(other, user("Go on."), f"a{words}")[0] >= 0


# -- another architecture ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random decoder with learned positions, biases and layer norms, and a tokenizer without a chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    state = torch.get_rng_state()
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=1536, n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return resolve(f"local/{folder}")


def test_another_decoder_is_scored_through_the_tree(gpt2: Any) -> None:
    paths = [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 10, 11]), ([5, 6], [1200]), ([900, 4], [4, 4, 4])]
    found, _ = gpt2.log_probs(paths)
    for (prompt, continuation), values in zip(paths, found, strict=True):
        every = log_p(gpt2.model, [*prompt, *continuation])[len(prompt) - 1 : -1]
        expected = every[torch.arange(len(continuation)), torch.tensor(continuation)]
        torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=0)


def test_another_decoder_replies_as_transformers_does(gpt2: Any) -> None:
    assert gpt2.prompt_text(user("Hello.")) == "user: Hello.\nassistant:"
    prompts = [[5, 6, 7, 8, 9], [5, 6, 30], [700]]
    expected = [peers(gpt2.model, prompt, max_tokens=5, stop=[0]) for prompt in prompts]
    assert min(gap for _, gap in expected) > 1e-4
    assert greedy(gpt2.model, prompts, max_tokens=5, stop={0}) == [ids for ids, _ in expected]


def test_another_decoder_can_be_traced_but_not_trained_and_says_why(gpt2: Any, tmp_path: Path) -> None:
    assert gpt2.card.abilities == ("Scored", "Chat", "WhiteBox")
    with pytest.raises(TargetError, match=r"Trainable: .* with layers named q_proj, v_proj, up_proj and down_pr"):
        need(gpt2, "Trainable")
    with open_store(tmp_path / "store") as store:
        (claim, _) = audit(gpt2, ["anchoring"], store)
        with pytest.raises(TargetError, match="has no ability Trainable"):
            wheel_of(claim.id, store, ability="Trainable")
    f = gpt2.functional(Decision(actions=("yes",), alternatives=("no",)), user("Is it?"))
    with pytest.raises(TargetError, match=r"GPT2LMHeadModel is built otherwise\. Use a Llama"):
        read(gpt2.model, f.tree, f.before_M.unique())
    config = gpt2.model.config
    assert Settings(heads=(10**6,)).within(gpt2).heads == (config.n_layer * config.n_head // 4,)


def random_model(kind: str, **settings: Any) -> Any:
    """A random decoder of an architecture of transformers."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=1536, bos_token_id=0, eos_token_id=0, **settings)
    state = torch.get_rng_state()
    torch.manual_seed(9)
    model = getattr(transformers, f"{kind}ForCausalLM", None) or getattr(transformers, f"{kind}LMHeadModel")
    model = model(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15)
    torch.set_rng_state(state)
    return model


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "abilities"),
    [
        ("Llama", SMALL, ("Scored", "Chat", "WhiteBox", "Trainable")),
        ("Mistral", SMALL, ("Scored", "Chat", "WhiteBox", "Trainable")),
        ("Qwen2", SMALL, ("Scored", "Chat", "WhiteBox", "Trainable")),  # biases
        ("Gemma2", SMALL, ("Scored", "Chat", "WhiteBox", "Trainable")),  # another activation, norms that add 1
        ("Phi3", SMALL, ("Scored", "Chat", "WhiteBox")),  # fused projections
        ("GPTNeoX", {**SMALL, "max_position_embeddings": 64}, ("Scored", "Chat", "WhiteBox")),
        ("Mixtral", {**SMALL, "num_local_experts": 2}, ("Scored", "Chat")),  # experts instead of neurons
    ],
)
def test_what_an_architecture_can_do(
    tiny: Any, kind: str, settings: dict[str, Any], abilities: tuple[str, ...]
) -> None:
    model = random_model(kind, **settings)
    probe(model)
    assert LocalTarget(f"local/{kind}", model, tiny.tokenizer, weights="5" * 64).card.abilities == abilities


@pytest.mark.parametrize(
    ("kind", "settings", "abilities"),
    [
        ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, ("Scored", "Chat")),
        ("Mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2}, ("Scored", "Chat")),  # no error: it would score wrongly
        (
            "Jamba",
            {**SMALL, "num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
            ("Scored", "Chat", "Trainable"),
        ),
    ],
)
def test_an_architecture_that_cannot_be_given_a_tree_is_given_each_text_by_itself(
    tiny: Any, tmp_path: Path, caplog: Any, kind: str, settings: dict[str, Any], abilities: tuple[str, ...]
) -> None:
    random_model(kind, **settings).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    target = resolve(f"local/{tmp_path}")
    assert re.search(
        rf"\({kind}ForCausalLM\) takes no trees of texts \(.+\): every text goes through it by", caplog.text
    )
    assert target.card.abilities == abilities
    asked = [(Message(role="user", content=text),) for text in ("What is it?", "What is it? Say it.")]
    prompts = [target.prompt_ids(messages) for messages in asked]
    values, tokens = target.log_probs([(prompt, target.text_ids("It is red.")) for prompt in prompts])
    assert tokens == sum(len(prompt) + len(one) - 1 for prompt, one in zip(prompts, values, strict=True))
    for prompt, one in zip(prompts, values, strict=True):
        (by_itself,), _ = target.log_probs([(prompt, target.text_ids("It is red."))])
        torch.testing.assert_close(one, by_itself, atol=1e-5, rtol=1e-5)
    replies = target.reply(asked, max_tokens=5)
    assert replies == [target.reply([messages], max_tokens=5)[0] for messages in asked]


def test_marks_are_what_the_template_puts_around_turns_and_what_ends_them(tiny: Any) -> None:
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<filename>"]})  # of code, in pretraining
    target = LocalTarget("local/marked", tiny.model, tokenizer, weights="7" * 64)
    assert target.marks == tiny.marks == {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}


# -- attention windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Mistral", {"sliding_window": 16}),
        ("Mistral", {"sliding_window": None}),
        ("Gemma2", {"sliding_window": 16}),
        ("Qwen2", {"sliding_window": 16, "use_sliding_window": False}),
        ("Qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2}),  # no layer has it
        ("Qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_a_window_reaches_back_over_ancestors_alone(tiny: Any, kind: str, settings: dict[str, Any]) -> None:
    target = LocalTarget("local/w", random_model(kind, **SMALL, **settings), tiny.tokenizer, weights="6" * 64)
    rng = random.Random(3)
    start = rng.choices(range(4, 1536), k=30)
    paths = [
        (start[:3], start[3:]),
        (start, rng.choices(range(4, 1536), k=25)),
        (start, rng.choices(range(4, 1536), k=2)),
    ]
    found, _ = target.log_probs(paths)
    for (prompt, continuation), values in zip(paths, found, strict=True):
        every = log_p(target.model, [*prompt, *continuation])[len(prompt) - 1 : -1]
        expected = every[torch.arange(len(continuation)), torch.tensor(continuation)]
        torch.testing.assert_close(values.double(), expected, atol=1e-4, rtol=0)


def test_training_and_divergence_look_through_windows_as_the_model_does(tiny: Any) -> None:
    model = random_model("Mistral", **SMALL, sliding_window=12)
    target = LocalTarget("local/w", model, tiny.tokenizer, weights="6" * 64)
    asked, text = user("Hi."), "and then it went on and on for a long while, longer than anybody could see"
    prompt, ids = target.prompt_ids(asked), target.text_ids(text)
    batch = lay(target, [Pair(plot="p", surface="s", messages=asked, chosen=text, rejected="no", role="fix")])
    every = log_p(model, [*prompt, *ids])[len(prompt) - 1 :]
    expected = every[torch.arange(len(ids)), torch.tensor(ids)].sum()
    end = every[len(ids), target.tokenizer.eos_token_id]  # training takes the end of the turn in
    with torch.no_grad():
        chosen = float(batch.log_probs(model)[0][0])
    assert min(abs(chosen - float(expected)), abs(chosen - float(expected + end))) < 1e-3
    assert target.divergence(target, asked, text)[0] == 0.0


def test_tracing_goes_over_whole_texts_and_minds_the_window(tiny: Any) -> None:
    target = LocalTarget(
        "local/w", random_model("Mistral", **SMALL, sliding_window=12), tiny.tokenizer, weights="6" * 64
    )
    text = "and then it went on and on for a long while, longer than anybody could see"
    with pytest.raises(TargetError, match=r"longer than the attention window of local/w \(12\)"):
        target.functional(Decision(actions=(text,), alternatives=("no",)), user("Hi."))


def test_a_window_that_attention_is_not_told_of_is_minded(tiny: Any) -> None:
    model = random_model("Mistral", **SMALL, sliding_window=12)
    target = LocalTarget("local/w", model, tiny.tokenizer, weights="6" * 64)
    model.model.layers[1].self_attn.config = deepcopy(model.config)
    model.model.layers[1].self_attn.config.sliding_window = None
    text = "and then it went on and on for a long while, longer than anybody could see"
    for ask in (lambda: target.reply([user("Hi.")], max_tokens=12), lambda: target.bits(text)):
        with pytest.raises(TargetError, match=r"longer than the attention window of local/w \(12\)"):
            ask()


# -- devices, number formats, changes by name --------------------------------------------------------------------------


def test_bf16_is_near_fp32_and_says_so(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model("Llama", **SMALL).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    whole = resolve(f"local/{tmp_path}")
    monkeypatch.setenv("TRUING_DTYPE", "bf16")
    half = resolve(f"local/{tmp_path}")
    assert (whole.card.dtype, half.card.dtype) == ("float32", "bfloat16")
    paths = [([5, 6, 7], [8, 9]), ([5, 6], [1200])]
    for a, b in zip(whole.log_probs(paths)[0], half.log_probs(paths)[0], strict=True):
        torch.testing.assert_close(a, b, atol=0.2, rtol=0)
        assert not torch.equal(a, b)
    assert half.reply([user("Hello.")], max_tokens=3)[0].tokens >= 1


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TRUING_DTYPE", "fp8", "unknown dtype 'fp8'; give fp32 or bf16"),
        ("TRUING_DEVICE", "gpu please", "unknown device 'gpu please'; give cpu, cuda or cuda:N"),
        ("TRUING_DEVICE", "cuda:77", r"no device 'cuda:77' here \(\d+ accelerators\); give cpu"),
    ],
)
def test_a_device_or_number_format_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TargetError, match=said):
        resolve("local/tiny")


def test_changes_in_a_file_are_part_of_a_name(tiny: Any, tmp_path: Path) -> None:
    changes = [add(Units("residual", 1), torch.ones(64), 0.3)]
    change.write(tmp_path / "a+b.safetensors", changes)
    name = f"local/tiny+{tmp_path / 'a+b.safetensors'}"
    steered = resolve(name)
    assert steered.card.name == name
    assert steered.card.weights == tiny.under(changes).card.weights != tiny.card.weights
    paths = [([5, 6, 7], [8, 9])]
    assert not torch.allclose(steered.log_probs(paths)[0][0], tiny.log_probs(paths)[0][0])
    with pytest.raises(TargetError, match=r"cannot read changes from .*nothing"):
        resolve("local/tiny+nothing.safetensors")


# -- conversations -----------------------------------------------------------------------------------------------------

LOOK = Tool(name="look", description="looks", parameters='{"properties":{"at":{"type":"string"}},"type":"object"}')


def test_tools_stand_in_the_prompt_and_what_is_written_is_parsed(wild: Any) -> None:
    assert wild.dialect.said == "hermes (system turn)"
    plain, offered = (wild.prompt_text(user("Hello."), tools) for tools in ((), (LOOK,)))
    assert "look" not in plain
    assert '"name": "look"' in offered
    said = '<tool_call>{"name": "look", "arguments": {"at": "it"}}</tool_call>'
    for text, calls, unparsed in (
        (said, (ToolCall(name="look", arguments='{"at":"it"}', id="call_0"),), False),
        (said.replace("look", "jump"), (), True),
        ("no call", (), False),
    ):
        reply = wild.reply_of(Written((5, 0), text, "stop"), [LOOK])
        assert (reply.calls, reply.unparsed) == (calls, unparsed)
        assert reply.text == ("" if calls else text)
        assert wild.reply_of(Written((5, 0), text, "stop")).text == text  # nothing was offered
    answered = (*user("Hello."), Message(role="assistant", content="", calls=calls or reply.calls), *user("And?"))
    assert wild.prompt_ids(answered, [LOOK]) != wild.prompt_ids(answered)
    assert wild.reply([user("Hello.")], max_tokens=4, tools=[LOOK])[0].tokens == 4


def test_a_conversation_that_the_template_refuses_is_told_with_its_roles(tiny: Any) -> None:
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    target = LocalTarget("local/t", tiny.model, tokenizer, weights="5" * 64)
    assert target.prompt_text(user("Hello.")) == "Hello."
    refused = (Message(role="system", content="Be brief."), *user("Hello."))
    with pytest.raises(TargetError, match=r"local/t refuses the conversation \(system, user\): no system role here\."):
        target.reply([refused], max_tokens=2)


def test_tokens_and_texts_that_cannot_be_scored_are_refused(tiny: Any) -> None:
    for paths, said in (
        ([([5], [99999])], r"token id 99999 is out of the range of local/tiny \(0 to 1535\)"),
        ([([-4], [5])], "token id -4 is out of the range"),
        ([([5], [])], "a continuation has no tokens"),
        ([([], [5])], "a prompt has no tokens"),
        ([([5], [6]), ([], [5, 6])], "a prompt has no tokens"),
        ([([5] * 4090, [6] * 10)], "a text of 4099 tokens is longer than the context of local/tiny"),
    ):
        with pytest.raises(TargetError, match=said):
            tiny.log_probs(paths)
    assert tiny.log_probs([]) == ([], 0)
    assert tiny.decide([]) == ([], 0)
    assert tiny.reply([], max_tokens=5) == []
