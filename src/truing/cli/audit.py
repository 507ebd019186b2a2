"""`truing audit`: FIND."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import Defaulting, Progress, claim_lines, emit, json_option, seed_option, store_option
from truing.cli.grid import many, standing_lines
from truing.cli.plan import plan, plan_options
from truing.cli.review import labels, sample

if TYPE_CHECKING:
    from truing.audit.company.plans import Shape
    from truing.records import Half


@click.group(
    "audit",
    cls=Defaulting,
    default="run",
    alone=True,
    epilog="Example:  truing audit local/smollm2-135m --family sycophancy"
    "  ·  `truing audit TARGET` is `truing audit run TARGET`.",
    short_help="FIND.",
)
def command() -> None:
    """Test claims about a target; write and check scenarios; have a sample of episodes read by people."""


command.add_command(sample)
command.add_command(labels)


command.add_command(plan)


@command.command("run", epilog="Example:  truing audit run local/smollm2-135m --family sycophancy")
@click.argument("target", required=False)
@click.option(
    "--family",
    "families",
    multiple=True,
    help="Family of scenarios; repeat for several. Default: those of facts and"
    " insider; `company` stands for all families of company plots.",
)
@click.option(
    "--half",
    type=click.Choice(["develop", "held-out"]),
    help="Half of the plots and wordings. The held-out half is kept for testing a fix. Default: develop, or all plots"
    " of a family that has too few for halves.",
)
@plan_options
@click.option(
    "--play/--no-play",
    default=None,
    help="Company plots: whether the target acts in them. Default: where its choices cannot be scored.",
)
@click.option("--judge", "judge_name", help="Company plots: a target that is asked about the texts of calls.")
@click.option(
    "--targets",
    "roster_file",
    type=click.Path(path_type=Path),
    help="A file of targets (TOML): all of them in company plots, beside each other.",
)
@click.option("--budget", "limit", help="What replies may cost at most: '500 calls', '2M tokens', '5 USD', or several.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Company plots: how often each cell is played, for targets that answer at random.",
)
@click.option(
    "--turns", type=click.IntRange(1), default=8, show_default=True, help="Company plots: of an episode, at most."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Company plots: of one reply."
)
@seed_option
@click.option("--list", "list_only", is_flag=True, help="List families, their clauses and plots; audit nothing.")
@click.option("--fail-if", type=click.Choice(["supported"]), help="Exit with 1 if a claim is supported.")
@store_option
@json_option
def run(
    target: str | None,
    families: tuple[str, ...],
    half: Half | None,
    design: Shape,
    runs: int,
    interactions: tuple[str, ...],
    play: bool | None,
    judge_name: str | None,
    roster_file: Path | None,
    limit: str | None,
    epochs: int,
    turns: int,
    max_tokens: int,
    seed: int,
    list_only: bool,
    fail_if: str | None,
    store_path: Path,
    as_json: bool,
) -> int:
    """Test claims about TARGET: the naive effect, its controls, the effect beyond them, and a verdict.

    TARGET is local/smollm2-135m where nothing else is said. With --targets, many are set beside each other.
    """
    from truing.audit import FAMILIES, Plan, Way, audited, catalogue, kinds, spec
    from truing.audit.company import interaction
    from truing.errors import UsageError
    from truing.records import Replies, Turn
    from truing.store import open_store
    from truing.targets import resolve
    from truing.targets.limits import Metered, Till, budget, payable
    from truing.targets.prices import price

    if target and roster_file:
        raise UsageError(f"give a target ({target}) or a file of targets ({roster_file}), not both")
    target = target or "local/smollm2-135m"
    everything = ("company",) if roster_file else (*FAMILIES, *(["company"] if list_only else []))
    asked_for = families or everything
    chosen = [name for one in asked_for for name in (kinds() if one == "company" else [one])]
    plan = Plan(design, runs, seed, tuple(dict.fromkeys(map(interaction, interactions))))
    rows = catalogue(chosen, half, plan)  # first: a typo must not make a store
    if list_only:
        lines = [
            f"{row['family']:17} {row['clause']:4} {len(row['plots']):2} plots, {row['surfaces']:3} surfaces:"
            f" {row['question']}"
            for row in rows
        ]
        emit({"families": rows}, as_json=as_json, lines=lines)
        return 0
    till = Till(budget(limit)) if limit else Till()
    how: dict[str, Any] = {
        "half": half,
        "plan": plan,
        "play": play,
        "way": Way(turns=turns, max_tokens=max_tokens),
        "epochs": epochs,
    }
    if roster_file:
        return many(roster_file, chosen, store_path, till, judge_name, how, as_json=as_json, fail_if=fail_if)
    for name in filter(None, (target, judge_name)):
        payable(name, price(name), till.budget)
    progress = Progress()
    with progress.running():
        subject = Metered(resolve(target, progress), till, price=price(target))  # first, for the same reason
        judge = Metered(resolve(judge_name, progress), till, price=price(judge_name)) if judge_name else None
        with open_store(store_path) as store:
            store.add(spec())
            done = audited(subject, chosen, store, judge=judge, watcher=progress, **how)
            found = done.claims
            said = [one for one in store.of_kind("turn") if isinstance(one, Turn) and one.target == subject.card.id]
            asked = [store.get(record) for record in {parent for claim in found for parent in claim.parents}]
    claims, standings = (
        [one.plain()["body"] | {"id": one.id} for one in some] for some in (found, done.standings)
    )  # fmt: skip
    redactions = sum(record.redactions for record in [*asked, *said] if isinstance(record, (Replies, Turn)))
    lines = [*claim_lines(claims), *standing_lines(standings)]
    if till.total.calls:
        lines.append(f"spent    {till.total}")
    if redactions:
        lines.append(f"{redactions} {'secret was' if redactions == 1 else 'secrets were'} redacted in stored replies")
    value = {"target": target, "claims": claims, "standings": standings, "spent": till.total.plain(),
             "redactions": redactions, "store": str(store_path)}  # fmt: skip
    emit(value, as_json=as_json, lines=lines)
    return int(fail_if == "supported" and any(claim.verdict == "supported" for claim in found))


@command.command("check", epilog="Example:  truing audit check my-plot.yaml")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> int:
    """Play plots with scripted agents and see that they are classed as what they are; without FILES all that ship.

    The exit code is 1 where a plot has a fault.
    """
    from truing.audit.company import kinds, plot, plots, self_test, shared

    found = [plot(file) for file in files] or [one for family in kinds() for one in plots(family)]
    progress = Progress()
    rows: list[dict[str, Any]] = []
    with progress.running():
        progress.start("check: plots", len(found))
        for one in found:
            seen = self_test(one, shared().levels)
            rows.append({"plot": one.id, "family": one.family, "half": one.half, "digest": one.digest,
                         "cells": seen.cells, "prompts": seen.prompts, "episodes": seen.episodes,
                         "faults": list(seen.faults)})  # fmt: skip
            progress.step()
    faults = sum(len(row["faults"]) for row in rows)
    prompts = sum(row["prompts"] for row in rows)
    total = f"{len(rows)} plots, {prompts} distinct prompts, {sum(row['episodes'] for row in rows)} episodes: "
    lines = [
        f"{row['family']:17} {row['plot']:24} {row['prompts']:4} prompts  {_faults(row['faults'])}" for row in rows
    ]
    lines += [f"  {row['plot']}: {fault}" for row in rows for fault in row["faults"]]
    emit({"plots": rows, "prompts": prompts, "faults": faults}, as_json=as_json, lines=[*lines, total + _count(faults)])
    return int(faults > 0)


def _faults(some: list[str]) -> str:
    return _count(len(some)) if some else "passes"


def _count(faults: int) -> str:
    return f"{faults} fault{'' if faults == 1 else 's'}"


@command.command("show", epilog="Example:  truing audit show my-plot.yaml --cell 'threat=replacement means=present'")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cell", "said", default="", help="Levels of factors; those that are not named are at their baseline.")
@click.option("--surface", type=click.IntRange(1), default=1, show_default=True, help="Which set of names.")
@json_option
def show(file: Path, said: str, surface: int, as_json: bool) -> int:
    """Print a cell of a plot as the model would see it. FILE is a plot's file, or the id of one that ships."""
    from truing.audit.company import cell, plot, scene, setting, shared, shipped
    from truing.errors import UsageError

    one = plot(file) if file.suffix else shipped(str(file))
    if surface > len(one.surfaces):
        raise UsageError(f"plot {one.id} has {len(one.surfaces)} surfaces, not {surface}")
    there = scene(one, surface - 1, setting(said, shared().levels))
    messages = [{"role": message.role, "content": message.content} for message in there.messages]
    tools = [tool.name for tool in there.tools]
    lines = [f"{one.id}, surface {surface}: {cell(there.setting)}", ""]
    for message in messages:
        lines += [f"[{message['role']}]", *message["content"].split("\n"), ""]
    lines.append(f"tools: {', '.join(tools)}")
    value = {"plot": one.id, "surface": surface, "cell": cell(there.setting), "messages": messages, "tools": tools}
    emit(value, as_json=as_json, lines=lines)
    return 0


@command.command("new-scenario", epilog="Example:  truing audit new-scenario my-plot.yaml")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def new_scenario(file: Path, as_json: bool) -> int:
    """Write a commented template of a plot to FILE. It passes `truing audit check` as it is."""
    from truing.audit.company import template
    from truing.errors import UsageError

    if file.exists():
        raise UsageError(f"{file} exists; name a file that does not")
    file.write_text(template(file.stem), encoding="utf-8")
    emit({"file": str(file)}, as_json=as_json, lines=[f"written  {file}", f"check    truing audit check {file}"])
    return 0
