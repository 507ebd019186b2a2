"""Dictionaries of features that stand in for MLPs: transcoders, cross-layer transcoders and SAEs of MLP outputs.

A feature reads from the residual stream before an MLP, or from around it, and writes to the output of that MLP, or of
several. What the features of a model do not give of an MLP's output is its error. Layouts that are read, with tensors
in safetensors files alone:

    circuit-tracer   config.yaml, and layer_0.safetensors ... (per-layer transcoders), or W_enc_0.safetensors and
                     W_dec_0.safetensors ... (cross-layer transcoders)
    SAELens          cfg.json and sae_weights.safetensors, in the folder or in one folder for each layer

Files are not trusted: names, shapes and values are checked against each other and against the model.
"""

# F features  D width of the residual stream  W layers that are written to  L layers  T nodes of a tree

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from truing.errors import TargetError
from truing.targets.local.inside import blocks
from truing.text import short

Site = Literal["before norm", "normalized", "mlp in", "mlp out"]
"""Where features read. before norm: the residual stream before an MLP and its norm; normalized: after the scale of the
norm, not its weight; mlp in: after both, what the MLP is given; mlp out: what it gives (SAEs)."""
SITES: dict[str, Site] = {
    "hook_resid_mid": "before norm", "ln2.hook_normalized": "normalized", "mlp.hook_in": "mlp in",
    "hook_mlp_in": "before norm", "hook_mlp_out": "mlp out", "mlp.hook_out": "mlp out",
}  # fmt: skip
"""What files call them."""
MOST_FEATURES = 2**20
"""Features of a layer; a file that says more is refused."""
LONGEST = 2**20
"""Bytes of a settings file; a longer one is refused."""
NODES = 64
"""Nodes whose features are computed at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """The features of one layer: a = f(x E^T + b), of which W outputs from this layer on get a D_w."""

    reads: Site
    encoder_FD: Tensor
    bias_F: Tensor
    decoders_WFD: Tensor
    offset_D: Tensor
    """What is added to this layer's output whatever is active (b_dec)."""
    threshold_F: Tensor
    """A feature is active above it (ReLU: 0)."""
    most: int | None = None
    """Active features of a node at most, the largest (TopK)."""
    skip_DD: Tensor | None = None
    """x goes to the output by itself too, as x S^T."""

    def active(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes, indices and activations of the active features, shape (S,) each; in order of nodes."""
        found = []
        for start in range(0, len(x_TD), NODES):
            a_TF = x_TD[start : start + NODES] @ self.encoder_FD.T + self.bias_F
            on_TF = (a_TF > self.threshold_F) & (a_TF != 0)
            if self.most is not None:
                kept = torch.zeros_like(on_TF).scatter_(1, a_TF.topk(min(self.most, a_TF.shape[1]), 1).indices, 1)
                on_TF &= kept
            node_S, index_S = on_TF.nonzero().T
            found.append((node_S + start, index_S, a_TF[node_S, index_S]))
        node_S, index_S, value_S = (torch.cat(parts) for parts in zip(*found, strict=True))
        return node_S, index_S, value_S


Dictionaries = tuple[Dictionary | None, ...]
"""By layer. A layer without one is all error."""


def check_layout(folder: Path) -> None:
    """TargetError for a folder that holds no dictionaries by its looks: asked before a model is loaded."""
    if not (folder / "config.yaml").is_file() and not _settings_of_saes(folder):
        raise TargetError(
            f"{folder} holds no dictionaries that are known: there is neither a config.yaml (circuit-tracer) nor a"
            " cfg.json (SAELens). Tensors are read from safetensors files alone, never from pickles or .npz files."
        )


def _settings_of_saes(folder: Path) -> list[Path]:
    return [*folder.glob("cfg.json"), *folder.glob("*/cfg.json")]


def load(folder: str | Path, model: Any) -> Dictionaries:
    """The dictionaries of a folder for a model. TargetError for a layout that is not known, or that does not fit."""
    folder = Path(folder)
    check_layout(folder)
    layers, width = len(blocks(model)), int(model.config.hidden_size)
    if (folder / "config.yaml").is_file():
        settings = _settings(folder / "config.yaml")
        kind = settings.get("model_kind")
        if kind == "transcoder_set":
            found = _transcoders(folder, settings, layers, width)
        elif kind == "cross_layer_transcoder":
            found = _cross_layer(folder, settings, layers, width)
        else:
            raise TargetError(f"{folder} holds dictionaries of kind {short(repr(kind))};"
                              " known are transcoder_set and cross_layer_transcoder")  # fmt: skip
    else:
        found = _saes(sorted(path.parent for path in _settings_of_saes(folder)), layers, width)
    device = model.device
    return tuple(None if one is None else _moved(one, device) for one in found)


def _moved(one: Dictionary, device: Any) -> Dictionary:
    parts = {name: getattr(one, name) for name in Dictionary.__slots__}
    return Dictionary(**{name: x.to(device) if isinstance(x, Tensor) else x for name, x in parts.items()})


# -- circuit-tracer ----------------------------------------------------------------------------------------------------


def _transcoders(folder: Path, settings: Mapping[str, Any], layers: int, width: int) -> list[Dictionary | None]:
    """One file for each layer, or the files that the settings name."""
    site = _site(settings, folder)
    named = settings.get("transcoders")
    files = [folder / f"layer_{n}.safetensors" for n in range(layers)]
    if named is not None:
        if not isinstance(named, list) or len(named) != layers:
            raise TargetError(f"{folder}/config.yaml must name one transcoder for each of {layers} layers")
        files = [_within(folder, name) for name in named]
    elif (folder / f"layer_{layers}.safetensors").exists():
        raise TargetError(f"{folder} has a transcoder for layer {layers}, and the model has {layers} layers, from 0 on")
    shapes = {"W_enc": "FD", "W_dec": "FD", "b_enc": "F", "b_dec": "D"}
    more = {"W_skip": "DD", "activation_function.threshold": "F"}
    found: list[Dictionary | None] = []
    for file in files:
        t = _tensors(file, shapes, more, {"D": width})
        threshold = t.get("activation_function.threshold")
        found.append(
            Dictionary(site, t["W_enc"], t["b_enc"], t["W_dec"][None], t["b_dec"],
                       torch.zeros_like(t["b_enc"]) if threshold is None else threshold, skip_DD=t.get("W_skip"))
        )  # fmt: skip
    return found


def _cross_layer(folder: Path, settings: Mapping[str, Any], layers: int, width: int) -> list[Dictionary | None]:
    """An encoder and a decoder file for each layer; features of layer l write to layers l, l + 1, ..."""
    site = _site(settings, folder)
    found: list[Dictionary | None] = []
    for n in range(layers):
        shapes = {f"W_enc_{n}": "FD", f"b_enc_{n}": "F", f"b_dec_{n}": "D"}
        t = _tensors(folder / f"W_enc_{n}.safetensors", shapes, {f"threshold_{n}": "F"}, {"D": width})
        encoder, bias = t[f"W_enc_{n}"], t[f"b_enc_{n}"]
        sizes = {"F": len(bias), "W": layers - n, "D": width}
        decoder = _tensors(folder / f"W_dec_{n}.safetensors", {f"W_dec_{n}": "FWD"}, {}, sizes)[f"W_dec_{n}"]
        found.append(
            Dictionary(site, encoder, bias, decoder.transpose(0, 1).contiguous(), t[f"b_dec_{n}"],
                       t.get(f"threshold_{n}", torch.zeros_like(bias)))
        )  # fmt: skip
    return found


def _site(settings: Mapping[str, Any], folder: Path) -> Site:
    """Where the features of a set read; they must write to MLP outputs."""
    reads, writes = (settings.get(f"feature_{way}_hook") for way in ("input", "output"))
    if not isinstance(reads, str) or SITES.get(reads, "mlp out") == "mlp out":
        known = ", ".join(name for name, site in SITES.items() if site != "mlp out")
        raise TargetError(f"transcoders in {folder} read at {short(repr(reads))}; known are {known}")
    if not isinstance(writes, str) or SITES.get(writes) != "mlp out":
        raise TargetError(f"transcoders in {folder} write to {short(repr(writes))}; what they write to must be"
                          " hook_mlp_out or mlp.hook_out")  # fmt: skip
    return SITES[reads]


def _within(folder: Path, name: object) -> Path:
    """A file that settings name: in the folder, whatever they say."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w\-. /]{1,200}\.safetensors", name) or name.startswith("/") \
            or ".." in name.split("/"):  # fmt: skip
        raise TargetError(
            f"{folder}/config.yaml names {short(repr(name))}; only safetensors files in the same folder are read."
            " Download what stands elsewhere, and name it by its file name."
        )
    return folder / name


