"""Passes over trees in any decoder, patches of heads and neurons in them, and all of the inside of a Llama-shaped one.

Llama-shaped: RMSNorm, grouped-query attention, a SiLU-gated MLP, no biases (Llama, SmolLM2, Mistral, ...).
"""

# B rows  T nodes of a tree  D width  H heads  E head width  F MLP neurons

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local.attention import Branches, Parts, additive, alone, capped, near, over, weights
from truing.targets.local.change import Units, entering, place
from truing.targets.local.lift import stream_dtype
from truing.targets.local.paths import hidden_at, logits_at
from truing.targets.local.tree import Tree, takes_trees

Site = Literal["head", "neuron"]
NORMS = {"input_layernorm", "post_attention_layernorm"}
LLAMA = NORMS | {*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))}
"""The parts of a Llama-shaped block."""
BESIDE = {"", "self_attn", "mlp", "mlp.act_fn", "self_attn.q_norm", "self_attn.k_norm", "self_attn.rotary_emb"}
"""Parts that such a block may have: what is done to queries and keys is in the patterns."""
SCALES = ("residual_multiplier", "embedding_multiplier", "logits_scaling", "logit_scale", "final_logit_softcapping")
"""Settings by which some architectures of the same parts compute something else."""


@dataclass(slots=True)
class Activations:
    """What one forward pass computed, layer by layer; frozen quantities of the linear rules among them."""

    embed_TD: Tensor
    norm1: list[Tensor] = field(default_factory=list)
    """1 / rms before attention, shape (T,)."""
    norm2: list[Tensor] = field(default_factory=list)
    """1 / rms before the MLP, shape (T,)."""
    attention: Noted | None = None
    """What attention patterns are computed from."""
    heads: list[Tensor] = field(default_factory=list)
    """Attention outputs before the output projection, shape (T, H * E)."""
    gate: list[Tensor] = field(default_factory=list)
    up: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)
    """silu(gate) * up, shape (T, F)."""
    norm_out: Tensor | None = None
    """1 / rms before the head, shape (T,)."""
    logits: Tensor | None = None
    """At the nodes asked for, shape (M, V)."""

    def pattern(self, layer: int, group: int) -> Tensor:
        """Attention patterns of the heads that share a key-value head, shape (H / K, T, T). Computed anew each time:
        together they are as large as the text squared.
        """
        assert self.attention is not None  # read() sets it
        return self.attention.pattern(layer, group)


