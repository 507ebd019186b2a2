"""`truing audit plan`: what company plots take and what they can find, before anything is spent."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import F, emit, json_option, seed_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from truing.audit.company.aliasing import Aliased
    from truing.audit.company.plans import Plan, Shape
    from truing.audit.company.prospect import Prospect
    from truing.records import Half


def plan_options(command: F) -> F:
    """What is run of company plots: `--design`, `--runs`, `--interaction` (several times)."""
    options = (
        click.option(
            "--design",
            type=click.Choice(["array", "crossed", "fraction", "random", "full"]),
            default="crossed",
            show_default=True,
            help="Company plots: which cells are run.",
        ),
        click.option(
            "--runs", type=click.IntRange(2), default=36, show_default=True, help="Company plots: cells of each."
        ),
        click.option(
            "--interaction",
            "interactions",
            multiple=True,
            metavar="'F=LEVEL x F=LEVEL'",
            help="Company plots: an interaction of two levels that is tested beside their effects; repeat for several."
            " Refused where the design does not have it clear.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    "plan",
    epilog="Example:  truing audit plan --family coercion --design fraction --runs 144"
    " --interaction 'threat=replacement x conflict=present'",
)
@click.option("--family", "families", multiple=True, help="Family of company plots; repeat for several. Default: all.")
@click.option("--half", type=click.Choice(["develop", "held-out"]), help="Half of the plots, as of `audit run`.")
@plan_options
@seed_option
@json_option
def plan(
    families: tuple[str, ...],
    half: Half | None,
    design: Shape,
    runs: int,
    interactions: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> int:
    """Say what an audit of company plots would take, what it could find, and what its design aliases.

    Nothing is asked of any target, and nothing is kept.
    """
    from truing.audit.company import aliasing, interaction, kinds
    from truing.audit.company.plans import Plan
    from truing.audit.company.prospect import claims_of, prospect
    from truing.errors import UsageError

    chosen = [name for one in families or ("company",) for name in (kinds() if one == "company" else [one])]
    if unknown := [name for name in chosen if name not in kinds()]:
        raise UsageError(f"{unknown[0]!r} is no family of company plots; there are {', '.join(kinds())}")
    chosen = list(dict.fromkeys(chosen))
    this = Plan(design, runs, seed, tuple(dict.fromkeys(map(interaction, interactions))))
    aliasing.refuse(this)
    tests = len(chosen) * claims_of(this)
    rows = [prospect(name, half, this, tests=tests) for name in chosen]
    aliased = {
        "effects": aliasing.main_effects(this),
        "controls": aliasing.controls(this),
        "interactions": aliasing.declared(this),
    }
    emit(_plain(this, rows, aliased), as_json=as_json, lines=_lines(this, rows, aliased))
    return 0


def _plain(this: Plan, rows: Sequence[Prospect], aliased: Mapping[str, Sequence[Aliased]]) -> dict[str, Any]:
    from truing.audit.company.aliasing import RENAMED
    from truing.audit.company.plans import runs_of

    found = {
        kind: [{"term": one.term, "run": one.whole, "aliases": [list(other) for other in one.others]} for one in some]
        for kind, some in aliased.items()
    }
    return {
        "design": {
            "shape": this.shape,
            "runs": len(runs_of(this)),
            "seed": this.seed,
            "interactions": [str(one) for one in this.interactions],
        },
        "families": [{**asdict(row), "interactions": dict(row.interactions)} for row in rows],
        "aliases": found,
        "controls": _controls(aliased["controls"]),
        "renaming": RENAMED,
    }


def _lines(this: Plan, rows: Sequence[Prospect], aliased: Mapping[str, Sequence[Aliased]]) -> list[str]:
    from truing.audit.company.aliasing import RENAMED, said

    lines = []
    for row in rows:
        takes = f"{row.surfaces} surfaces, {row.episodes:,} episodes, at most {row.calls:,} calls"
        lines.append(f"{row.family:17} {row.clause:4} {len(row.plots)} plots, {takes}")
        lines.append(f"  {row.promise.partition(': ')[2]}")
    lines.append(
        "calls are turns, and a question after each episode; a judge's are not counted, and scoring takes none"
    )
    lines += ["", f"aliases of {said(this)}: what is part of an estimate, and the share of it"]
    headings = {
        "effects": "effects of pressures, where the means are there (of harm that is all: without them there is none)",
        "controls": "interactions with the means (the effect beyond the control)",
        "interactions": "declared interactions",
    }
    for kind, found in aliased.items():
        lines += [f"  {headings[kind]}:", *map(_line, found)] if found else []
    return [*lines, _controls(aliased["controls"]), RENAMED]


def _line(one: Aliased) -> str:
    from truing.audit.company.aliasing import some

    held = f"with {some(one.others)}" if one.others else "clear"
    return f"    {one.term}: {held if one.whole else 'not estimated, since not every combination of levels is run'}"


def _controls(some: Sequence[Aliased]) -> str:
    """Which of the interactions that decide about claims are aliased, in a line."""
    clear = "clear of every main effect and every other interaction of two factors"
    kinds: dict[str, list[str]] = {}
    for one in some:
        kind = "not estimated" if not one.whole else "aliased" if one.others else clear
        kinds.setdefault(kind, []).append(one.term.partition(" ")[0])
    told = "; ".join(f"{kind} for {', '.join(names)}" for kind, names in kinds.items())
    return f"The interactions with the means, which decide about claims, are {told}."
