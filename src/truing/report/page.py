"""The page: all sections around a loop, or around whatever records there are."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from truing.records import Answer, Claim, Gate, Graph, Grid, Loop, Measurement, Record, Target, Training
from truing.report import (
    case,
    claims,
    evidence,
    gate,
    graph,
    grid,
    measurements,
    pressure,
    result,
    training,
    unmeasured,
)
from truing.report.case import Blobs
from truing.report.numbers import number
from truing.report.pool import Pool, short
from truing.report.text import visible


@dataclass(frozen=True, slots=True)
class Subject:
    """The records that the sections are about, picked from all there are."""

    targets: list[Target]
    claims: list[Claim]
    graphs: list[tuple[str, Graph]]
    scale: Graph | None
    """The graph on whose scale the others are drawn; None: each on its own."""
    runs: list[Training]
    carried: str | None


def page(loop: Loop, records: Sequence[Record], *, title: str | None = None, blobs: Blobs | None = None) -> str:
    """One self-contained HTML file about a loop. `records` are its ancestors; what is missing is named in the page.

    `blobs` gives the files that records name; without it, graphs of cases are not drawn, and the page says so.
    """
    pool = Pool.of([*records, loop])
    pictures = [("What carries the effect", loop.graph), ("The same units after the fix", loop.fixed_graph)]
    graphs = [(heading, pool.get(Graph, one)) for heading, one in pictures]
    subject = Subject(
        targets=pool.some(Target, [loop.target]), claims=pool.some(Claim, loop.claims),
        graphs=[(heading, one) for heading, one in graphs if one], scale=pool.get(Graph, loop.graph),
        runs=pool.some(Training, [loop.training or ""]),
        carried=loop.claim,
    )  # fmt: skip
    name = subject.targets[0].name if subject.targets else f"target {short(loop.target)}"
    return _render(pool, subject, loop, blobs, title or f"Truing report: {name}")


def overview(records: Sequence[Record], *, title: str = "Truing report", blobs: Blobs | None = None) -> str:
    """One self-contained HTML file about records without a loop. `blobs`: as above."""
    pool = Pool.of(records)
    subject = Subject(
        targets=sorted(pool.all(Target), key=lambda target: (target.name, target.id)),
        claims=sorted(pool.all(Claim), key=lambda claim: (claim.family, claim.outcome != "preference", claim.id)),
        graphs=[(f"Graph {short(one.id)}", one) for one in pool.all(Graph)],
        scale=None, runs=training.runs(pool), carried=None,
    )  # fmt: skip
    return _render(pool, subject, None, blobs, title)


def _render(pool: Pool, subject: Subject, loop: Loop | None, blobs: Blobs | None, title: str) -> str:
    shown = {claim.id for claim in subject.claims}
    others = [claim for claim in pool.all(Claim) if claim.id not in shown]
    cases, more_cases = case.views(pool, blobs)
    css, script = _asset("report.css"), _asset("report.js")
    return _environment().get_template("page.html").render(
        title=title, css=css, script=script, css_hash=_hash(css), script_hash=_hash(script), turn=loop,
        targets=subject.targets, result=result.result(subject.claims, loop, pool),
        claims=[
            claims.view(claim, pool, carried=claim.id == subject.carried)
            for claim in subject.claims if not claim.effect
        ],
        pressures=pressure.views(subject.claims, pool), grids=[grid.view(one, pool) for one in pool.all(Grid)],
        others=[claims.view(claim, pool) for claim in others],
        graphs=[graph.view(one, pool, heading, scale=subject.scale) for heading, one in subject.graphs],
        changes=graph.changes(*(one for _, one in subject.graphs)) if loop and len(subject.graphs) == 2 else [],
        runs=[training.view(one, pool) for one in subject.runs], number=number,
        other_runs=[one for one in training.runs(pool) if one not in subject.runs],
        blocks=measurements.blocks(loop) if loop else [],
        gate=result.quantity(loop.gate) if loop and not loop.judged else "",
        measurements=[measurements.view(one, pool) for one in pool.all(Measurement)],
        gates=[gate.view(one, pool) for one in pool.all(Gate)], games=_games(pool),
        cases=cases, more_cases=more_cases, gaps=unmeasured.gaps(pool), evidence=evidence.view(pool), short=short,
    )  # fmt: skip


def _games(pool: Pool) -> list[tuple[str, list[Answer]]]:
    """Answers by game, in the order of numbers; one to which a loop added stands for what it was before."""
    given = sorted(pool.all(Answer), key=lambda one: bool(one.gate))
    latest = {(one.game, one.number, one.player, one.seed): one for one in given}
    answers = [latest[key] for key in sorted(latest)]
    return [(game, [one for one in answers if one.game == game]) for game in dict.fromkeys(one.game for one in answers)]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("truing.report"), autoescape=True, undefined=StrictUndefined, finalize=visible,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


@cache
def _asset(name: str) -> Markup:
    file = resources.files("truing.report").joinpath("templates", name)
    return Markup(file.read_text(encoding="utf-8"))  # noqa: S704 - this package's own style sheet and script


def _hash(asset: str) -> str:
    """For the page's content security policy: no script but this package's own runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(asset.encode()).digest()).decode()