@dataclass(slots=True)
class Noted:
    """Attention over a tree that notes what it is given, and sees with the patterns that it will give."""

    depth_T: Tensor
    mask_TT: Tensor
    given: dict[int, tuple[Tensor, Tensor, dict[str, Any]]] = field(default_factory=dict)
    """By layer: queries (G, R, T, E), scaled; keys (G, T, E); rules of the architecture."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, _: Tensor, rules: dict[str, Any]) -> Tensor:
        """Of one row: a fused kernel would round otherwise, and contributions would add up less well."""
        self.given[layer] = (query[0], key[0], rules)
        return torch.stack([self.pattern(layer, group) @ value[0, group] for group in range(len(key[0]))])[None]

    def pattern(self, layer: int, group: int) -> Tensor:
        """Shape (R, T, T)."""
        query, key, rules = self.given[layer]
        scores = capped(query[None, group : group + 1] @ key[group].T, rules)
        scores += near(self.mask_TT, self.depth_T, self.depth_T, rules)
        return weights(scores, rules)[0, 0]


class Held(Protocol):
    """What heads and neurons were in a run, layer by layer, each (T, units and their widths)."""

    heads: list[Tensor]
    neurons: list[Tensor]


@dataclass(frozen=True, slots=True)
class Patch:
    """Replace units by their values in another run, at given positions of the batch's rows.

    `take`: (site, layer) -> boolean (B, units), which rows replace which units; `source`: the other run;
    `onto_T`: positions that are patched; `from_T`: the positions of the other run that they take, same length.
    """

    take: dict[tuple[Site, int], Tensor]
    source: Held
    onto_T: Tensor
    from_T: Tensor


def blocks(model: Any) -> Any:
    """The decoder layers; TargetError where the model is not Llama-shaped."""
    config, layers = model.config, getattr(getattr(model, "model", None), "layers", None)
    scaled = any(getattr(config, name, None) not in (None, 1) for name in SCALES)
    if not layers or scaled or getattr(config, "hidden_act", None) != "silu" or not all(map(_shaped, layers)):
        raise TargetError(
            f"this reads Llama-shaped blocks without biases; {type(model).__name__} is built otherwise."
            " Use a Llama, SmolLM2 or Mistral checkpoint."
        )
    return layers


def _shaped(layer: Any) -> bool:
    parts = dict(layer.named_modules())
    return (
        parts.keys() >= LLAMA
        and parts.keys() <= LLAMA | BESIDE
        and all(hasattr(parts[norm], "variance_epsilon") for norm in NORMS)  # the root mean square of what it is given
        and not any("bias" in name for name, _ in layer.named_parameters())
    )


def llama_shaped(model: Any) -> bool:
    """Whether its inside can be read by hand."""
    try:
        blocks(model)
    except TargetError:
        return False
    return True


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Attention with visible patterns (fused kernels hide them)."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def run(model: Any, tree: Tree, keep_M: Tensor, *, patch: Patch, rows: int = 1, start: int = 0) -> Tensor:
    """Logits at the kept nodes, shape (rows, M, V), with a patch per row.

    The first `start` nodes must be a chain from the root that no row changes: they are computed once, for all rows.
    """
    from transformers import DynamicCache

    cache = None
    with alone(model), ExitStack() as stack:
        if start:
            cache = DynamicCache()  # of all that came before: what lies in a window is a matter of the path
            begin = tree.ids_N[None, :start].to(model.device)
            model(input_ids=begin, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(rows)
        for (site, layer), take in patch.take.items():
            stack.callback(_hook_patch(model, site, layer, take, patch, start).remove)
        return forward(model, tree, keep_M, rows=rows, start=start, cache=cache).logits


@torch.no_grad()
def read(model: Any, tree: Tree, keep_M: Tensor) -> Activations:
    """One forward pass with everything that the linear rules and patches need."""
    layers = blocks(model)
    seen = Activations(embed_TD=model.get_input_embeddings()(tree.ids_N.to(model.device)))

    def inverse_rms(norm: Any, into: list[Tensor]) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            into.append(torch.rsqrt(args[0][0].pow(2).mean(-1) + norm.variance_epsilon))

        return norm.register_forward_pre_hook(hook)

    def output(module: Any, into: list[Tensor]) -> Any:
        return module.register_forward_hook(lambda _, __, out: into.append(out[0]))

    def entering(module: Any, into: list[Tensor]) -> Any:
        return module.register_forward_pre_hook(lambda _, args: into.append(args[0][0]))

    last: list[Tensor] = []
    with alone(model), ExitStack() as stack:
        hooks = [inverse_rms(model.model.norm, last)]
        for layer in layers:
            hooks += [
                inverse_rms(layer.input_layernorm, seen.norm1),
                inverse_rms(layer.post_attention_layernorm, seen.norm2),
                entering(layer.self_attn.o_proj, seen.heads),
                output(layer.mlp.gate_proj, seen.gate),
                output(layer.mlp.up_proj, seen.up),
                entering(layer.mlp.down_proj, seen.neurons),
            ]
        for hook in hooks:
            stack.callback(hook.remove)
        result, seen.attention = _noting(model, tree, keep_M)
    seen.norm_out, seen.logits = last[0], result.logits[0]
    return seen


def _noting(model: Any, tree: Tree, keep_M: Tensor) -> tuple[Any, Noted]:
    """A pass over a whole tree whose attention is noted."""
    device = model.device
    depth_T = tree.depth_N.to(device)
    noted = Noted(depth_T, additive(tree.sees(), stream_dtype(model), device))
    with over(model, noted):
        result = model(
            input_ids=tree.ids_N[None].to(device), attention_mask=noted.mask_TT[None, None],
            position_ids=depth_T[None], logits_to_keep=keep_M.to(device), use_cache=False,
        )  # fmt: skip
    return result, noted


def forward(
    model: Any,
    tree: Tree,
    keep_M: Tensor,
    *,
    rows: int = 1,
    start: int = 0,
    stop: int | None = None,
    cache: Any = None,
    **more: Any,
) -> Any:
    """One pass over the nodes from `start` to `stop`; the cache holds the ancestors of the first and nothing else.

    The output head is applied at the kept nodes alone. A model that takes no trees goes along each path from its root,
    one row of it, and leaves the cache as it is.
    """
    if not takes_trees(model):
        return SimpleNamespace(logits=logits_at(model, tree, keep_M)[None])
    with _passing(model, tree, rows, start, stop, eager="output_attentions" in more) as given:
        return model(
            **given,
            logits_to_keep=keep_M.to(model.device) - start,
            past_key_values=cache,
            use_cache=cache is not None,
            **more,
        )


def hidden(model: Any, tree: Tree) -> Tensor:
    """What one pass over a tree leaves to the output head, at all nodes; shape (T, D)."""
    if not takes_trees(model):
        return hidden_at(model, tree)
    with _passing(model, tree) as given:
        found: Tensor = model.base_model(**given, use_cache=False).last_hidden_state[0]
    return found


@contextmanager
def _passing(
    model: Any, tree: Tree, rows: int = 1, start: int = 0, stop: int | None = None, *, eager: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Around a pass over nodes of a tree: what the model is to be given."""
    device = model.device
    sees = tree.sees(start, stop)
    # Attention with visible patterns is the architecture's own.
    with (
        alone(model),
        nullcontext(additive(sees, stream_dtype(model), device))
        if eager
        else branches(model, tree, sees, start) as mask_TK,
    ):
        yield {
            "input_ids": tree.ids_N[start:stop].to(device).expand(rows, -1),
            "attention_mask": mask_TK[None, None].expand(rows, 1, -1, -1),
            "position_ids": tree.depth_N[start:stop].to(device).expand(rows, -1),
        }


