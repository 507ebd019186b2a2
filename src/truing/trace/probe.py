"""Probes: do residual streams tell two cells of a factor apart, in plots that the probe has not seen, and more than the
text tells by itself?

A direction in the residual stream: the difference of means, or logistic regression (after Alain and Bengio 2016,
arXiv:1610.01644), several layers together by the mean of their scores. What a probe scores on the cases that it was
fitted on says nothing, and is not given. That something can be read off does not say that the model uses it.
"""

# N cases  G plots  L layers  D width

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from truing.errors import DesignError
from truing.records import Arrays, Case, Claim, Estimate, Measurement, Message, Named, Quantity, Surface
from truing.runner import Silent, Unit, Watcher, run
from truing.stats.detection import across, pairs
from truing.store import Store
from truing.targets.local import LocalTarget
from truing.targets.local.change import Units, layers
from truing.trace.fits import L2, Direction, Floats, Spanned, bags, difference, lengths
from truing.trace.twins import by_plot, cases_of

At = Literal["last", "mean"]
"""Where streams are read: at the last token of the prompt, or their mean over all tokens but the first."""
LEAST = 3
"""Plots; under five there is no interval."""
TOGETHER, MEANS, SHUFFLED = "layers together", "difference of means", "labels shuffled within plots"
WORDS, LENGTH = "words of the text alone", "length of the text alone"
GUESSING = 0.5
Bools = NDArray[np.bool_]
Crossed = Callable[[Bools, Bools], Floats]
"""From (labels, which cases are held out) to the scores of those."""


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """Cases of two cells."""

    streams: Mapping[int, Floats]
    """By layer, (N, D)."""
    first_N: Bools
    """Which are in the first cell."""
    plots: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A direction for each of some layers. A score is the mean over layers, each in units of its spread on the cases
    that it was fitted on; above 0 for the first cell.
    """

    directions: Mapping[int, Direction]
    spread: Mapping[int, float]
    at: At

    def __call__(self, target: LocalTarget, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Scores of other conversations."""
        seen = [stream(target, messages, tuple(self.directions), self.at) for messages in conversations]
        return [
            float(np.mean([d(x[layer][None])[0] / self.spread[layer] for layer, d in self.directions.items()]))
            for x in seen
        ]


def probe(
    target: LocalTarget,
    surfaces: Sequence[Surface],
    cells: tuple[str, str],
    store: Store,
    *,
    which: Sequence[int] = (),
    every: bool = False,
    at: At = "last",
    l2: float = L2,
    draws: int = 5,
    seed: int = 0,
    claim: Claim | None = None,
    watcher: Watcher | None = None,
) -> Measurement:
    """How well a probe tells the first cell from the second, settings of all factors or of some, in plots that are left
    out when it is fitted: areas under the ROC curve with intervals over plots, beside shuffled labels and what the text
    alone tells; the verdict stands in the note. `which`: layers, declared beforehand (without: at a quarter, half and
    three quarters of the depth).
    `every`: all layers are given by themselves too; the verdict is on those of `which`. `claim`: whose cells they are.

    DesignError for under three plots.
    """
    depth = len(layers(target.model))
    which = chosen(depth, which)
    seen = tuple(range(depth)) if every else which
    sides, sources = read_sides(target, surfaces, cells, store, which=seen, at=at, watcher=watcher)
    quantities = crossed(sides, which=which, l2=l2, draws=draws, seed=seed, watcher=watcher)
    verdict, why = judge_probe({named.name: named.quantity for named in quantities})
    record = Measurement(
        name="probe", targets=(target.card.id,),
        parents=(target.card.id, *([claim.id] if claim else []), *sorted({r.id for r in sources})),
        quantities=quantities, note=f"{cells[0]} against {cells[1]}: {verdict}: {why}",
    )  # fmt: skip
    store.add(record)
    return record


