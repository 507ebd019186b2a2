"""Open weights: any Hugging Face decoder as a target that can be scored, asked, read, patched and trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from truing.errors import CacheError, TargetError
from truing.records import Decision, Message, Row, Surface, Target, digest, digest_of
from truing.targets.local import bundled, cache, tiny
from truing.targets.local.adapter import MODULES, Adapter
from truing.targets.local.generate import greedy
from truing.targets.local.inside import blocks, forward
from truing.targets.local.onednn import speed_up
from truing.targets.local.probe import probe
from truing.targets.local.tree import Tree, plant
from truing.targets.protocols import Reply

BUNDLED = {"smollm2-135m": (bundled.FOLDER, bundled.build), "tiny": (tiny.FOLDER, tiny.build)}
NEUTRAL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Entries of a configuration that change no answer, or that stand in the card already."""


Made = tuple[tuple[Target, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Functional:
    """A decision in one context as a linear functional of log-probabilities over a tree.

    value = sum over M of weight_M * log p(token at node_M | the node before it), in nats per token.
    """

    tree: Tree
    nodes_M: Tensor
    """Nodes of the continuation tokens."""
    weight_M: Tensor
    prompt: int
    """Tokens of the prompt; nodes from here on are continuations."""

    @property
    def before_M(self) -> Tensor:
        """Node whose output predicts each continuation token."""
        return self.tree.parent_N[self.nodes_M]


class LocalTarget:
    """A model with its tokenizer. Weights are never changed in place; an adapter makes a new target."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, *, weights: str, made: Made = (), adapter: Adapter | None = None
    ) -> None:
        """`weights`: a digest of the weights alone. With an adapter, `model` is what it is put on, and `made` as below
        that of the target which has this model.
        """
        self.tokenizer = tokenizer
        self._model, self._adapter = model, adapter
        self._tokens: dict[tuple[Message, ...], list[int]] = {}
        self._limits = _limits(model.config.get_text_config())
        self.card = Target(
            name=name,
            weights=digest_of({"weights": weights, "config": _config(model), "stop": sorted(self._stop_ids())}),
            template=_template_digest(tokenizer),
            dtype=str(model.dtype).removeprefix("torch."),
            abilities=_abilities(model),
            adapter=adapter and adapter.blob,
            adapter_config=adapter.config if adapter else "",
            parents=tuple(card.id for card, _ in made[-1:]),
        )
        self.made: Made = (*made, (self.card, adapter.weights if adapter else None))
        """What the target was made of, the base first: cards, and the file of the adapter that gave each."""

    @cached_property
    def model(self) -> Any:
        """The model; an adapter is merged into a copy when it is first needed. TargetError where it does not fit."""
        return self._adapter.onto(self._model).eval() if self._adapter else self._model

    def checked(self) -> Self:
        """The same, its adapter merged by now."""
        _ = self.model
        return self

    # -- text to tokens ------------------------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation in the model's own chat template, ready for a reply."""
        turns = [message.model_dump() for message in messages]
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the conversation. TargetError where they do not fit the context."""
        known = self._tokens.get(key := tuple(messages))
        if known is None:
            known = self._tokens[key] = self._prompt_ids(messages)
        return known

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.fits(self.tokenizer(self.prompt_text(messages), add_special_tokens=False)["input_ids"])

    def prompt_offsets(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Character span of every prompt token in `prompt_text`."""
        encoded = self.tokenizer(self.prompt_text(messages), add_special_tokens=False, return_offsets_mapping=True)
        return [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a continuation. TargetError where it is empty."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise TargetError(f"the continuation {text!r} has no tokens; give an action that is not empty")
        return ids

    def fits(self, ids: Sequence[int], *, more: int = 0) -> list[int]:
        """The tokens as a list. TargetError where they, and so many more, are longer than the model can be given."""
        for what, limit in self._limits.items():
            if len(ids) + more > limit:
                raise TargetError(
                    f"a text of {len(ids) + more} tokens is longer than the {what} of {self.card.name} ({limit});"
                    " shorten it"
                )
        return list(ids)

    # -- Scored --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_probs(self, paths: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[list[Tensor], int]:
        """Log-probability of every continuation token, for (prompt, continuation) pairs, and the tokens computed."""
        # Nothing follows the last token of a continuation, so it needs no node.
        tree, routes = plant([self.fits([*prompt, *continuation])[:-1] for prompt, continuation in paths])
        before = [route[len(prompt) - 1 :] for (prompt, _), route in zip(paths, routes, strict=True)]
        kept, inverse = torch.cat(before).unique(return_inverse=True)
        tokens = torch.tensor([token for _, continuation in paths for token in continuation])
        logits = forward(self.model, tree, kept).logits[0].float()
        values = torch.log_softmax(logits, -1).cpu()[inverse, tokens]
        return list(values.split([len(nodes) for nodes in before])), len(tree)

    def decide(self, surfaces: Sequence[Surface]) -> tuple[list[tuple[Row, ...]], int]:
        """The decision in every case of every surface; with their priors they go through the model as one tree."""
        paths: list[tuple[list[int], list[int]]] = []
        for surface in surfaces:
            texts = [self.text_ids(text) for text in (*surface.decision.actions, *surface.decision.alternatives)]
            contexts = [case.messages for case in surface.cases] + (
                [surface.decision.prior] if surface.decision.prior else []
            )
            paths += [(self.prompt_ids(messages), text) for messages in contexts for text in texts]
        found, tokens = self.log_probs(paths)
        means = iter([float(values.double().mean()) for values in found])
        return [_rows(surface, means) for surface in surfaces], tokens

    # -- Chat ----------------------------------------------------------------------------------------------------------

    def reply(self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int) -> list[Reply]:
        """Greedy replies of 1 to `max_tokens` tokens, as one batch. TargetError where they may not fit the context."""
        prompts = [self.prompt_ids(messages) for messages in conversations]
        self.fits(max(prompts, key=len), more=max_tokens)
        stop = self._stop_ids()
        replies = []
        for ids in greedy(self.model, prompts, max_tokens=max_tokens, stop=stop):
            text = self.tokenizer.decode([i for i in ids if i not in stop], skip_special_tokens=True)
            replies.append(Reply(text=text.strip(), tokens=len(ids), finished=ids[-1] in stop))
        return replies

    def _stop_ids(self) -> set[int]:
        eos = self._model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}

    # -- WhiteBox and Trainable ----------------------------------------------------------------------------------------

    def functional(self, decision: Decision, messages: Sequence[Message]) -> Functional:
        """The decision in one context as a functional over its tree (without the prior, which no context changes)."""
        prompt = self.prompt_ids(messages)
        texts = [self.text_ids(text) for text in (*decision.actions, *decision.alternatives)]
        tree, routes = plant([self.fits([*prompt, *text]) for text in texts])
        split = len(decision.actions)
        nodes, weights = [], []
        for index, route in enumerate(routes):
            target = route[len(prompt) :]
            sign = 1 / split if index < split else -1 / (len(texts) - split)
            nodes.append(target)
            weights.append(torch.full((len(target),), sign / len(target)))
        return Functional(tree, torch.cat(nodes), torch.cat(weights), len(prompt))

    @torch.no_grad()
    def bits(self, text: str) -> tuple[float, int, int]:
        """Bits that the model needs for a text after its begin token, the text's bytes, and its tokens."""
        ids = self.text_ids(text)
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        (values,), _ = self.log_probs([([start], ids)])
        return float(-values.double().sum() / math.log(2)), len(text.encode()), len(ids)

    @torch.no_grad()
    def divergence(self, other: LocalTarget, messages: Sequence[Message], reply: str) -> tuple[float, int]:
        """Sum over a reply's tokens of KL(self || other) over the whole vocabulary, nats, and the number of tokens."""
        prompt, ids = self.prompt_ids(messages), self.text_ids(reply)
        tree, (route,) = plant([self.fits([*prompt, *ids])])
        before = route[len(prompt) - 1 : -1]
        p, q = (torch.log_softmax(forward(t.model, tree, before).logits[0].double(), -1) for t in (self, other))
        return float((p.exp() * (p - q)).sum()), len(ids)

    def with_adapter(self, adapter: Adapter) -> LocalTarget:
        """A new target with a PEFT adapter merged into a copy of the weights."""
        weights = digest_of({"base": self.card.weights, "adapter": adapter.id})
        name = f"{self.card.name}@{adapter.id[:12]}"
        return LocalTarget(name, self.model, self.tokenizer, weights=weights, made=self.made, adapter=adapter)


def load(name: str) -> LocalTarget:
    """`smollm2-135m`, `tiny`, a folder, or a hub id, each optionally followed by `@adapter-folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    base, adapter = _split(name)
    if adapter:
        return load(base).with_adapter(Adapter.read(Path(adapter))).checked()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name == "tiny":
        # Its matrices are too small to share. For the whole process and for good: scoring, tracing and training all
        # run it, and the last digits of its results depend on the number of threads.
        torch.set_num_threads(1)
    if name in BUNDLED:
        place: Path | str = cache.built(*BUNDLED[name])
        weights = _checked_weights(Path(place))
    else:
        place, weights = name, _weights_digest(Path(name)) if Path(name).is_dir() else ""
    try:
        # Pickled weights are refused: loading them can run code.
        model, seen = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise TargetError(
            f"cannot load local/{name}: {str(error).splitlines()[0]}."
            f" Give {', '.join(f'local/{known}' for known in BUNDLED)}, a folder with a checkpoint, or a hub id."
        ) from error
    if absent := sorted(seen["missing_keys"]):
        # transformers would fill them at random, and the target would be another one each time.
        raise TargetError(
            f"local/{name} lacks {len(absent)} weights that a {type(model).__name__} has, {absent[0]} among them."
            " Give a whole checkpoint."
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
        )
    for parameter in model.eval().parameters():
        parameter.requires_grad_(False)
    if name not in BUNDLED:
        probe(model)
    speed_up(model)
    # A hub id names whatever the hub holds today; the revision that was loaded identifies it.
    weights = weights or digest_of({"hub": name, "revision": getattr(model.config, "_commit_hash", None)})
    return LocalTarget(f"local/{name}", model, tokenizer, weights=weights)


def _split(name: str) -> tuple[str, str]:
    """Base and adapter folder, "" where there is none. Folders may have an @ in their own names."""
    if name in BUNDLED or "@" not in name or Path(name).is_dir():
        return name, ""
    at = [place for place, letter in enumerate(name) if letter == "@"]
    cut = next((place for place in at if Path(name[place + 1 :]).is_dir()), at[-1])
    return name[:cut], name[cut + 1 :]


def _rows(surface: Surface, means: Iterator[float]) -> tuple[Row, ...]:
    """The decision in each case, from mean log-probabilities per token in the order of the paths."""
    actions, alternatives = len(surface.decision.actions), len(surface.decision.alternatives)

    def following() -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        a, b = tuple(islice(means, actions)), tuple(islice(means, alternatives))
        return sum(a) / actions - sum(b) / alternatives, a, b

    found = [(case.cell, following()) for case in surface.cases]
    prior = following()[0] if surface.decision.prior else 0.0
    return tuple(Row(cell=cell, value=value - prior, actions=a, alternatives=b) for cell, (value, a, b) in found)


def _checked_weights(place: Path) -> str:
    said = cache.sealed(place).get("model.safetensors", {}).get("sha256")
    if cache.file_digest(place / "model.safetensors") != said:
        raise CacheError(
            f"cached weights in {place} are damaged ({cache.SEAL} names another digest, or none)."
            " Delete the folder; it is built again."
        )
    return str(said)


def _weights_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TargetError(f"{folder} holds no .safetensors weights (pickled weights are not read)")
    return digest_of([cache.file_digest(file) for file in files])


def _abilities(model: Any) -> tuple[str, ...]:
    """What can be done with a model of this architecture."""
    abilities = ["Scored", "Chat"]
    with suppress(TargetError):
        blocks(model)
        abilities.append("WhiteBox")
    if {name.rpartition(".")[2] for name, _ in model.named_modules()}.issuperset(MODULES):
        abilities.append("Trainable")
    return tuple(abilities)


def _limits(config: Any) -> dict[str, int]:
    """The longest texts that a model can be given, by what limits them.

    A tree brings its own attention mask, which replaces the windows that some layers would look through. Up to the
    length of the window both are the same.
    """
    kinds = set(getattr(config, "layer_types", None) or ("sliding_attention",))
    limits = {"context": getattr(config, "max_position_embeddings", None)}
    if "sliding_attention" in kinds and getattr(config, "use_sliding_window", True):
        limits["attention window"] = getattr(config, "sliding_window", None)
    if "chunked_attention" in kinds:
        limits["attention chunk"] = getattr(config, "attention_chunk_size", None)
    return {what: limit for what, limit in limits.items() if limit is not None}


def _config(model: Any) -> str:
    """What of a model's configuration determines its answers, as JSON with sorted keys."""
    said = json.loads(model.config.to_json_string())
    return json.dumps({key: value for key, value in said.items() if key not in NEUTRAL}, sort_keys=True)


def _template_digest(tokenizer: Any) -> str:
    backend = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else str(tokenizer)
    return digest_of({"tokenizer": digest(backend.encode()), "template": tokenizer.chat_template or ""})
