"""`local/tiny`: a seeded random Llama of 0.2 million parameters with one planted circuit.

Its weights are random but for one attention head pair that copies: it attends evenly to everything before it and
adds a part of what stood there to the residual stream. With tied embeddings that raises the log-probability of every
word in the context, so the claim "it asserts what the context says" is true of it by construction, and the heads that
carry it are known. It can do nothing else: it serves tests, docs and examples.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from truing.records.content import folder

FOLDER = "tiny-1"
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, NEURONS = 3, 64, 4, 2, 16, 128
COPY_LAYER, COPY_HEADS, COPY_GAIN = 1, (0, 1), 20.0

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def build(place: Path) -> None:
    """Write the tiny model and its tokenizer into a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shutil.copyfile(folder("truing.targets.local", "tiny-tokenizer.json"), place / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(place / "tokenizer.json"), eos_token=SPECIAL[0], pad_token=SPECIAL[0], bos_token=SPECIAL[0]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(place)
    eos = tokenizer.convert_tokens_to_ids(SPECIAL[0])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
        dtype="float32",
    )
    state = torch.get_rng_state()
    torch.manual_seed(20260101)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.03)
        model.model.embed_tokens.weight.normal_(0, 0.25)
        attention = model.model.layers[COPY_LAYER].self_attn
        for head in COPY_HEADS:
            rows = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            attention.q_proj.weight[rows] = 0  # the same score everywhere: even attention
            basis = torch.linalg.qr(torch.randn(WIDTH, HEAD_WIDTH))[0]
            shared = slice((head // (HEADS // KV_HEADS)) * HEAD_WIDTH, (head // (HEADS // KV_HEADS) + 1) * HEAD_WIDTH)
            if head == COPY_HEADS[0]:
                attention.v_proj.weight[shared] = basis.T
            attention.o_proj.weight[:, rows] = COPY_GAIN * attention.v_proj.weight[shared].T
    torch.set_rng_state(state)
    model.save_pretrained(place)
