"""`truing loop`: one turn of the wheel."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from truing.cli.common import Progress, claim_lines, emit, json_option, number, seed_option, store_option

FAIL_IF = ("no-claim", "not-fixed", "unverified")


@click.command(
    "loop",
    epilog="Example:  truing loop local/tiny --store /tmp/try --json",
    short_help="Find, explain, fix, verify, prove.",
)
@click.argument("target", default="local/smollm2-135m")
@click.option("--family", "families", multiple=True, help="Family of scenarios; repeat for several. Default: all.")
@click.option("--fail-if", multiple=True, type=click.Choice(FAIL_IF), help="Exit with 1 in this case.")
@seed_option
@store_option
@json_option
def command(
    target: str,
    families: tuple[str, ...],
    fail_if: tuple[str, ...],
    seed: int,
    store_path: Path,
    as_json: bool,
) -> int:
    """Test claims about TARGET; explain, train out and re-test a supported one; pack and sign the evidence.

    Where no claim is supported the loop ends after the audit, says so, and packs the evidence all the same.
    """
    from truing.audit import FAMILIES, family
    from truing.store import open_store
    from truing.studies.loop import loop
    from truing.studies.options import Options
    from truing.targets import resolve

    chosen = families or FAMILIES
    for name in chosen:
        family(name)
    began, progress = time.perf_counter(), Progress()
    with progress.running():
        subject = resolve(target, progress)  # first: a typo must not make a store
        with open_store(store_path) as store:
            turn = loop(subject, store, options=Options(families=tuple(chosen), seed=seed), watcher=progress)
            result = replace(turn, seconds=time.perf_counter() - began).plain(store)  # with loading the target
    emit(result, as_json=as_json, lines=summary(result))
    failed = {
        "no-claim": result["claim"] is None,
        "not-fixed": bool(result["failed"]) or result["claim"] is None,
        "unverified": not result["bundle"]["verified"],
    }
    return int(any(failed[condition] for condition in fail_if))


def summary(result: dict[str, Any]) -> list[str]:
    """The loop's result in a screenful of text."""
    lines = [f"target   {result['target']['name']}", ""]
    lines += claim_lines(result["claims"])
    lines += ["", result["why"]]
    if graph := result["graph"]:
        lines += ["", f"trace    {graph['verdict']}: {graph['why']} (closure error {graph['closure_error']:.1e})"]
    for title in ("runout", "retention", "relearning"):
        for name, quantity in result[title].items():
            lines.append(f"{title:8} {name}: {number(quantity)}")
    lines += [f"failed   {line}" for line in result["failed"]]
    return [
        *lines,
        f"gate     {_gate(result['gate'])}",
        "",
        f"report   {result['report']}",
        f"bundle   {result['bundle']['path']} ({'verified' if result['bundle']['verified'] else 'NOT VERIFIED'})",
        f"took     {result['seconds']} s, peak {result['peak_rss_mb']} MB",
    ]


def _gate(gate: dict[str, Any]) -> str:
    return f"not measured: {gate['reason']}" if "reason" in gate else f"{gate['verdict']}: {gate['why']}"