def chosen(depth: int, which: Sequence[int] = ()) -> tuple[int, ...]:
    """The layers of a verdict: those declared, or at a quarter, half and three quarters of the depth."""
    return tuple(dict.fromkeys(which or (depth // 4, depth // 2, 3 * depth // 4)))


def fit_probe(sides: Sides, *, method: Literal["logistic", "difference"] = "logistic", at: At = "last",
              l2: float = L2) -> Probe:  # fmt: skip
    """A probe of all cases, to be used on others. How good it is, `probe` says."""
    found = {
        layer: difference(x, sides.first_N) if method == "difference" else Spanned(x).logistic(sides.first_N, l2)
        for layer, x in sides.streams.items()
    }
    return Probe(found, {layer: _spread(d(sides.streams[layer])) for layer, d in found.items()}, at)


def read_sides(
    target: LocalTarget,
    surfaces: Sequence[Surface],
    cells: tuple[str, str],
    store: Store,
    *,
    which: Sequence[int] = (),
    at: At = "last",
    watcher: Watcher | None = None,
) -> tuple[Sides, list[Arrays]]:
    """The residual streams of both cells of every surface. One unit of work is one plot."""
    which = chosen(len(layers(target.model)), which)
    plots = by_plot(surfaces)
    if len(plots) < LEAST:
        raise DesignError(
            f"cases of {len(plots)} plots; a probe is tested on plots that it has not seen, so give at least {LEAST}"
        )
    cases = {plot: _labelled(plot, members, cells) for plot, members in plots.items()}
    store.add(target.card)

    def work(item: tuple[str, list[Labelled]]) -> list[Arrays]:
        plot, members = item
        seen = [stream(target, one.case.messages, which, at) for one in members]
        data = {str(layer): np.stack([x[layer] for x in seen]).astype(np.float32) for layer in which}
        names = tuple(f"{one.case.cell}: {one.surface}" for one in members)
        blob = store.put_blob(save(data), "safetensors")
        return [Arrays(name="residuals", target=target.card.id, plot=plot, cases=names, blob=blob,
                       parents=(target.card.id,))]  # fmt: skip

    units = [
        Unit(item=(plot, cases[plot]), stage="probe",
             inputs={"target": target.card.id, "surfaces": [s.digest for s in members], "cells": list(cells),
                     "layers": list(which), "at": at})
        for plot, members in plots.items()
    ]  # fmt: skip
    done = run(units, work, ledger=store, watcher=watcher, label=f"probe: streams of {target.card.name}")
    records = [record for records in done for record in records if isinstance(record, Arrays)]
    return _sides(records, cases, which, store), records


@dataclass(frozen=True, slots=True)
class Labelled:
    """A case of one of two cells."""

    surface: str
    case: Case
    first: bool


def _labelled(plot: str, members: Sequence[Surface], cells: tuple[str, str]) -> list[Labelled]:
    """The cases of a plot at either setting. DesignError where there are none of one."""
    found = [Labelled(s.name, case, cell == cells[0]) for s in members for cell in cells for case in cases_of(s, cell)]
    if len({one.first for one in found}) < 2:
        raise DesignError(f"plot {plot} has no cases of {cells[0]!r}, or none of {cells[1]!r}; a probe needs both")
    return found


def _sides(records: Sequence[Arrays], cases: Mapping[str, list[Labelled]], which: Sequence[int], store: Store) -> Sides:
    files = [load_file(store.blob_path(record.blob)) for record in records if record.blob is not None]
    streams = {layer: np.concatenate([file[str(layer)] for file in files]).astype(np.float64) for layer in which}
    members = [(record.plot, one) for record in records for one in cases[record.plot]]
    return Sides(
        streams, np.array([one.first for _, one in members]), tuple(plot for plot, _ in members),
        tuple("\n".join(message.content for message in one.case.messages) for _, one in members),
    )  # fmt: skip


def stream(target: LocalTarget, messages: Sequence[Message], which: Sequence[int], at: At) -> dict[int, Floats]:
    """The residual stream after these layers, where it is read; (D,) each."""
    ids = target.prompt_ids(messages)
    # All others look at the first token, whose stream is far longer than theirs: a mean with it would tell the length.
    positions = (len(ids) - 1,) if at == "last" else tuple(range(min(1, len(ids) - 1), len(ids)))
    sites = {layer: Units("residual", layer, positions=positions) for layer in which}
    seen = target.activations(ids, list(sites.values()))
    return {layer: seen[site].to(torch.double).mean(0).cpu().numpy() for layer, site in sites.items()}


# -- from streams to areas ---------------------------------------------------------------------------------------------


def crossed(
    sides: Sides,
    *,
    which: Sequence[int] = (),
    l2: float = L2,
    draws: int = 5,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> tuple[Named, ...]:
    """Areas under the ROC curve in plots that were left out; in the order in which they are read. `which`: the layers
    that are taken together, all where none are named.
    """
    which, watcher = tuple(which) or tuple(sides.streams), watcher or Silent()
    plots = np.array(sides.plots)
    if len(set(sides.plots)) < LEAST:
        raise DesignError(f"cases of {len(set(sides.plots))} plots; give at least {LEAST}")
    labels = [sides.first_N, *shuffles(sides.first_N, plots, max(1, draws), seed)]
    scores: dict[str, list[Floats]] = {}
    watcher.start("probe: plots left out", len(set(sides.plots)))
    for plot in dict.fromkeys(sides.plots):
        held = plots == plot
        for name, found in _fold(sides, which, held, labels, l2).items():
            every = scores.setdefault(name, [np.zeros(len(plots)) for _ in found])
            for one, part in zip(every, found, strict=True):
                one[held] = part
        watcher.step()
    matrices = {
        name: [_pairs(one, first, sides.plots) for one, first in zip(found, labels[1:] if name == SHUFFLED else labels,
                                                                     strict=False)]
        for name, found in scores.items()
    }  # fmt: skip
    areas = [Named(name=name, quantity=across(found, span=(0, 1), n=len(plots))) for name, found in matrices.items()]
    (whole,) = matrices[TOGETHER]
    gaps = [
        Named(name=f"{TOGETHER} - {name}", quantity=across([whole - matrices[name][0]], span=(-1, 1), n=len(plots)))
        for name in (WORDS, LENGTH)
    ]
    return (*areas, *gaps)


def _fold(
    sides: Sides, which: Sequence[int], held: Bools, labels: Sequence[Bools], l2: float
) -> dict[str, list[Floats]]:
    """Scores of the cases of one plot by what was fitted on the others; of shuffled labels as many as there are."""
    true, *shuffled = labels
    spans = {layer: (Spanned(x[~held]), x[held]) for layer, x in sides.streams.items()}

    def by_layer(first_N: Bools, some: Sequence[int]) -> dict[int, Floats]:
        held_out = {layer: spans[layer] for layer in some}
        return {layer: _scaled(s.logistic(first_N[~held], l2), s.x_ND, x) for layer, (s, x) in held_out.items()}

    def together(parts: Mapping[int, Floats]) -> Floats:
        return np.asarray(np.mean([parts[layer] for layer in which], axis=0))

    single = by_layer(true, tuple(spans))
    means = {layer: _scaled(difference(s.x_ND, true[~held]), s.x_ND, x) for layer, (s, x) in spans.items()}
    known = [text for text, out in zip(sides.texts, held, strict=True) if not out]
    texts = {WORDS: bags(sides.texts, known), LENGTH: lengths(sides.texts)}
    return {
        TOGETHER: [together(single)],
        SHUFFLED: [together(by_layer(first, which)) for first in shuffled],
        **{name: [Spanned(x[~held]).logistic(true[~held], l2)(x[held])] for name, x in texts.items()},
        MEANS: [together(means)],
        **{f"layer {layer}": [found] for layer, found in single.items()},
    }


def shuffles(first_N: Bools, plots: NDArray[np.str_], draws: int, seed: int) -> list[Bools]:
    """Labels shuffled within plots, so that every plot has as many of each as before."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        mixed = first_N.copy()
        for plot in dict.fromkeys(plots.tolist()):
            mixed[plots == plot] = rng.permutation(first_N[plots == plot])
        found.append(mixed)
    return found


def _scaled(direction: Direction, fitted_ND: Floats, x_ND: Floats) -> Floats:
    return direction(x_ND) / _spread(direction(fitted_ND))


def _spread(scores: Floats) -> float:
    return max(float(scores.std()), 1e-12)


def _pairs(scores: Floats, first_N: Bools, plots: Sequence[str]) -> Floats:
    sides: tuple[dict[str, list[float]], ...] = ({}, {})
    for score, first, plot in zip(scores.tolist(), first_N, plots, strict=True):
        sides[0 if first else 1].setdefault(plot, []).append(score)
    return pairs(*sides)


def judge_probe(areas: Mapping[str, Quantity]) -> tuple[str, str]:
    """The verdict on the layers together, and its grounds.

    not found: no clearer than guessing, or than shuffled labels. text: the text alone tells, and the probe is not
    clearly better. found: clearly better than guessing, shuffled labels and the text alone. inconclusive: what is left.
    """
    wanted = (TOGETHER, SHUFFLED, WORDS, LENGTH)
    some = {name: q for name in wanted if isinstance(q := areas.get(name), Estimate)}
    if len(some) < len(wanted):
        return "inconclusive", "too few plots for an interval"
    mine = some[TOGETHER]
    said = f"AUROC {mine.value:.2f} [{mine.low:.2f}, {mine.high:.2f}] in plots left out"
    if mine.low <= GUESSING or mine.low <= some[SHUFFLED].high:
        return "not found", f"{said}, which guessing or shuffled labels may do"
    ahead = {name: isinstance(q := areas[f"{TOGETHER} - {name}"], Estimate) and q.low > 0 for name in (WORDS, LENGTH)}
    for name in sorted((WORDS, LENGTH), key=lambda name: -some[name].value):
        if some[name].low > GUESSING and not ahead[name]:
            return "text", f"{said}, but the text tells as much: {some[name].value:.2f} by the {name}"
    if all(ahead.values()):
        told = max(some[WORDS].low, some[LENGTH].low) > GUESSING
        return "found", said + (", more than the text alone tells, which tells some of it" if told else "")
    return "inconclusive", f"{said}; the intervals do not tell it from what the text alone tells"


__all__ = ["Direction", "Probe", "Sides", "crossed", "fit_probe", "judge_probe", "probe", "read_sides"]
