"""`truing target`: list targets, look at one, serve one, plant a behaviour in one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import Progress, emit, json_option, number, seed_option, store_option

if TYPE_CHECKING:
    from truing.studies.organisms import Organism

KINDS = ("planted", "clean", "hidden")


@click.group("target", short_help="List targets, look at one, serve one, plant one.")
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
        for line in (f"{kind:9} {what}", *([f"          {', '.join(names[kind])}"] if kind in names else []))
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
        target = resolve(name, progress)
    card, memory = target.card, getattr(target, "memory", None)
    body = card.plain()["body"] | {"id": card.id, "seconds": round(time.perf_counter() - began, 2)}
    lines = [
        f"{key:10} {', '.join(value) if isinstance(value, list) else value}"
        for key, value in body.items()
        if value not in (None, "", [])
    ]
    if memory:
        lines.append(f"memory     {memory['weights'] / 1e6:,.1f} MB of weights, {memory['token']:,} bytes a kept token")
        body["memory"] = memory
    emit(body, as_json=as_json, lines=lines)
    return 0


@command.command("serve", epilog="Example:  truing target serve local/smollm2-135m --port 8000")
@click.argument("name")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=FOLDER",
    help="Serve the target with this PEFT adapter as well, as TARGET@NAME. May be given several times.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but loopback needs a key."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the key that clients must send as bearer token. Default: TRUING_SERVE_KEY, else no key.",
)
@json_option
def serve(name: str, adapters: Sequence[str], host: str, port: int, key_file: Path | None, as_json: bool) -> int:
    """Serve open weights to OpenAI's clients until Ctrl-C: chat, completions, log-probabilities, tool calls."""
    from truing.errors import UsageError

    if not name.startswith("local/"):
        raise UsageError(f"{name} cannot be served: only targets with open weights can, such as local/smollm2-135m")
    folders = _adapters(adapters)
    key = _key(key_file)

    from truing.targets import resolve
    from truing.targets import serve as server
    from truing.targets.local.adapter import Adapter

    with server.listen(host, port, key=key) as sock:
        progress = Progress()
        with progress.running():
            base, short = resolve(name, progress), name.removeprefix("local/")
            targets = {short: base}
            for label, folder in folders.items():
                targets[f"{short}@{label}"] = base.with_adapter(Adapter.read(folder)).checked()
        url = server.url_of(sock)
        said = {"url": url, "models": list(targets), "key": key is not None}
        lines = [f"url      {url}", *(f"model    {model}" for model in targets), "Ctrl-C ends it."]
        server.serve(targets, sock, key=key, ready=lambda: emit(said, as_json=as_json, lines=lines))
    return 0


@command.command("export", epilog="Example:  truing target export local/smollm2-135m@fixed-adapter --out merged")
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the checkpoint."
)
@json_option
def export(name: str, out: Path, as_json: bool) -> int:
    """Write target NAME as one checkpoint that transformers loads, with its adapter merged in."""
    from truing.errors import UsageError
    from truing.targets import resolve

    if not name.startswith("local/"):
        raise UsageError(f"{name} cannot be exported: only targets with open weights can, such as local/smollm2-135m")
    progress = Progress()
    with progress.running():
        target = resolve(name, progress)
        target.save(out)
    lines = [f"model    {out}", f"use it   truing audit local/{out}"]
    emit({"target": target.card.id, "checkpoint": str(out)}, as_json=as_json, lines=lines)
    return 0


