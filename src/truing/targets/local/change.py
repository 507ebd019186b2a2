"""Looking at and changing what happens inside any decoder: small values that go together.

    add      a vector is added: steering (Turner et al. 2023, arXiv:2308.10248)
    ablate   units are set to zero, or to a mean
    patch    units take the values that they had in another run (Vig et al. 2020, arXiv:2004.12265)

All three keep a part of what was there and put something to it, at units of one layer and at positions of the text.
"""

# B rows  T nodes or tokens  P positions  U units, each as wide as it is  D width of the residual stream

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from truing.errors import TargetError
from truing.records import canonical, digest, digest_of
from truing.targets.local.lift import sharing
from truing.text import short

Kind = Literal["residual", "head", "neuron"]
KINDS: tuple[Kind, ...] = ("residual", "head", "neuron")

HEADS_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""What architectures call the projection behind their attention heads."""
NEURONS_OUT = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2")
"""What they call the projection behind their MLP neurons."""


@dataclass(frozen=True, slots=True)
class Units:
    """Where in a model: units of a layer, at positions of the text (0 is its first token).

    residual: dimensions of the residual stream after block `layer`; head: what attention heads give to the output
    projection; neuron: what MLP neurons give to theirs. Without `which`, all of them; without `positions`, everywhere.
    """

    kind: Kind
    layer: int
    which: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """x becomes `kept` * x + `values` at these units. Values: shape (U,), or (P, U) in the order of the positions."""

    at: Units
    values: Tensor
    kept: float

    def __post_init__(self) -> None:
        rows = len(self.at.positions) if self.at.positions is not None else None
        if self.values.dim() not in {1, 2} or (self.values.dim() == 2 and self.values.shape[0] != rows):
            raise TargetError(
                f"values of shape {tuple(self.values.shape)} do not fit {self.at}:"
                " give one for every unit, or a row of them for every position"
            )
        if rows is not None and len(set(self.at.positions or ())) < rows:
            raise TargetError(f"{self.at} names a position twice; name each once")
        if not bool(self.values.isfinite().all()):
            raise TargetError(f"values for {self.at} are not all finite; leave out what is not a number")

    @property
    def id(self) -> str:
        """Digest of all that it does."""
        at = {"kind": self.at.kind, "layer": self.at.layer, "which": self.at.which, "positions": self.at.positions}
        data = self.values.detach().float().cpu().contiguous().numpy().tobytes()
        return digest_of({"at": at, "kept": self.kept, "shape": list(self.values.shape), "values": digest(data)})


def add(at: Units, vector: Tensor, scale: float = 1.0) -> Change:
    """Add a multiple of a vector."""
    return Change(at, scale * vector, 1.0)


def ablate(at: Units, mean: Tensor | None = None) -> Change:
    """Set units to zero, or to a mean of shape (U,)."""
    return Change(at, torch.zeros(1) if mean is None else mean, 0.0)


def patch(at: Units, values: Tensor) -> Change:
    """Put in what the units were in another run, shape (P, U)."""
    return Change(at, values, 0.0)


# -- in a model --------------------------------------------------------------------------------------------------------


def under(model: Any, changes: Sequence[Change]) -> Any:
    """A model that shares all weights with this one and does what it does under these changes, in their order.

    TargetError where there is no such layer or unit.
    """
    copy = sharing(model)
    copy.register_forward_pre_hook(_note, with_kwargs=True)
    for change in changes:
        _hook(copy, change.at, lambda x, change=change: _changed(copy, x, change))
    return copy


@contextmanager
def seen(model: Any, sites: Sequence[Units]) -> Iterator[dict[Units, Tensor]]:
    """What a pass within it computes where these units stand: whole, for `picked` to choose from."""
    found: dict[Units, Tensor] = {}
    handles = [_hook(model, at, lambda x, at=at: found.__setitem__(at, x)) for at in sites]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def picked(model: Any, at: Units, x: Tensor) -> Tensor:
    """The units' part of what a pass of one row computed, or of its gradient: shape (T, U), or (P, U)."""
    x_T = x.flatten(0, -2)
    rows = x_T if at.positions is None else x_T[torch.tensor(at.positions, device=x_T.device)]
    return rows[..., _columns(model, at, x_T)]


_where: ContextVar[Tensor] = ContextVar("where")
"""The positions of the pass that runs in this thread, shape (B, T). Copies of a model keep the hooks of the original,
so what hooks share must not belong to either."""


def _note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    given = kwargs.get("position_ids")
    _where.set(torch.arange(ids.shape[1], device=ids.device)[None] if given is None else given)


def _changed(model: Any, x: Tensor, change: Change) -> Tensor:
    if x.dim() == 2:  # some architectures lay all rows end to end for their MLP
        return _changed(model, x.unflatten(0, (-1, _where.get().shape[-1])), change).flatten(0, 1)
    columns = _columns(model, change.at, x)
    values = change.values.to(x)
    if change.values.shape[-1] not in {1, len(columns)}:
        raise TargetError(
            f"{change.values.shape[-1]} values for the {len(columns)} units of {change.at}: give one for each"
        )
    old = x[..., columns]
    if change.at.positions is None:
        new = change.kept * old + values
    else:
        wanted = torch.tensor(change.at.positions, device=x.device)
        hit = _where.get()[..., None] == wanted  # (B, T, P)
        here = hit.to(x.dtype) @ values if values.dim() == 2 else values
        new = torch.where(hit.any(-1)[..., None], change.kept * old + here, old)
    out = x.clone()
    out[..., columns] = new
    return out


