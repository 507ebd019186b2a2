"""What every verb shares: options, output, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from truing.text import escaped, one_line

if TYPE_CHECKING:
    from truing.store import Store

F = TypeVar("F", bound=Callable[..., Any])


def store_option(command: F) -> F:
    """`--store PATH`, default ./.truing."""
    return click.option(
        "--store",
        "store_path",
        type=click.Path(path_type=Path),
        default=Path(".truing"),
        show_default=True,
        help="Folder of the store.",
    )(command)


def json_option(command: F) -> F:
    """`--json`: one JSON object on standard output, progress on standard error."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr.")(
        command
    )


def seed_option(command: F) -> F:
    """`--seed N`."""
    kind = click.IntRange(0, 2**32 - 1)
    return click.option("--seed", type=kind, default=0, show_default=True, help="Seed of everything random.")(command)


def existing(path: Path) -> Store:
    """The store in a folder, for writing. StoreError where there is none: a typo must not make one."""
    from truing.store import open_store

    open_store(path, mode="read").close()
    return open_store(path)


def emit(value: dict[str, Any], *, as_json: bool, lines: Iterable[str]) -> None:
    """Print the result, JSON or lines, on standard output. Whatever text a line holds, it stays one line."""
    click.echo(as_text(value) if as_json else "\n".join(map(one_line, lines)))


def as_text(value: Any) -> str:
    """Plain data as JSON for reading."""
    return escaped(json.dumps(value, indent=2, ensure_ascii=False))


class Progress:
    """Progress on standard error: a live bar on a terminal, plain lines (one per stage, then every 10 s) elsewhere.

    Stages report through `start(label, total)` and `step()`; nothing else in Truing prints progress.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._live: Any = None
        self._task: Any = None
        self._label, self._total, self._done = "", 0, 0
        self._said = self._began = time.monotonic()

    def start(self, label: str, total: int) -> None:
        """A new stage of `total` units begins."""
        self._label, self._total, self._done = label, total, 0
        self._began = self._said = time.monotonic()
        if self._live is not None:
            self._task = self._live.add_task(label, total=total)
        elif not self._terminal:
            click.echo(f"[truing] {label}: {total} unit{'' if total == 1 else 's'}", err=True)

    def step(self, count: int = 1) -> None:
        """So many units are done."""
        self._done += count
        if self._live is not None:
            self._live.advance(self._task, count)
        elif not self._terminal and (time.monotonic() - self._said > 10 or self._done == self._total):
            self._said = time.monotonic()
            click.echo(
                f"[truing] {self._label}: {self._done}/{self._total} ({self._said - self._began:.0f} s)", err=True
            )

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            click.echo(f"[truing] {line}", err=True)

    @contextmanager
    def running(self) -> Iterator[Progress]:
        """Show the bar while the block runs."""
        if not self._terminal:
            yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, console=Console(stderr=True)) as self._live:
            yield self
        self._live = None


def number(quantity: dict[str, Any]) -> str:
    """A quantity (as plain data) in one line."""
    if "reason" in quantity:
        return f"not measured ({quantity['reason']})"
    return (
        f"{quantity['value']:+.3f} [{quantity['low']:+.3f}, {quantity['high']:+.3f}] {quantity['unit']}"
        f" (n={quantity['n']}, clusters={quantity['clusters']})"
    )


def claim_lines(claims: list[dict[str, Any]]) -> list[str]:
    """Claims (as plain data) in three lines each."""
    lines = []
    for claim in claims:
        lines.append(
            f"{claim['verdict'].upper():14} {claim['family']} as {claim['outcome']} ({claim['clause']})"
            f"  {claim['id'][:12]}"
        )
        lines.append(f"               naive {number(claim['naive'])}; beyond the control {number(claim['specific'])}")
        lines.append(f"               {claim['why']}")
    return lines
