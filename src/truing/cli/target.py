"""`truing target`: list targets, look at one."""

from __future__ import annotations

import time

import click

from truing.cli.common import Progress, emit, json_option


@click.group("target", short_help="List targets, look at one.")
def command() -> None:
    """Targets: what is studied."""


@command.command("ls", epilog="Example:  truing target ls")
@json_option
def ls(as_json: bool) -> int:
    """List the kinds of target and the names that ship."""
    from truing.targets import KINDS
    from truing.targets.scripted import names as scripts

    names = {"local": ["local/smollm2-135m", "local/tiny"], "scripted": [f"scripted/{name}" for name in scripts()]}
    lines = [
        line
        for kind, what in KINDS.items()
        for line in (f"{kind:9} {what}", f"          {', '.join(names.get(kind, []))}")
    ]
    emit({"kinds": KINDS, "names": names}, as_json=as_json, lines=lines)
    return 0


@command.command("show", epilog="Example:  truing target show local/smollm2-135m")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> int:
    """Load a target (the bundled model is made ready on first use) and print its card."""
    from truing.targets import resolve

    began = time.perf_counter()
    progress = Progress()
    with progress.running():
        card = resolve(name, progress).card
    body = card.plain()["body"] | {"id": card.id, "seconds": round(time.perf_counter() - began, 2)}
    lines = [f"{key:10} {value}" for key, value in body.items() if value is not None]
    emit(body, as_json=as_json, lines=lines)
    return 0