# -- SAELens -----------------------------------------------------------------------------------------------------------

_KINDS: dict[str, tuple[dict[str, str], bool]] = {
    "standard": ({}, False), "topk": ({}, False), "jumprelu": ({"threshold": "F"}, False),
    "transcoder": ({}, True), "skip_transcoder": ({"W_skip": "DD"}, True),
    "jumprelu_transcoder": ({"threshold": "F"}, True),
    "jumprelu_skip_transcoder": ({"threshold": "F", "W_skip": "DD"}, True),
}  # fmt: skip
"""Tensors beside those of all kinds, and whether a kind reads from another place than it writes to."""


def _saes(places: Sequence[Path], layers: int, width: int) -> list[Dictionary | None]:
    """One folder for each layer that has one."""
    found: list[Dictionary | None] = [None] * layers
    for place in places:
        layer, one = _sae(place, width)
        if layer >= layers or found[layer] is not None:
            why = f"the model has {layers} layers" if layer >= layers else "another folder has one for it too"
            raise TargetError(f"{place} is a dictionary of layer {layer}, and {why}")
        found[layer] = one
    return found


def _sae(place: Path, width: int) -> tuple[int, Dictionary]:
    """A dictionary and its layer. What is done to inputs or activations in SAELens is done to the weights here."""
    settings = _settings(place / "cfg.json")
    metadata = settings.get("metadata")
    said = {**settings, **(metadata if isinstance(metadata, dict) else {})}
    kind, most = _sae_kind(said, place)
    more, transcodes = _KINDS[kind]
    layer, site = _sae_hooks(said, place, transcodes=transcodes)
    shapes = {"W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D"}
    t = _tensors(place / "sae_weights.safetensors", shapes | more, {}, {"D": width})
    encoder_FD, bias_F, decoder_FD = t["W_enc"].T.contiguous(), t["b_enc"], t["W_dec"]
    if said.get("apply_b_dec_to_input", not transcodes) and not transcodes:
        bias_F = bias_F - encoder_FD @ t["b_dec"]
    if kind == "topk" and said.get("rescale_acts_by_decoder_norm", False):
        norm_F = decoder_FD.norm(dim=1)
        encoder_FD, bias_F = encoder_FD * norm_F[:, None], bias_F * norm_F
        decoder_FD = decoder_FD / norm_F.clamp(min=1e-30)[:, None]
    # Under a ReLU no feature is active below 0, whatever its threshold.
    threshold_F = t["threshold"].clamp(min=0) if "threshold" in t else torch.zeros_like(bias_F)
    return layer, Dictionary(site, encoder_FD, bias_F, decoder_FD[None], t["b_dec"], threshold_F, most, t.get("W_skip"))