def _hook(model: Any, at: Units, work: Any) -> Any:
    """Let `work` see what the units' module is given (or gives), and change it where it returns something."""
    module, before = place(model, at)
    if before:

        def given(_: Any, args: tuple[Any, ...]) -> Any:
            new = work(args[0])
            return None if new is None else (new, *args[1:])

        return module.register_forward_pre_hook(given)

    def gave(_: Any, __: Any, out: Any) -> Any:
        new = work(out[0] if isinstance(out, tuple) else out)
        return None if new is None else (new, *out[1:]) if isinstance(out, tuple) else new

    return module.register_forward_hook(gave)


def layers(model: Any) -> nn.ModuleList:
    """The blocks of any decoder. TargetError where there is no such list."""
    count = model.config.get_text_config().num_hidden_layers
    found = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not found:
        raise TargetError(f"no list of {count} blocks in a {type(model).__name__}; its inside cannot be reached")
    return found[0]


def place(model: Any, at: Units) -> tuple[Any, bool]:
    """The module at whose input (True) or output (False) the units stand."""
    blocks = layers(model)
    if at.kind not in KINDS:
        raise TargetError(f"unknown kind of unit {at.kind!r}; known: {', '.join(KINDS)}")
    if not 0 <= at.layer < len(blocks):
        raise TargetError(f"no layer {at.layer} in a model of {len(blocks)} layers (0 to {len(blocks) - 1})")
    block = blocks[at.layer]
    if at.kind == "residual":
        return block, False
    attention = [part for part in block.modules() if "attention" in type(part).__name__.lower()]
    inner = [part for part in attention for part in part.modules()]
    if at.kind == "head":
        projections = [getattr(part, name, None) for part in attention for name in HEADS_OUT]
    else:
        outside = [part for part in block.modules() if all(part is not other for other in inner)]
        # An expert that all tokens share has a projection too; it is a part of what the layer does.
        routed = any("experts" in type(part).__name__.lower() for part in outside)
        projections = [getattr(part, name, None) for part in outside for name in NEURONS_OUT if not routed]
    found = [part for part in projections if isinstance(part, nn.Module)]
    if not found:
        raise TargetError(
            f"no {at.kind}s to be found in layer {at.layer} of a {type(model).__name__};"
            " a mixture of experts, for one, has no neurons of a layer. Its residual stream can be reached."
        )
    return found[0], True


def entering(module: Any) -> int:
    """How many numbers a projection takes. TargetError for one whose weight is no matrix (one that is packed)."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TargetError(f"a {type(module).__name__} keeps no weight that can be read; load the model in fp32")
    return int(weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1])  # GPT-2's lie the other way


def counts(model: Any) -> dict[Kind, int]:
    """How many heads and neurons a layer has; heads may be wider in some.

    TargetError where a layer has none, or another number of them than the others.
    """
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    widths = {
        kind: [entering(place(model, Units(kind, layer))[0]) for layer in range(len(layers(model)))]
        for kind in ("head", "neuron")
    }
    if not isinstance(heads, int) or len(set(widths["neuron"])) > 1 or any(width % heads for width in widths["head"]):
        raise TargetError(
            f"layers of a {type(model).__name__} differ in their heads or neurons ({heads} heads, widths"
            f" {sorted(set(widths['head']))}; {sorted(set(widths['neuron']))} neurons), so that no units can be counted"
            " by layer and number"
        )
    return {"head": heads, "neuron": widths["neuron"][0]}


def _columns(model: Any, at: Units, x: Tensor) -> Tensor:
    """Where the units stand in the last dimension of x."""
    width = x.shape[-1] // model.config.get_text_config().num_attention_heads if at.kind == "head" else 1
    count = x.shape[-1] // width
    which = range(count) if at.which is None else at.which
    if wrong := [unit for unit in which if not 0 <= unit < count]:
        raise TargetError(f"no {at.kind} {wrong[0]} in layer {at.layer}: there are {count} (0 to {count - 1})")
    first = torch.tensor(list(which), device=x.device) * width
    return (first[:, None] + torch.arange(width, device=x.device)).flatten()


# -- in a file ---------------------------------------------------------------------------------------------------------


def write(path: Path, changes: Sequence[Change]) -> None:
    """Keep changes in a safetensors file: values as tensors, the rest as JSON beside them."""
    said = [
        {"kind": c.at.kind, "layer": c.at.layer, "which": c.at.which, "positions": c.at.positions, "kept": c.kept}
        for c in changes
    ]
    values = {str(place): change.values.detach().cpu().contiguous() for place, change in enumerate(changes)}
    save_file(values, path, metadata={"truing": canonical(said).decode()})


def read(path: Path) -> tuple[Change, ...]:
    """The changes in a file that `write` made. TargetError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})["truing"])
            return tuple(
                Change(
                    Units(one["kind"], int(one["layer"]), _whole(one["which"]), _whole(one["positions"])),
                    file.get_tensor(str(place)).float(),
                    float(one["kept"]),
                )
                for place, one in enumerate(said)
            )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise TargetError(
            f"cannot read changes from {path}: {short(error)}."
            " Give a file that `truing.targets.local.change.write` made."
        ) from error


def _whole(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(int(number) for number in numbers)