@contextmanager
def branches(model: Any, tree: Tree, sees_TK: Tensor, start: int) -> Iterator[Tensor]:
    """Around a pass: windows that reach back over ancestors, and no pairs of nodes that are far from seeing each other.

    Where neither matters, attention is the architecture's own. Gives the mask that the model is to be given.
    """
    kind, device = stream_dtype(model), model.device
    if parts := Parts.worth(sees_TK, dtype=kind, device=device):
        mask_TK = torch.zeros(1, 1, dtype=kind, device=device).expand(sees_TK.shape)  # each part has its own
    else:
        mask_TK = additive(sees_TK, kind, device)
        if getattr(model.config.get_text_config(), "sliding_window", None) is None:
            yield mask_TK
            return
    depth_T = tree.depth_N[start : start + len(sees_TK)].to(device)
    # The ancestors of the first node have the depths before its own.
    depth_K = torch.cat([torch.arange(int(depth_T[0]), device=device), depth_T])
    with over(model, Branches(depth_T, depth_K, parts)):
        yield mask_TK


def site_module(model: Any, site: Site, layer: int) -> Any:
    """The projection whose input holds the units of a site."""
    return place(model, Units(site, layer))[0]


def units(model: Any, site: Site) -> tuple[int, int]:
    """How many units a layer has at this site, and how wide one is."""
    wide = entering(site_module(model, site, 0))
    count = int(model.config.get_text_config().num_attention_heads) if site == "head" else wide
    return count, wide // count


def _hook_patch(model: Any, site: Site, layer: int, take_BU: Tensor, patch: Patch, start: int) -> Any:
    reached = patch.onto_T >= start
    onto_T = patch.onto_T[reached] - start
    values = (patch.source.heads if site == "head" else patch.source.neurons)[layer][patch.from_T[reached]]
    mask = take_BU.repeat_interleave(values.shape[-1] // take_BU.shape[1], dim=1).to(values.device)
    rows = mask.any(1).nonzero().flatten().tolist()  # most choices leave most layers alone

    def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone(memory_format=torch.contiguous_format)
        x_BTU = x.view(len(mask), -1, x.shape[-1])  # some architectures lay all rows end to end for their MLP
        for row in rows:
            taken = mask[row].nonzero().flatten()
            x_BTU[row, onto_T[:, None], taken] = values[:, taken].to(x.dtype)
        return (x, *args[1:])

    return site_module(model, site, layer).register_forward_pre_hook(hook)