def _sae_kind(said: Mapping[str, Any], place: Path) -> tuple[str, int | None]:
    """Architecture, and how many features of a node are active at most."""
    kind, most = said.get("architecture", "standard"), said.get("k")
    if kind == "standard" and said.get("activation_fn", said.get("activation_fn_str", "relu")) == "topk":
        kind, more = "topk", said.get("activation_fn_kwargs")  # as files before version 6 say it
        most = more.get("k") if isinstance(more, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise TargetError(f"{place} is of the architecture {short(repr(kind))}; known are {', '.join(_KINDS)}")
    if kind == "topk" and not (type(most) is int and most > 0):
        raise TargetError(f"{place} is a topk dictionary with k = {short(repr(most))}; k must be a positive number")
    for name, wanted in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if said.get(name) not in (None, False, wanted):
            raise TargetError(
                f"{place} has {name} = {short(repr(said[name]))}, which is not done here;"
                " fold it into the weights (SAELens can), and set it to none"
            )
    return kind, most if kind == "topk" else None


def _sae_hooks(said: Mapping[str, Any], place: Path, *, transcodes: bool) -> tuple[int, Site]:
    """The layer, and where its features read."""
    reads, writes = said.get("hook_name"), said.get("hook_name_out")
    match = re.fullmatch(r"blocks\.(\d{1,4})\.([a-z0-9_.]{1,60})", reads) if isinstance(reads, str) else None
    site = SITES.get(match[2]) if match else None
    if match is None or site is None or (site != "mlp out") != transcodes:
        wanted = [f"blocks.N.{name}" for name, known in SITES.items() if (known != "mlp out") == transcodes]
        raise TargetError(
            f"{place} reads at {short(repr(reads))}; {'transcoders' if transcodes else 'SAEs'} that are known read at"
            f" {', '.join(wanted)}. A dictionary of the residual stream stands in for all layers below, not for an MLP."
        )
    if transcodes and writes is not None:
        there = [f"blocks.{match[1]}.{name}" for name, known in SITES.items() if known == "mlp out"]
        if writes not in there:
            raise TargetError(f"{place} writes to {short(repr(writes))}; it must be one of {', '.join(there)}")
    return int(match[1]), site


# -- files -------------------------------------------------------------------------------------------------------------


def _settings(path: Path) -> dict[str, Any]:
    """A YAML or JSON file with a mapping in it. TargetError for anything else."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise TargetError(f"{path} is longer than {LONGEST} bytes, which no settings file is")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TargetError(f"cannot read {path}: {short(error)}. Is it whole?") from error
    if not isinstance(found, dict):
        raise TargetError(f"{path} holds a {type(found).__name__}; it must hold a mapping of settings")
    return found


def _tensors(
    path: Path, shapes: Mapping[str, str], more: Mapping[str, str], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """The tensors of a file, in fp32. TargetError unless it holds those of `shapes`, perhaps those of `more`, and
    nothing else, all finite. A shape is a letter for each dimension: one of `sizes`, or F, the same in all tensors.
    """
    known = {**sizes}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            _named(path, names, shapes, more)
            for name in sorted(names):
                _fits(path, name, tuple(file.get_slice(name).get_shape()), {**shapes, **more}[name], known)
            return {name: _finite(path, name, file.get_tensor(name)) for name in sorted(names)}
    except (OSError, ValueError, SafetensorError) as error:
        raise TargetError(
            f"cannot read {path}: {short(error)}. Dictionaries are read from safetensors files; is it whole?"
        ) from error


def _named(path: Path, names: set[str], shapes: Mapping[str, str], more: Mapping[str, str]) -> None:
    missing, odd = sorted(set(shapes) - names), sorted(names - set(shapes) - set(more))
    if missing or odd:
        what = f"lacks {', '.join(missing)}" if missing else f"holds {short(', '.join(odd))}, which is not known"
        raise TargetError(f"{path} {what}; a file of its kind holds {', '.join(shapes)}"
                          + (f", and perhaps {', '.join(more)}" if more else ""))  # fmt: skip


def _fits(path: Path, name: str, shape: tuple[int, ...], letters: str, known: dict[str, int]) -> None:
    if len(shape) == len(letters) and "F" not in known and "F" in letters:
        known["F"] = shape[letters.index("F")]
    wanted = tuple(known.get(letter, 0) for letter in letters)
    if shape != wanted:
        raise TargetError(
            f"{name} in {path} has shape {shape}; {wanted} would fit the model"
            f" (width {known['D']}) and the other tensors ({known.get('F', 0)} features)"
        )
    if not 0 < known.get("F", 1) <= MOST_FEATURES:
        raise TargetError(f"{path} has {known['F']} features; from 1 to {MOST_FEATURES} are read")


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in {torch.float32, torch.float16, torch.bfloat16, torch.float64}:
        raise TargetError(f"{name} in {path} is in {tensor.dtype}; numbers in 16, 32 or 64 bits are read")
    found = tensor.float()
    least, largest = found.aminmax()  # either is not a number where one is not
    if not bool(torch.isfinite(least) & torch.isfinite(largest)):
        raise TargetError(f"{name} in {path} holds values that are not finite in fp32; such a dictionary is of no use")
    return found


assert set(SITES.values()) == set(get_args(Site))

__all__ = ["Dictionaries", "Dictionary", "Site", "check_layout", "load"]
