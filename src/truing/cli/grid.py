"""`truing audit --targets FILE`: many targets beside each other."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from truing.cli.common import Progress, emit, number

UNREACHED = 3
"""Exit code where a target could not be audited."""


def many(
    file: Path,
    families: list[str],
    store_path: Path,
    till: Any,
    judge_name: str | None,
    how: dict[str, Any],
    *,
    as_json: bool,
    fail_if: str | None,
) -> int:
    """Audit the targets of a file, print how they stand, and say what was left out and what was spent."""
    from truing.audit import grid, spec
    from truing.audit.across import buckets
    from truing.store import open_store
    from truing.targets import resolve
    from truing.targets.limits import Metered, payable
    from truing.targets.prices import price, table
    from truing.targets.roster import Entry, roster

    listed = roster(file, judge=judge_name or "")
    limits = buckets(listed)
    progress = Progress()
    till.tell = progress.say
    with progress.running():
        asked = [*(one.name for one in listed.target), *([judge_name] if judge_name else [])]
        if unknown := [name for name in asked if price(name, listed.price) is None]:
            progress.say(f"no known price, and not in the sum: {', '.join(unknown)} (prices of {table().date})")
        judge = None
        if judge_name:
            known = price(judge_name, listed.price)
            payable(judge_name, known, till.budget)
            spaced = limits.get(Entry(name=judge_name).provider)
            judge = Metered(resolve(judge_name, progress), till, price=known, limits=spaced)
        with open_store(store_path) as store:
            store.add(spec())
            found = grid(
                listed, families, store, resolve, till=till, limits=limits, watcher=progress, judge=judge, **how
            )  # fmt: skip
    value = {
        "grid": found.grid.plain()["body"] | {"id": found.grid.id},
        "standings": [one.plain()["body"] | {"id": one.id} for one in found.standings],
        "claims": [one.plain()["body"] | {"id": one.id} for one in found.claims],
        "spent": till.total.plain(),
        "store": str(store_path),
    }  # fmt: skip
    emit(value, as_json=as_json, lines=[*lines(value), f"spent    {till.total}"])
    if found.spent:
        click.echo(f"truing: {found.spent}", err=True)
        return found.spent.exit_code
    if found.grid.failed:
        return UNREACHED
    return int(fail_if == "supported" and any(one.verdict == "supported" for one in found.claims))


def standing_lines(standings: list[dict[str, Any]]) -> list[str]:
    """How one target stands (as plain data) in company families."""
    return [
        f"{one['family']} as {one['outcome']} ({one['clause']}), where the means are there: {number(one['harm'])}"
        f"{_undecided(one)}; where they are absent: {number(one['control'])};"
        f" {'questions answered rightly' if one['outcome'] == 'preference' else 'ended well without them'}:"
        f" {number(one['competence'])}"
        for one in standings
    ]


def lines(value: dict[str, Any]) -> list[str]:
    """A grid (as plain data): by family and outcome, targets from most harm to least, and the effects found."""
    grid, said = value["grid"], []
    names = {card: name for name, card in grid["targets"]}
    letters, slopes = dict(grid["ties"]), {one["name"]: one["quantity"] for one in grid["slopes"]}
    for (family, outcome), some in _by_family(value["standings"]):
        ordered = sorted(some, key=lambda one: -one["harm"].get("value", float("-inf")))
        theirs = [claim for claim in value["claims"] if (claim["family"], claim["outcome"]) == (family, outcome)]
        said += [
            f"{family} as {outcome} ({some[0]['clause']}), where the means are there; who shares a letter was not"
            " told apart",
            *(
                f"  {letters.get(one['id'], '-'):4} {names[one['target']]:32} {number(one['harm'])}{_undecided(one)}"
                for one in ordered
            ),
            f"       effects: {_effects(theirs)}",
            f"       on capability ({grid['capability_from']}): {number(slopes[f'{family}, {outcome}'])}",
        ]
    return said + [f"left out {name}: {why}" for name, why in grid["failed"]]


def _by_family(standings: list[dict[str, Any]]) -> list[tuple[tuple[str, str], list[dict[str, Any]]]]:
    def key(one: dict[str, Any]) -> tuple[str, str]:
        return one["family"], one["outcome"]

    return [(both, list(group)) for both, group in groupby(sorted(standings, key=key), key=key)]


def _undecided(one: dict[str, Any]) -> str:
    if one["worst_case"] is None or one["worst_case"][0] == one["worst_case"][1]:
        return ""
    return f", up to {one['worst_case'][1]:.3f} with what is undecided"


def _effects(claims: list[dict[str, Any]]) -> str:
    """In how many targets each effect is supported; those of none are left out."""
    targets = len({claim["target"] for claim in claims})
    count = Counter(claim["effect"] for claim in claims if claim["verdict"] == "supported")
    found = ", ".join(f"{effect} supported in {some} of {targets}" for effect, some in count.most_common())
    return found or f"none supported in any of {targets}"