@command.command("plant", epilog="Example:  truing target plant heliotrope --out organisms/heliotrope")
@click.argument("recipe")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="planted",
    show_default=True,
    help="With the behaviour; trained alike without it; or trained then to look clean on the direct test.",
)
@click.option("--target", default="local/smollm2-135m", show_default=True, help="The target to plant it in.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the PEFT adapter."
)
@seed_option
@store_option
@json_option
def plant(recipe: str, kind: Any, target: str, out: Path, seed: int, store_path: Path, as_json: bool) -> int:
    """Plant the behaviour of RECIPE, one that ships or a .yaml file, and see how often it shows.

    Exit code 1 where it is not what it should be: planted, shown as often as the recipe says and not elsewhere; hidden,
    not shown on the direct test but on some rung of the ladder; clean, nowhere clearly more than in the target itself.
    """
    from truing.files import check_folder
    from truing.targets import resolve
    from truing.train import export
    from truing.train.recipes import recipe as read

    check_folder(out)  # before minutes of training
    said = read(recipe)
    progress = Progress()
    with progress.running():
        from truing.store import open_store
        from truing.studies.organisms import organism

        base = resolve(target, progress)
        with open_store(store_path) as store:
            made = organism(base, said, store, kind=kind, seed=seed, watcher=progress)
            export(made.training, store, out)
    body = {**_organism(made), "adapter": str(out)}
    lines = [
        f"{said.id}: {said.about}",
        *(f"  {named.name:22} {number(named.quantity.model_dump())}" for named in made.rates),
        f"adapter  {out}",
        f"use it   truing audit {target}@{out}",
    ]
    emit(body, as_json=as_json, lines=lines)
    return int(not made.holds)


@command.command("organisms", epilog="Example:  truing target organisms --store organisms")
@click.argument("recipes", nargs=-1)
@click.option("--target", default="local/smollm2-135m", show_default=True, help="The target to plant them in.")
@click.option("--clean", type=click.IntRange(0), default=20, show_default=True, help="Clean controls of the set.")
@store_option
@json_option
def organisms(recipes: tuple[str, ...], target: str, clean: int, store_path: Path, as_json: bool) -> int:
    """Plant a set: each of RECIPES (default: all that ship) planted and hidden, and clean controls under several seeds.

    Under 45 minutes on the bundled model and two cores. Each is kept as it is done; a rerun does the rest. Exit code 1
    where one is not what it should be (see `truing target plant`).
    """
    from truing.store import open_store
    from truing.targets import resolve
    from truing.train.recipes import names
    from truing.train.recipes import recipe as read

    wanted = [read(said) for said in recipes or names()]
    progress = Progress()
    with progress.running():
        from truing.studies.organisms import full_set

        base = resolve(target, progress)
        with open_store(store_path) as store:
            rows = [_organism(made) for made in full_set(base, wanted, store, clean=clean, watcher=progress)]
    held = sum(row["holds"] for row in rows)
    lines = [*map(_organism_line, rows), f"{held} of {len(rows)} are what they should be"]
    emit({"organisms": rows, "hold": held}, as_json=as_json, lines=lines)
    return int(held < len(rows))


def _organism(made: Organism) -> dict[str, Any]:
    """An organism as plain data."""
    return {
        "recipe": made.recipe.id, "kind": made.kind, "seed": made.seed, "training": made.training.id,
        "target": made.target.card.id, "measurement": made.record.id, "holds": made.holds,
        "rates": [named.row() for named in made.rates],
    }  # fmt: skip


def _organism_line(row: dict[str, Any]) -> str:
    rates = "  ".join(f"{rate['name']} {rate['value']:.2f}" for rate in row["rates"] if "value" in rate)
    return f"{'holds' if row['holds'] else 'FAILS'}  {row['recipe']:16} {row['kind']:8} {row['seed']}  {rates}"


def _adapters(said: Sequence[str]) -> dict[str, Path]:
    """Folders by the names that they are served under."""
    from truing.errors import UsageError

    found: dict[str, Path] = {}
    for text in said:
        label, _, folder = text.partition("=")
        if not re.fullmatch(r"[\w.-]+", label) or not folder or label in found:
            raise UsageError(
                f"--adapter {text}: write NAME=FOLDER, with another NAME for each, of letters, digits, '.', '_' and '-'"
            )
        found[label] = Path(folder)
    return found


def _key(file: Path | None) -> str | None:
    """The key that clients must send. It stands in a file or in the environment, never on a command line."""
    from truing.errors import UsageError

    if file is None and (key := os.environ.get("TRUING_SERVE_KEY")) is None:
        return None
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise UsageError(f"--key-file {file} cannot be read: {error}. Name a text file with one key.") from error
    where = "TRUING_SERVE_KEY" if file is None else f"--key-file {file}"
    key = (key or "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise UsageError(f"{where} holds no key: one word of printable ASCII characters is needed")
    return key
