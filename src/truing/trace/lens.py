"""The logit lens: what the model would say next if its last block ended where an earlier one does.

After nostalgebraist 2020 ("interpreting GPT: the logit lens"). Early layers need not write in the basis that the output
head reads; translators that are learned (Belrose et al. 2023, arXiv:2303.08112) or averaged from the model itself
(`jacobian`) read them better. A lens shows what can be read off, not what the model uses.
"""

# L layers  P positions  N rows  K tokens asked for  D width  V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truing.errors import DesignError, TargetError
from truing.records import Decision, Message
from truing.targets.local import LocalTarget
from truing.targets.local.attention import alone
from truing.targets.local.change import Units, layers, seen
from truing.targets.local.inside import forward
from truing.targets.local.lift import stream_dtype
from truing.targets.local.tree import plant

ROWS = 128
"""Rows of logits that are held at once."""
OFF = {torch.float32: 1e-3}
"""How far the last layer may be from the model's own logits, of their range; of short formats 0.05."""
Read = Callable[[int, Tensor], Tensor]
"""From a layer and its residual stream (N, D) to what the last block would have given (N, D)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One layer at one position."""

    layer: int
    position: int
    top: tuple[tuple[str, float], ...]
    """The likeliest next tokens, and their probabilities."""
    given: tuple[tuple[int, float], ...]
    """Of each token asked for: its rank (0 is the likeliest) and its log-probability, nats."""


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What a lens shows of a text, by layer and position."""

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    """Those asked for."""
    top_LPN: Tensor
    """Ids of the likeliest next tokens, the likeliest first."""
    chance_LPN: Tensor
    """Their probabilities."""
    rank_LPK: Tensor
    """How many tokens are likelier than each that was asked for."""
    log_p_LPK: Tensor
    """Nats."""

    def readings(self, target: LocalTarget) -> list[Reading]:
        """The same, one by one, with texts of tokens."""
        return [
            Reading(
                layer, position,
                tuple(zip(map(target.tokenizer.decode, self.top_LPN[at, p].tolist()), self.chance_LPN[at, p].tolist(),
                          strict=True)),
                tuple(zip(self.rank_LPK[at, p].tolist(), self.log_p_LPK[at, p].tolist(), strict=True)),
            )
            for at, layer in enumerate(self.layers)
            for p, position in enumerate(self.positions)
        ]  # fmt: skip


@torch.no_grad()
def lens(
    target: LocalTarget,
    ids: Sequence[int],
    *,
    tokens: Sequence[int] = (),
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    top: int = 5,
    read: Read | None = None,
) -> Lens:
    """The lens over a text: at all positions and layers where none are named (-1 is the last position).

    `read` comes between a layer and the model's end; without it this is the logit lens. TargetError where the end of
    the architecture cannot be used by itself.
    """
    every = range(len(ids))
    at = tuple(every[p] for p in (every if positions is None else positions) if -len(ids) <= p < len(ids))
    if len(at) < len(every if positions is None else positions) or not at:
        raise TargetError(f"a text of {len(ids)} tokens has positions 0 to {len(ids) - 1}; asked for {positions}")
    which = _all(target.model) if layers is None else tuple(layers)
    stream = residuals(target, ids, at, (*which, _all(target.model)[-1]))
    parts: list[tuple[Tensor, ...]] = []
    for layer in which:
        x_PD = stream[layer] if read is None else read(layer, stream[layer])
        found = [_looked(end(target.model, x_ND), tokens, top) for x_ND in x_PD.split(ROWS)]
        parts.append(tuple(torch.cat(one) for one in zip(*found, strict=True)))
    return Lens(which, at, tuple(tokens), *(torch.stack(part) for part in zip(*parts, strict=True)))


def decision_lens(
    target: LocalTarget, decision: Decision, messages: Sequence[Message], *, top: int = 5, read: Read | None = None
) -> tuple[Lens, int]:
    """The lens where the replies of a decision part: behind the prompt and what all of them begin with.

    The tokens asked for are those that actions go on with there, then those of alternatives; beside it stands how many
    are of the actions.

    A token that both go on with tells nothing and is left out; DesignError where none is left of either.
    """
    actions, others = ([target.text_ids(text) for text in texts] for texts in (decision.actions, decision.alternatives))
    same = _common([*actions, *others])
    sides = [{reply[len(same)] for reply in replies if len(reply) > len(same)} for replies in (actions, others)]
    mine, theirs = sorted(sides[0] - sides[1]), sorted(sides[1] - sides[0])
    if not mine or not theirs:
        raise DesignError(
            f"where they part, actions and alternatives go on alike ({decision.actions[0]!r},"
            f" {decision.alternatives[0]!r}); what a lens reads there does not tell them apart."
            " Give replies whose first difference is between the two sides"
        )
    ids = [*target.prompt_ids(messages), *same]
    return lens(target, ids, tokens=(*mine, *theirs), positions=(-1,), top=top, read=read), len(mine)


def _common(paths: Sequence[list[int]]) -> list[int]:
    """What all begin with."""
    shortest = min(map(len, paths))
    return next((paths[0][:at] for at in range(shortest) if len({path[at] for path in paths}) > 1), paths[0][:shortest])


def residuals(target: LocalTarget, ids: Sequence[int], at: Sequence[int], which: Sequence[int]) -> dict[int, Tensor]:
    """The residual stream after these blocks at these positions, (P, D) each; the last block among them is checked.

    TargetError where the model's end, given what its last block gave, does not give the model's own logits.
    """
    tree, (route,) = plant([target.fits(ids)])
    sites = {layer: Units("residual", layer, positions=tuple(at)) for layer in which}
    with torch.no_grad(), alone(target.model), seen(target.model, list(sites.values())) as found:
        own = forward(target.model, tree, route[list(at)[-1:]]).logits[0].float()
    rows = torch.tensor(at, device=own.device)
    streams = {layer: found[site].flatten(0, -2)[rows] for layer, site in sites.items()}
    last = max(which)
    if last == _all(target.model)[-1]:
        off = (end(target.model, streams[last][-1:]) - own).abs().max() / (own.max() - own.min()).clamp_min(1e-12)
        if not float(off) <= OFF.get(stream_dtype(target.model), 0.05):
            raise TargetError(
                f"the end of a {type(target.model).__name__} after its last block does not give the model's own logits"
                f" (off by {float(off):.1e} of their range), so no lens can be put on it"
            )
    return streams


@torch.no_grad()
def end(model: Any, x_ND: Tensor) -> Tensor:
    """The logits (N, V), fp32, that a model gives where its last block gives this: its own final norm, output head,
    scales and caps, whatever the architecture has.

    A pass over one token, in which what the last block gives is replaced. TargetError where that does not go.
    """

    def given(_: Any, __: Any, out: Any) -> Any:
        whole = out[0] if isinstance(out, tuple) else out
        new = x_ND[None].to(whole)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    with alone(model):
        handle = layers(model)[-1].register_forward_hook(given)
        try:
            ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            found = model(input_ids=ids, use_cache=False).logits
        except (RuntimeError, ValueError, IndexError) as error:
            raise _no_end(model, str(error)[:200]) from error
        finally:
            handle.remove()
    logits: Tensor = found.flatten(0, -2).float()  # some lay what they give out by the shape of their input
    if len(logits) != len(x_ND):
        raise _no_end(model, f"logits of shape {tuple(found.shape)} for {len(x_ND)} rows")
    return logits


def _no_end(model: Any, why: str) -> TargetError:
    return TargetError(
        f"the final norm and output head of a {type(model).__name__} cannot be used by themselves: {why}."
        " Lenses need a decoder whose blocks hand one residual stream to them"
    )


def _all(model: Any) -> tuple[int, ...]:
    return tuple(range(len(layers(model))))


def _looked(logits_NV: Tensor, tokens: Sequence[int], top: int) -> tuple[Tensor, ...]:
    log_p_NV = logits_NV.log_softmax(-1)
    best = log_p_NV.topk(top, dim=-1)
    some = log_p_NV[:, torch.tensor(tokens, dtype=torch.long, device=log_p_NV.device)]
    ranks = [(log_p_NV > some[:, k : k + 1]).sum(-1) for k in range(some.shape[1])]
    rank_NK = torch.stack(ranks, -1) if ranks else torch.zeros(len(log_p_NV), 0, dtype=torch.long)
    return tuple(x.cpu() for x in (best.indices, best.values.exp(), rank_NK, some))


__all__ = ["Lens", "Reading", "decision_lens", "end", "lens", "residuals"]
