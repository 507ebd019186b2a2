"""One attribution by circuit-tracer, in an environment of its own; prints what it took as one JSON object.

    python run.py FOLDER SET TOKENS FEATURES BATCH [EDGES]

FOLDER holds a Llama checkpoint in `model/`, a set of transcoders in SET, and `case.json` with token ids and the two
targets; EDGES is a safetensors file for what was found. The model goes through TransformerLens, which circuit-tracer
takes by default and calls the faster of its two ways, from a folder instead of the hub: its own configuration for this
architecture, its own conversion of weights, its own loader of transcoders.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

WARM = 24
"""Tokens of the run before the clock."""


def loaded(folder: Path, name: str) -> Any:
    """The replacement model with a set of transcoders, all weights in memory."""
    hf = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    c = hf.config
    cfg = HookedTransformerConfig(
        d_model=c.hidden_size, d_head=c.head_dim, n_heads=c.num_attention_heads, d_mlp=c.intermediate_size,
        n_layers=c.num_hidden_layers, n_ctx=c.max_position_embeddings, eps=c.rms_norm_eps, d_vocab=c.vocab_size,
        act_fn="silu", n_key_value_heads=c.num_key_value_heads, normalization_type="RMS",
        positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_dim=c.head_dim, final_rms=True,
        gated_mlp=True, rotary_base=c.rope_theta, device="cpu", dtype=torch.float32, model_name="llama-of-a-folder",
        original_architecture="LlamaForCausalLM",
    )  # fmt: skip
    words = {str(n): n for n in range(c.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), bos_token=str(c.bos_token_id),
        eos_token=str(c.eos_token_id), pad_token=str(c.pad_token_id),
    )  # fmt: skip
    tokenizer.save_pretrained(folder / "tokenizer")  # TransformerLens loads it again from where it stands
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = TransformerLensReplacementModel(cfg, tokenizer=tokenizer)
    model.load_and_process_state_dict(
        convert_llama_weights(hf, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    place, settings = folder / name, yaml.safe_load((folder / name / "config.yaml").read_text())
    common = {"device": torch.device("cpu"), "dtype": torch.float32, "lazy_encoder": False, "lazy_decoder": False}
    hooks = (settings["feature_input_hook"], settings["feature_output_hook"])
    if settings["model_kind"] == "cross_layer_transcoder":
        transcoders = load_clt(str(place), *hooks, **common)
    else:
        files = {n: str(place / f"layer_{n}.safetensors") for n in range(c.num_hidden_layers)}
        transcoders = load_transcoder_set(files, name, *hooks, **common)
    model._configure_replacement_model(transcoders)
    return model


def main(folder: Path, name: str, tokens: int, features: int, batch: int, edges: str = "") -> dict[str, Any]:
    """Time and memory of one run, after a short one."""
    case = json.loads((folder / "case.json").read_text())
    model, targets = loaded(folder, name), torch.tensor(case["targets"])

    def trace(length: int, count: int) -> Any:
        ids = torch.tensor(case["ids"][:length])
        return attribute(ids, model, attribution_targets=targets, batch_size=batch, max_feature_nodes=count)

    trace(WARM, 2 * batch)
    began = resident()
    usage, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    graph = trace(tokens, features)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall": wall, "cpu": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "extra": peak() - began, "active": len(graph.active_features), "selected": len(graph.selected_features),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    if edges:
        save_file(
            {"features": graph.active_features[graph.selected_features].contiguous(),
             "values": graph.activation_values[graph.selected_features].contiguous(),
             "adjacency": graph.adjacency_matrix.contiguous(), "tokens": graph.input_tokens.contiguous()},
            edges,
        )  # fmt: skip
    return found


def resident() -> float:
    """MiB in memory now, what was freed given back; from now on the peak is counted anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> float:
    """The most MiB since then."""
    return status("VmHWM")


def status(name: str) -> float:
    """A line of the process's status, in MiB."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]), *sys.argv[6:7])))
