"""Whether scores of units find the circuit of a model that was trained, and what that circuit is in truth.

Rows; alone, `python benchmarks/trace_trained.py [SEED ...]`. The model and its training are in `trace_interchange`.

The truth is settled before anything is scored, by patching every unit by itself from the other text of a twin: a unit
of the circuit is one that was planted and that matters, by a threshold set beforehand. Truth and scores are read on
different twins. What was planted and does not matter counts as not of the circuit; areas for all that was planted
stand beside.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import Row
from torch import Tensor
from trace_circuits import Texts, exact
from trace_interchange import Shape, Trained, answers, batch, build, differences, patched, reading
from trace_planted import areas_of, marked, mean_scores

from truing.trace.attribute import SCORINGS
from truing.trace.twins import Twin, of_tokens

SEEDS = (0, 1, 2)
AREA, RIGHT = 0.95, 0.99
MATTERS = 0.02
"""Of the effect: how much patching a unit must change the decision, in the mean over twins, for the unit to matter."""
FRESH = 4096
"""Texts of the task that are drawn after the training."""


def pairs(made: Trained, *, seed: int = 0) -> list[Twin]:
    """Twins of any two items in the same place, each among fillers of its own."""
    drawn, shape = random.Random(seed), made.shape
    image = made.program.second[made.program.first].tolist()
    found = []
    for one in range(shape.items):
        for two in (item for item in range(shape.items) if item != one):
            place, sides = drawn.randrange(shape.length), []
            for item in (one, two):
                text = drawn.choices(range(shape.query + 1, shape.first_answer), k=shape.length)
                sides.append([*text[:place], item, *text[place + 1 :], shape.query])
            answers = [[shape.first_answer + image[item]] for item in (one, two)]
            found.append(of_tokens(sides[0], sides[1], *answers, name=f"{one} {two} at {place}"))
    return found


@dataclass(frozen=True)
class Followed:
    """Shares of fresh texts: the task is done; the other task is, at a token; the program is followed, where bits from
    another text change what it answers; and the answer stays where any number of other units come from another text.
    """

    task: float
    other_task: float
    interchange: float
    strict: float


@torch.no_grad()
def followed(made: Trained, count: int = FRESH, *, seed: int = 1_000_000) -> Followed:
    """What the model does on texts that are drawn now."""
    drawn = batch(made, count, torch.Generator().manual_seed(seed))
    logits, _ = reading(made, drawn.ids)
    said = answers(made, logits).argmax(1)
    named = differences(made, logits).argmax(2)
    theirs = reading(made, drawn.other_ids)[1]
    right = made.program.answer(drawn.items, drawn.items, torch.zeros_like(drawn.bits))
    wanted = made.program.answer(drawn.items, drawn.others, drawn.bits)
    swapped, kept = (patched(made, drawn.ids, theirs, one).argmax(1) for one in (drawn.inside, drawn.outside))
    differs = wanted != right
    return Followed(
        float((said == right).double().mean()),
        float((named == made.program.differences(drawn.ids)).double().mean()),
        float((swapped == wanted)[differs].double().mean()),
        float((kept == said).double().mean()),
    )


@dataclass(frozen=True)
class Effects:
    """What patching takes away in twins, as a share of the effect.

    `alone`: every neuron (L, F) and head (L, H) by itself, the mean of |change|. And the change of all planted units at
    once, and of all others at once.
    """

    alone: dict[str, Tensor]
    planted: dict[str, Tensor]
    together: float
    others: float

    @property
    def circuit(self) -> dict[str, Tensor]:
        """What was planted and matters."""
        return {kind: mine & (self.alone[kind] >= MATTERS) for kind, mine in self.planted.items()}

    def of(self, *, planted: bool) -> Tensor:
        """The changes of planted units, or of all others, flat."""
        return torch.cat([found[self.planted[kind] == planted] for kind, found in self.alone.items()])


def effects(made: Trained, twins: Sequence[Twin]) -> Effects:
    """By exact patching, a pass for each unit. No scores are used."""
    texts, shape = Texts(made.model, twins), made.shape
    whole = float((texts.full - texts.other).mean())
    alone = {}
    for kind, count in (("neurons", shape.neurons), ("heads", shape.heads)):
        total = shape.layers * count
        moved = exact(texts, kind, range(total), total)
        alone[kind] = torch.from_numpy(moved).abs().mean(1).view(shape.layers, count) / whole
    planted = marked(made, alone)

    def taken(marks: dict[str, Tensor]) -> float:
        masks = texts.masks("neurons", marks["neurons"]) | texts.masks("heads", marks["heads"])
        return float((texts.full - texts.run(masks)).mean()) / whole

    return Effects(alone, planted, taken(planted), taken({kind: ~marks for kind, marks in planted.items()}))


# -- rows --------------------------------------------------------------------------------------------------------------


def rows(seeds: Sequence[int] = SEEDS, shape: Shape = Shape()) -> list[Row]:  # noqa: B008 - it is frozen
    """The mean over seeds, the least and the most: first what the circuits are, then what scores find of them."""
    began, models = time.perf_counter(), []
    for seed in seeds:
        models.append(build(seed, shape))
        print(f"trained of seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    known = [effects(made, pairs(made, seed=0)) for made in models]
    trained = time.perf_counter() - began
    return [
        *known_rows([followed(made) for made in models], known),
        *area_rows([(made, pairs(made, seed=1)) for made in models], known),
        Row("trained: seconds of training and of patching every unit", trained, "s"),
        Row("trained: seconds", time.perf_counter() - began, "s"),
    ]


def known_rows(done: Sequence[Followed], known: Sequence[Effects]) -> list[Row]:
    """Whether the circuit is known: what the model does on fresh texts, and what patching does."""
    inside, outside = ([one.of(planted=planted) for one in known] for planted in (True, False))
    matter = [int(sum(marks.sum() for marks in one.circuit.values())) for one in known]
    planted = [len(one) for one in inside]
    return [
        at_least("trained: the task is done on fresh texts", [one.task for one in done], RIGHT, "share"),
        spread("trained: the other task is done on fresh texts", [one.other_task for one in done], "share"),
        at_least("trained: what bits from another text make of it", [one.interchange for one in done], RIGHT, "share"),
        at_least("trained: the answer stays with others from another text", [one.strict for one in done], RIGHT,
                 "share"),
        spread("trained: all planted units patched", [one.together for one in known], "of the effect"),
        spread("trained: all others patched", [one.others for one in known], "of the effect"),
        spread("trained: units planted", planted, "units"),
        spread(f"trained: planted units that matter, at {MATTERS:g} of the effect", matter, "units"),
        spread("trained: least planted unit patched", [float(one.min()) for one in inside], "of the effect"),
        below("trained: largest other unit patched", [float(one.max()) for one in outside], MATTERS, "of the effect"),
    ]  # fmt: skip


def area_rows(models: Sequence[tuple[Trained, list[Twin]]], known: Sequence[Effects]) -> list[Row]:
    """The area under the ROC curve of |score| for the circuit by every rule, and for all that was planted."""
    found = []
    for rule in SCORINGS:
        scores = [mean_scores(made.model, twins, rule) for made, twins in models]
        for of, marks in (("", [one.circuit for one in known]), ("planted ", [one.planted for one in known])):
            areas = [areas_of(*one) for one in zip(scores, marks, strict=True)]
            for kind in ("units", "neurons", "heads"):
                name, values = f"trained {of}{kind}, {rule}: AUROC of |score|", [one[kind] for one in areas]
                barred = (rule, of, kind) == ("relp", "", "units")
                found.append(at_least(name, values, AREA, "area") if barred else spread(name, values, "area"))
    return found


def spread(name: str, values: Sequence[float], unit: str, **more: Any) -> Row:
    """The mean over seeds, the least and the most."""
    return Row(name, sum(values) / len(values), f"{unit}, {len(values)} seeds", min(values), max(values), **more)


def at_least(name: str, values: Sequence[float], bar: float, unit: str) -> Row:
    """A figure that must not fall below its bar with any seed."""
    return spread(name, values, unit, bar=f">= {bar:g}", holds=min(values) >= bar)


def below(name: str, values: Sequence[float], bar: float, unit: str) -> Row:
    """A figure that must stay below its bar with every seed."""
    return spread(name, values, unit, bar=f"< {bar:g}", holds=max(values) < bar)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    for row in rows(parser.parse_args().seeds or SEEDS):
        ends = f"[{row.low:.4g}, {row.high:.4g}]" if row.low is not None and row.high is not None else ""
        holds = {True: "holds", False: "MISSED", None: ""}[row.holds]
        print(f"{row.name:76} {row.value:>10.4g} {ends:22} {row.unit} {row.bar or ''} {holds}")


if __name__ == "__main__":
    main()
