"""What every verb shares: options, output, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from truing.text import escaped, one_line

if TYPE_CHECKING:
    from truing.store import Store

F = TypeVar("F", bound=Callable[..., Any])


class Defaulting(click.Group):
    """A group one of whose commands may be left out: what begins with no command of it is an argument of that.

    `alone`: so it is where nothing is said at all; else that asks for help.
    """

    def __init__(self, *args: Any, default: str = "", alone: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.default, self.alone = default, alone

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command in where it was left out, and go on."""
        return super().parse_args(ctx, self.spelled_out(ctx, args))

    def spelled_out(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Arguments with the command that was left out."""
        left_out = args[0] not in {*self.commands, *ctx.help_option_names} if args else self.alone
        return [self.default, *args] if left_out else args


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


@dataclass(slots=True)
class _Stage:
    """So many units of work, of which some are done."""

    label: str
    total: int
    task: Any = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)


class Progress:
    """Progress on standard error: a live bar on a terminal, plain lines (one per stage, then every 10 s) elsewhere.

    Stages report through `start(label, total)` and `step()`; nothing else in Truing prints progress. A stage that
    begins before the last one is done stands within it: once it is done, steps are those of the stage around it again.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._live: Any = None
        self._stages: list[_Stage] = []

    def _close(self) -> None:
        """Leave the stages that are done."""
        while self._stages and self._stages[-1].done >= self._stages[-1].total:
            self._stages.pop()

    def start(self, label: str, total: int) -> None:
        """A new stage of `total` units begins."""
        self._close()
        label = one_line(label)
        stage = _Stage(label, total)
        self._stages.append(stage)
        if self._live is not None:
            stage.task = self._live.add_task(label, total=total)
        elif not self._terminal:
            click.echo(f"[truing] {label}: {total} unit{'' if total == 1 else 's'}", err=True)

    def step(self, count: int = 1) -> None:
        """So many units are done."""
        self._close()
        if not self._stages:
            return
        stage = self._stages[-1]
        stage.done += count
        now = time.monotonic()
        if self._live is not None:
            self._live.advance(stage.task, count)
        elif not self._terminal and (now - stage.said > 10 or stage.done == stage.total):
            stage.said = now
            click.echo(f"[truing] {stage.label}: {stage.done}/{stage.total} ({now - stage.began:.0f} s)", err=True)

    def say(self, line: str) -> None:
        """A line that stays. Whatever text it holds, it is one line, and steers no terminal."""
        line = one_line(line)
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
        self._stages.clear()  # what ended early has no bar to go on with


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
            f"{claim['verdict'].upper():14} {' '.join(filter(None, (claim['family'], claim.get('effect'))))}"
            f" as {claim['outcome']} ({claim['clause']}){', corrected by labels' * bool(claim.get('labels'))}"
            f"  {claim['id'][:12]}"
        )
        lines.append(f"               naive {number(claim['naive'])}; beyond the control {number(claim['specific'])}")
        lines.append(f"               {claim['why']}")
    return lines
