"""Open weights: any Hugging Face decoder as a target that can be scored, asked, read, patched and trained."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice
from logging import getLogger
from pathlib import Path
from typing import Any, Self

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor

from truing.errors import CacheError, StoreError, TargetError
from truing.files import check_empty
from truing.records import Decision, Message, Row, Surface, Target, Tool, digest, digest_of
from truing.targets.local import bundled, cache, change, tiny
from truing.targets.local.adapter import MODULES, Adapter, mark
from truing.targets.local.attention import alone
from truing.targets.local.generate import Batch, write
from truing.targets.local.inside import forward, hidden
from truing.targets.local.lift import in_one_format, lifted, weights_dtype
from truing.targets.local.memory import BLOCK, ROWS, Costs, Plan, budget, parsed_bytes, plan_rows, plan_scores
from truing.targets.local.onednn import speed_up
from truing.targets.local.paths import computed
from truing.targets.local.probe import looks_through_windows, probe
from truing.targets.local.sample import GREEDY, Sampling
from truing.targets.local.score import walk
from truing.targets.local.tree import Tree, plant, takes_trees
from truing.targets.local.write import Ask, Token, Written
from truing.targets.protocols import Reply
from truing.targets.tools import PLAIN, Dialect, parsed, spoken, turns
from truing.text import short

BUNDLED = {"smollm2-135m": (bundled.FOLDER, bundled.build), "tiny": (tiny.FOLDER, tiny.build)}
NEUTRAL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Entries of a configuration that change no answer, or that stand in the card already."""


