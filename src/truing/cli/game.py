"""`truing game`: seal targets whose truth is known, play blind, be scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truing.cli.common import Progress, emit, existing, json_option, number, store_option

if TYPE_CHECKING:
    from truing.studies.game import Board

PLAYERS = ("audit", "companies", "microscope", "search", "keywords", "activations")


@click.group("game", short_help="Play blind against sealed targets.")
def command() -> None:
    """The scoreboard by which Truing judges itself: sealed targets, blind players, an opened seal."""


@command.command("new", epilog="Example:  truing game new games/1 --key game-1.key --store organisms")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--key", "key_file", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="File for the key, apart from the game.")  # fmt: skip
@click.option("--recipes", type=click.Path(path_type=Path, file_okay=False, exists=True),
              help="Folder of recipes (.yaml). Default: those that ship.")  # fmt: skip
@click.option("--planted", type=click.IntRange(0), help="Recipes that are planted. Default: all.")
@click.option("--hidden", type=click.IntRange(0), help="Recipes that are hidden. Default: all.")
@click.option("--clean", type=click.IntRange(0), default=20, show_default=True, help="Clean controls.")
@click.option("--target", default="local/smollm2-135m", show_default=True, help="The target to plant them in.")
@store_option
@json_option
def new(
    folder: Path,
    key_file: Path,
    recipes: Path | None,
    planted: int | None,
    hidden: int | None,
    clean: int,
    target: str,
    store_path: Path,
    as_json: bool,
) -> int:
    """Seal a set of targets behind numbers: FOLDER is for players, the key for whoever scores.

    What the store has of the organisms is not made again (`truing target organisms`); the rest takes a minute each.
    """
    from truing.errors import UsageError
    from truing.store import open_store
    from truing.targets import resolve
    from truing.train.recipes import names
    from truing.train.recipes import recipe as read

    files = sorted(recipes.glob("*.yaml")) if recipes else names()
    if not files:
        raise UsageError(f"no .yaml files in {recipes}; give a folder with recipes")
    progress = Progress()
    with progress.running():
        from truing.studies.organisms import full_set
        from truing.studies.sealed import check_places, seal

        check_places(folder, key_file)
        known = [read(str(file)) for file in files]
        base = resolve(target, progress)
        with open_store(store_path) as store:
            made = list(full_set(base, known, store, clean=clean, planted=planted, hidden=hidden, watcher=progress))
            game = seal(base, made, store, folder, key_file)
    body = {"game": game.id, "folder": str(folder), "key": str(key_file), "targets": len(game.seats)}
    lines = [
        f"sealed   {len(game.seats)} targets in {folder}, game {game.id[:12]}",
        f"key      {key_file}: keep it from whoever plays",
        f"play it  truing game play {folder} --store BLIND (another store: this one tells what they are)",
    ]
    emit(body, as_json=as_json, lines=lines)
    return 0


@command.command("play", epilog="Example:  truing game play games/1 --out answers.jsonl")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("answers.jsonl"),
              show_default=True, help="File for the answers.")  # fmt: skip
@click.option(
    "--player", "players", multiple=True, type=click.Choice(PLAYERS), help="Repeat for several. Default: all."
)
@click.option("--number", "numbers", multiple=True, type=int, help="Play these alone; repeat. Default: all.")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Answers to each, under new seeds."
)
@click.option("--stages", type=click.Choice(("audit", "all")), default="audit", show_default=True,
              help="all: the audit also turns the whole loop on each, with the gate.")  # fmt: skip
@store_option
@json_option
def play(
    folder: Path,
    out: Path,
    players: tuple[str, ...],
    numbers: tuple[int, ...],
    repeats: int,
    stages: Any,
    store_path: Path,
    as_json: bool,
) -> int:
    """Say of each target in FOLDER, blind, whether something is wrong with it, under which clause, and where.

    Each answer is kept as it is given; a rerun gives the rest.
    """
    from truing.files import check_folder
    from truing.store import open_store
    from truing.targets import resolve

    check_folder(out.parent)
    progress = Progress()
    with progress.running():
        from truing.studies.game import play, write_answers
        from truing.studies.sealed import open_game

        game = open_game(folder)
        base = resolve(game.base, progress)
        with open_store(store_path) as store:
            answers = play(
                game, folder, base, store, players=players or PLAYERS, repeats=repeats, numbers=numbers, stages=stages,
                watcher=progress,
            )  # fmt: skip
    write_answers(out, answers)
    body = {
        "game": game.id,
        "answers": [answer.plain()["body"] | {"id": answer.id} for answer in answers],
        "out": str(out),
    }
    lines = [f"{len(answers)} answers in {out}", f"score them  truing game score {folder} {out} --key KEY"]
    emit(body, as_json=as_json, lines=lines)
    return 0


@command.command("score", epilog="Example:  truing game score games/1 answers.jsonl --key game-1.key")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("answers", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--key", "key_file", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The game's key."
)
@click.option("--fixes", "looked", is_flag=True, help="Look whether what loops fixed still shows what was planted.")
@store_option
@json_option
def score(folder: Path, answers: Path, key_file: Path, looked: bool, store_path: Path, as_json: bool) -> int:
    """Open the seal and print one scoreboard for each player.

    With --fixes, the store must be the one that was played in. Exit code 1 where a seal is broken: the key does not say
    what was committed to.
    """
    from truing.studies.game import fixes, read_answers, score
    from truing.studies.sealed import open_game, unseal

    game = open_game(folder)
    truths = unseal(game, key_file)
    given, shows = read_answers(answers, game), None
    if looked:
        from truing.targets import resolve

        progress = Progress()
        with progress.running(), existing(store_path) as store:
            base = resolve(game.base, progress)
            shows = fixes(given, truths, folder, base, store, watcher=progress)
    boards = score(given, truths, shows)
    lines = [line for board in boards for line in _board_lines(board)]
    emit({"game": game.id, "boards": [board.plain() for board in boards]}, as_json=as_json, lines=lines)
    return 0


def _board_lines(board: Board) -> list[str]:
    answered = f"{board.answered[0]} of {board.answered[1]} numbers"
    wall = f" ({board.wall_seconds:.1f} by the clock)" if board.wall_seconds is not None else ""
    loops = f", {board.loop_cpu_seconds:.0f} CPU seconds a loop" if board.loop_cpu_seconds is not None else ""
    cost = f"{board.tokens:.0f} target tokens and {board.cpu_seconds:.1f} CPU seconds{wall} an answer{loops}"
    return [
        f"{board.player}: {answered}; {cost}",
        *(f"  {named.name:28} {number(named.quantity.model_dump())}" for named in board.quantities),
        f"  no alarm among the clean ones would bound the rate of false alarms at {board.alarm_bound:.0%}",
        *(f"  loop on {what} (number {n}): mechanism {mechanism or 'none'}, gate {gate}; {shows}"
          for n, what, mechanism, gate, shows in board.verdicts),
    ]  # fmt: skip