BENDING = (
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
    "exponential_decay_length_penalty",
)  # fmt: skip
"""What transformers' generate would heed at temperature 0 as well."""
AT_ONCE = 16
"""Rows of logits that are normalized at once."""
COPIES = 4
"""Weights are copied, for faster products, where that takes no more than this part of what may be planned for."""
NOTABLE = 1_000_000_000
"""Bytes beyond the weights from which on it is said how much a piece of work takes."""
CONVERSATIONS = 4096
"""Conversations whose tokens are remembered."""
WINDOW = "attention window"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_log = getLogger(__name__)

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
        self._known_ids = lru_cache(CONVERSATIONS)(self._ids)
        self._limits = _limits(model.config.get_text_config())
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.say: Callable[[str], None] = _log.warning
        """Is told what a user should know of the work as it goes."""
        self.max_memory = 0
        """Bytes that work may be planned for beyond the weights; 0 leaves it to `memory.budget`."""
        self._most_said = NOTABLE
        self._under: frozenset[str] = frozenset()
        self.card = Target(
            name=name,
            weights=digest_of({"weights": weights, "config": _config(model), "stop": sorted(self.stop_ids)}),
            template=_template_digest(tokenizer),
            dtype=str(weights_dtype(model)).removeprefix("torch."),
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

    @cached_property
    def lifted(self) -> LocalTarget:
        """The same with fp32 between its layers, which adapters are trained on and beside; itself in fp32.

        For work within a process: no name loads it.
        """
        if (model := lifted(self.model)) is self.model:
            return self
        weights = digest_of({"base": self.card.weights, "lifted": True})
        return self._allow(LocalTarget(f"{self.card.name}, lifted", model, self.tokenizer, weights=weights))

    @property
    def adapter(self) -> Adapter | None:
        """What was put on what this was made of last."""
        return self._adapter

    def checked(self) -> Self:
        """The same, its adapter merged by now."""
        _ = self.model
        return self

    # -- text to tokens ------------------------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The conversation in the model's own chat template, ready for a reply.

        TargetError where the template refuses it: some have no system turn, some want turns to alternate.
        """
        return self._prompted(messages, tools, reply=True)

    def _prompted(self, messages: Sequence[Message], tools: Sequence[Tool], *, reply: bool) -> str:
        said, offered = turns(messages, tools, self.dialect if tools or _with_tools(messages) else PLAIN)
        try:
            return self._rendered(said, tools=offered, add_generation_prompt=reply)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise TargetError(
                f"the chat template of {self.card.name} refuses the conversation ({roles}): {short(error)}."
                " Leave out or reorder the turns that it does not take."
            ) from error

    def _rendered(self, said: Any, *, tools: Any = None, add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                said, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Tokens of the conversation. TargetError where they do not fit the context."""
        return list(self._known_ids(tuple(messages), tuple(tools)))

    def _ids(self, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> list[int]:
        return self.fits(self.encoded(self.prompt_text(messages, tools)))

    def encoded(self, text: str) -> list[int]:
        """Tokens of a text as it stands, with none put around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_offsets(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Character span of every prompt token in `prompt_text`."""
        return [span for _, span in self.offsets(self.prompt_text(messages))]

    def offsets(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Tokens of a text as it stands, each with its span of characters."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
        return list(zip(map(int, encoded["input_ids"]), spans, strict=True))

    def rendered(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """A whole conversation in the model's own chat template, with no reply to come."""
        return self._prompted(messages, tools, reply=False)

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a continuation. TargetError where it is empty."""
        if not (ids := self.encoded(text)):
            raise TargetError(f"the continuation {text!r} has no tokens; give an action that is not empty")
        return ids

    def fits(self, ids: Sequence[int], *, more: int = 0, whole: bool = False) -> list[int]:
        """The tokens as a list. TargetError where they, and so many more, are longer than the model can be given.

        `whole`: attention is to go over all of them, with no windows.
        """
        for wrong in (max(ids, default=0), min(ids, default=0)):
            if not 0 <= wrong < self._vocabulary:
                raise TargetError(
                    f"token id {wrong} is out of the range of {self.card.name} (0 to {self._vocabulary - 1})"
                )
        for what, limit in self._limits.items():
            if len(ids) + more > limit and (whole or not self._seen_through(what)):
                raise TargetError(
                    f"a text of {len(ids) + more} tokens is longer than the {what} of {self.card.name} ({limit});"
                    " shorten it"
                )
        return list(ids)

    def room(self, ids: Sequence[int], most: int) -> int:
        """Tokens, up to so many, that may follow these; 0 where none may."""
        limits = [limit for what, limit in self._limits.items() if not self._seen_through(what)]
        return max(0, min([most, *(limit - len(ids) for limit in limits)]))

    def _seen_through(self, what: str) -> bool:
        return what == WINDOW and self._sees_windows

    @cached_property
    def _sees_windows(self) -> bool:
        return not takes_trees(self._model) or looks_through_windows(self._model)

    # -- Scored --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_probs(self, paths: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[list[Tensor], int]:
        """Log-probability of every continuation token, for (prompt, continuation) pairs, and the tokens computed.

        None depends on the other pairs (within 1e-4 nats in fp32). TargetError for what the model cannot be given.
        """
        if not paths:
            return [], 0
        for prompt, continuation in paths:
            if not prompt or not continuation:
                raise TargetError(
                    f"a {'continuation' if prompt else 'prompt'} has no tokens; give one that is not empty"
                )
            self.fits(continuation[-1:])
        # Nothing follows the last token of a continuation, so it needs no node.
        tree, routes = plant([self.fits([*prompt, *continuation[:-1]]) for prompt, continuation in paths])
        before = [route[len(prompt) - 1 :] for (prompt, _), route in zip(paths, routes, strict=True)]
        kept, inverse = torch.cat(before).unique(return_inverse=True)
        plan = self._noted(self.plan_scores(paths, shared=(work := computed(self.model, tree, kept))))
        tokens = torch.tensor([token for _, continuation in paths for token in continuation])
        # A node may be followed by different tokens of different continuations.
        pairs, of = torch.stack([inverse, tokens]).unique(dim=1, return_inverse=True)
        done = 0

        def take(logits: Tensor) -> tuple[Tensor, int]:
            here = pairs[:, (pairs[0] >= done) & (pairs[0] < done + len(logits))]
            rows = (here[0] - done).to(logits.device)
            # A few at a time, so that what is in between stays in the processor's cache.
            normal = torch.cat([some.float().logsumexp(-1) for some in logits.split(AT_ONCE)])
            return (logits[rows, here[1].to(logits.device)].float() - normal[rows]).cpu(), len(logits)

        found = []
        for (some, count), _, _ in walk(self.model, tree, kept, take, block=plan.block, say=self.say):
            found.append(some)
            done += count
        values = torch.cat(found)[of]
        return list(values.split([len(nodes) for nodes in before])), work

    def plan_scores(self, paths: Sequence[tuple[Sequence[int], Sequence[int]]], *, shared: int) -> Plan:
        """How (prompt, continuation) pairs that make a tree of so many nodes go through the model."""
        lengths = [len(prompt) + len(continuation) for prompt, continuation in paths]
        return plan_scores(
            Costs.of(self.model), tokens=sum(lengths), shared=shared, longest=max(lengths), budget=self.budget
        )

    def plan_replies(self, asks: Sequence[Ask]) -> Plan:
        """How replies are written: as many rows at once as fit."""
        paths, more = sorted(ask.prompt for ask in asks), max(ask.max_tokens for ask in asks)
        return plan_rows(Costs.of(self.model), paths, more=more, budget=self.budget)

    def _noted(self, plan: Plan) -> Plan:
        if plan.bytes > self._most_said:
            self._most_said = plan.bytes
            self.say(f"{self.card.name}: {plan}")
        return plan

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that the weights take, and the keys and values of a token that is kept."""
        weights = sum(x.numel() * x.itemsize for x in self.model.parameters())
        return {"weights": weights, "token": Costs.of(self.model).kept}

    @property
    def budget(self) -> int:
        """Bytes that work may be planned for beyond the weights, as things are now."""
        return self.max_memory or budget(self._model.device)

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

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        """Greedy replies of 1 to `max_tokens` tokens, as one batch. TargetError where they may not fit the context."""
        asks = [self.ask(messages, tools, max_tokens=max_tokens) for messages in conversations]
        if not asks:
            return []
        plan = self._noted(self.plan_replies(asks))
        batch = self.batch(rows=plan.rows, block=plan.block)
        return [self.reply_of(written, tools) for written in write(batch, asks, self.tokenizer)]

    @cached_property
    def dialect(self) -> Dialect:
        """How the model is told of tools and asks for them."""
        return spoken(self.tokenizer.get_chat_template(), partial(self._rendered, add_generation_prompt=False))

    def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = GREEDY,
        top: int | None = None,
        hear: Callable[[str, tuple[Token, ...]], None] | None = None,
    ) -> Ask:
        """A reply of 1 to `max_tokens` tokens that may be asked for. TargetError where it may not fit the context."""
        prompt = self.prompt_ids(messages, tools)
        self.fits(prompt, more=max_tokens)
        return Ask(
            tuple(prompt), max_tokens, self.stop_ids, tuple(stop), sampling, top,
            special=bool(tools) and self.dialect.native, hear=hear,
        )  # fmt: skip

    def reply_of(self, written: Written, tools: Sequence[Tool] = ()) -> Reply:
        """What was written as a reply, with the calls in it."""
        tokens, finished = len(written.ids), written.ended == "stop"
        if not tools:
            return Reply(written.text.strip(), tokens, finished)
        found = parsed(written.text, self.dialect, tools)
        return Reply(found.text.strip(), tokens, finished, found.calls, found.unparsed)

    def batch(self, *, rows: int = ROWS, block: int = BLOCK) -> Batch:
        """What writes replies, at most so many at once and no more than there is memory for."""
        return Batch(self.model, most=rows, block=block, budget=self.budget, say=self.say)

    @cached_property
    def marks(self) -> frozenset[str]:
        """Special tokens that the chat template puts around turns, and that end a reply."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        shown = self.prompt_text([Message(role="user", content="")])
        with suppress(TemplateError, TypeError, ValueError):  # some have no system turn, or want another order
            said: Any = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
            shown += self._rendered(said, add_generation_prompt=False)
        ends = self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids))
        return frozenset({*(text for text in added if text in shown), *ends})

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        eos = self._model.generation_config.eos_token_id
        return frozenset({self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})

    # -- WhiteBox and Trainable ----------------------------------------------------------------------------------------

    def functional(self, decision: Decision, messages: Sequence[Message]) -> Functional:
        """The decision in one context as a functional over its tree (without the prior, which no context changes)."""
        prompt = self.prompt_ids(messages)
        texts = [self.text_ids(text) for text in (*decision.actions, *decision.alternatives)]
        tree, routes = plant([self.fits([*prompt, *text], whole=True) for text in texts])
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

    @torch.no_grad()
    def distance(self, other: LocalTarget, conversations: Sequence[Sequence[Message]]) -> tuple[float, int]:
        """How far the other's last hidden states are from this one's, over their norm: mean over the nodes of the tree
        of all conversations; and the tokens that were computed.
        """
        tree, _ = plant([self.prompt_ids(messages) for messages in conversations])
        theirs, mine = (hidden(target.model, tree) for target in (other, self))
        return float(((theirs - mine).norm(dim=-1) / mine.norm(dim=-1)).mean()), computed(self.model, tree)

    @torch.no_grad()
    def activations(self, ids: Sequence[int], sites: Sequence[change.Units]) -> dict[change.Units, Tensor]:
        """What units are along a text, shape (T, U), or (P, U) where they name positions."""
        tree, (route,) = plant([self.fits(ids)])
        with alone(self.model), change.seen(self.model, sites) as found:
            forward(self.model, tree, route[-1:])
        return {site: change.picked(self.model, site, x) for site, x in found.items()}

    def gradients(
        self, functional: Functional, sites: Sequence[change.Units]
    ) -> tuple[float, dict[change.Units, Tensor]]:
        """The value of a functional, and its gradient with respect to units at every node of its tree, shape (N, U).

        TargetError for a model that takes no trees.
        """
        model = self.model
        if not takes_trees(model):
            raise TargetError(f"{self.card.name} takes no trees of texts, which gradients are laid out along")
        kept, inverse = functional.before_M.unique(return_inverse=True)
        with torch.enable_grad(), alone(model), change.seen(model, sites) as found:
            # Weights are frozen: the graph begins at the embeddings.
            start = model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
            try:
                logits = forward(model, functional.tree, kept).logits[0].float()
            finally:
                start.remove()
            tokens = functional.tree.ids_N[functional.nodes_M].to(logits.device)
            log_p = torch.log_softmax(logits, -1)[inverse.to(logits.device), tokens]
            value = (log_p * functional.weight_M.to(logits.device)).sum()
            inside = list(found.values())
            grads = torch.autograd.grad(value, inside, allow_unused=True, materialize_grads=True) if inside else ()
        return float(value.detach()), {
            site: change.picked(model, site, g) for site, g in zip(found, grads, strict=True)
        }

    def under(self, changes: Sequence[change.Change], *, name: str = "") -> LocalTarget:
        """A new target that does what this one does under these changes; weights are shared."""
        what = digest_of([one.id for one in changes])
        weights = digest_of({"base": self.card.weights, "changes": what})
        model = change.under(self.model, changes)
        return self._allow(LocalTarget(name or f"{self.card.name}+{what[:12]}", model, self.tokenizer, weights=weights))

    def with_adapter(self, adapter: Adapter) -> LocalTarget:
        """A new target with a PEFT adapter merged into a copy of the weights; see `Adapter.onto`.

        TargetError where it says that it was trained on other weights than those that this one was made of. Of a base
        that it only names, it is said.
        """
        if adapter.base and adapter.base not in self._bases:
            raise TargetError(
                f"the adapter {adapter.source} was trained on other weights than those of {self.card.name}"
                f" (mark {adapter.base[:12]}, not {mark(self.model)[:12]}). Give the target that it was made for."
            )
        known = {self.card.name, self.card.name.removeprefix("local/"), self._model.name_or_path}
        if adapter.named and not adapter.base and adapter.named not in known:
            self.say(f"the adapter {adapter.source} names {adapter.named} as its base; it is put on {self.card.name}")
        weights = digest_of({"base": self.card.weights, "adapter": adapter.id})
        name = f"{self.card.name}@{adapter.id[:12]}"
        return self._allow(
            LocalTarget(name, self.model, self.tokenizer, weights=weights, made=self.made, adapter=adapter)
        )

    @cached_property
    def _bases(self) -> frozenset[str]:
        """Marks of the weights that this was made of, and of its own."""
        return self._under | {mark(self.model)}

    def save(self, folder: Path) -> None:
        """A checkpoint that transformers loads, whatever was put on the model merged in; whole or not at all.

        With an adapter on a bf16 model it is in fp32, and has to be loaded so.

        StoreError where it cannot be written, or something is there already.
        """
        check_empty(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            part = Path(place) / "checkpoint"
            try:
                in_one_format(self.model).save_pretrained(part)
                self.tokenizer.save_pretrained(part)
                if folder.exists():
                    folder.rmdir()
                part.rename(folder)
            except (OSError, SafetensorError) as error:
                raise StoreError(
                    f"cannot write the checkpoint {folder}: {short(error)}. Nothing was left behind"
                ) from error

    def _allow(self, other: LocalTarget) -> LocalTarget:
        """A target that was made of this one, with as much memory, and telling the same user."""
        other.max_memory, other.say, other._under = self.max_memory, self.say, self._bases
        return other


def load(name: str, *, device: str = "", dtype: str = "", max_memory: str | int = "") -> LocalTarget:
    """`smollm2-135m`, `tiny`, a folder, or a hub id, each optionally followed by `@adapter-folder`, and by
    `+file` with changes to be made inside it.

    `device`: "cpu", "cuda", "cuda:1"; where none is given, TRUING_DEVICE, or an accelerator if there is one.
    `dtype`: "fp32" or "bf16"; where none is given, TRUING_DTYPE, or fp32.
    `max_memory`: what work may be planned for beyond the weights, bytes or "4GB"; where nothing is given,
    TRUING_MAX_MEMORY, or half of what is free when the work begins.
    """
    most = parsed_bytes("max_memory", str(max_memory)) if max_memory != "" else 0
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    base, file = _split(name, "+", Path.is_file)
    if file:
        changes = change.read(Path(file))
        return load(base, device=device, dtype=dtype, max_memory=max_memory).under(changes, name=f"local/{name}")
    base, adapter = _split(name, "@", Path.is_dir)
    if adapter:
        found = load(base, device=device, dtype=dtype, max_memory=max_memory)
        return found.with_adapter(Adapter.read(Path(adapter))).checked()
    place_on, kind = _device(device), _dtype(dtype)
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
            place, dtype=kind, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        # An ImportError is of quantised weights, whose libraries are not there.
        raise TargetError(
            f"cannot load local/{name}: {str(error).strip().splitlines()[0].rstrip('.')}."
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
    for parameter in model.to(place_on).eval().parameters():
        parameter.requires_grad_(False)
    if name not in BUNDLED and (why := probe(model)):
        _log.warning(
            "local/%s (%s) takes no trees of texts (%s): every text goes through it by itself, and replies are written"
            " without a cache, which is right but slower", name, type(model).__name__, why,
        )  # fmt: skip
    speed_up(model, room=(most or budget(place_on)) // COPIES)
    if asked := _unfollowed(model.generation_config):
        _log.warning(
            "local/%s asks for %s when it writes (generation_config.json). Replies here follow the model's own"
            " distribution without them, so they are not those of transformers' generate.", name, ", ".join(asked),
        )  # fmt: skip
    # A hub id names whatever the hub holds today; the revision that was loaded identifies it.
    weights = weights or digest_of({"hub": name, "revision": getattr(model.config, "_commit_hash", None)})
    target = LocalTarget(f"local/{name}", model, tokenizer, weights=weights)
    target.max_memory = most
    return target


def _unfollowed(said: Any) -> list[str]:
    """Settings of a generation_config that bend the distribution whatever is asked for, and that are not followed."""
    return [f"{name}={value}" for name in BENDING if (value := getattr(said, name, None)) not in (None, 1.0, 0, [])]


def _split(name: str, sign: str, exists: Callable[[Path], bool]) -> tuple[str, str]:
    """What stands before a sign, and the path behind it, "" where there is none. Names may have the sign in them."""
    if name in BUNDLED or sign not in name or Path(name).is_dir():
        return name, ""
    at = [place for place, letter in enumerate(name) if letter == sign]
    cut = next((place for place in at if exists(Path(name[place + 1 :]))), at[-1])
    return name[:cut], name[cut + 1 :]


def _device(said: str) -> torch.device:
    said = said or os.environ.get("TRUING_DEVICE", "") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(said)
    except RuntimeError as error:
        raise TargetError(f"unknown device {said!r}; give cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise TargetError(f"no device {said!r} here ({torch.cuda.device_count()} accelerators); give cpu")
    return device


def _dtype(said: str) -> torch.dtype:
    said = said or os.environ.get("TRUING_DTYPE", "") or "fp32"
    if said not in DTYPES:
        raise TargetError(f"unknown dtype {said!r}; give {' or '.join(DTYPES)}")
    return DTYPES[said]


def _with_tools(messages: Sequence[Message]) -> bool:
    return any(message.calls or message.role == "tool" for message in messages)


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
    if takes_trees(model):  # units are read, patched and traced along trees
        with suppress(TargetError):
            change.counts(model)
            abilities.append("WhiteBox")
    if {name.rpartition(".")[2] for name, _ in model.named_modules()}.issuperset(MODULES):
        abilities.append("Trainable")
    return tuple(abilities)


def _limits(config: Any) -> dict[str, int]:
    """The longest texts that a model can be given, by what limits them.

    A tree brings its own attention mask, which replaces the windows that some layers would look through, unless their
    attention is replaced as well. Up to the length of the window both are the same.
    """
    kinds = set(getattr(config, "layer_types", None) or ("sliding_attention",))
    limits = {"context": getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)}
    if "sliding_attention" in kinds and getattr(config, "use_sliding_window", True):
        limits[WINDOW] = getattr(config, "sliding_window", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Frequencies change for the whole pass where one of its positions is beyond this.
        limits["short rotary range"] = rope.get("original_max_position_embeddings")
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
