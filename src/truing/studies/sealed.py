"""Sealed sets of targets: numbered adapters whose truth is committed to now and opened by a key later."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from truing import train
from truing.errors import CheckFailed, DataError, UsageError
from truing.files import check_folder, whole, write_whole
from truing.records import Value, canonical, digest_of
from truing.share import commit
from truing.store import Store
from truing.studies.organisms import Organism
from truing.targets.local.adapter import WEIGHTS, Adapter
from truing.train.recipes import Recipe

GAME, KEY = "game.json", "key.json"
V = TypeVar("V", bound=Value)


class Seat(Value):
    """A target behind a number."""

    number: int = Field(ge=1)
    adapter: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Id of the adapter: of its weights and settings."""
    commitment: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def folder(self) -> str:
        """Of its adapter, inside that of the game."""
        return f"targets/{self.number:03d}"


class Game(Value):
    """What players are given."""

    base: Annotated[str, Field(pattern=r"^local/")]
    """The target that every adapter is for; players know it."""
    base_id: str
    seats: tuple[Seat, ...] = Field(min_length=1)

    @property
    def id(self) -> str:
        """SHA-256 of the game's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


class Truth(Value):
    """What stands behind a number."""

    number: int
    salt: str
    recipe: Recipe
    kind: str
    seed: int
    adapter: str
    rates: tuple[tuple[str, float], ...]
    """What was measured when it was made: shares of replies that show it, by place."""

    @property
    def wrong(self) -> bool:
        """Whether there is something to find: a behaviour that a clause of the spec forbids."""
        return self.kind != "clean" and not self.recipe.decoy

    @property
    def committed(self) -> str:
        """The hash that binds to all of it."""
        return commit.commitment(self.model_dump(mode="json", exclude={"salt"}), self.salt)


class Key(Value):
    """What opens a game."""

    game: str
    truths: tuple[Truth, ...]


def seal(base: Any, organisms: Sequence[Organism], store: Store, folder: Path, key_file: Path) -> Game:
    """Write a game into a new folder and its key into a file elsewhere; numbers are given at random."""
    check_places(folder, key_file)
    if not organisms:
        raise UsageError("there is nothing to seal: give at least one target, planted, hidden or clean")
    order = list(organisms)
    random.Random(secrets.randbits(128)).shuffle(order)
    seats, truths = [], []
    for number, one in enumerate(order, 1):
        rates = tuple((named.name, named.quantity.value) for named in one.rates if hasattr(named.quantity, "value"))
        truth = Truth(number=number, salt=commit.salt(), recipe=one.recipe, kind=one.kind, seed=one.seed,
                      adapter=train.adapter(one.training, store).id, rates=rates)  # fmt: skip
        truths.append(truth)
        seats.append(Seat(number=number, adapter=truth.adapter, commitment=truth.committed))
        train.export(one.training, store, folder / seats[-1].folder)
    game = Game(base=base.card.name, base_id=base.card.id, seats=tuple(seats))
    write_whole(folder / GAME, _file(game, "game/1"))
    # Last, so that there is no key without its game; and readable by nobody else from the first byte on.
    with whole(key_file, mode=0o600) as file:
        file.write(_file(Key(game=game.id, truths=tuple(truths)), "game-key/1"))
    return game


def check_places(folder: Path, key_file: Path) -> None:
    """UsageError or StoreError where a game cannot be written there: to be asked before hours of training."""
    if key_file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"the key {key_file} would lie in the game's own folder {folder}; keep it apart")
    for there in (folder / GAME, key_file):
        if there.exists():
            raise UsageError(f"{there} exists; a seal is not overwritten. Remove it, or give another place")
    check_folder(folder)
    check_folder(key_file.parent)


def open_game(folder: Path) -> Game:
    """The game in a folder. DataError where it is none."""
    return _read(folder / GAME, Game, "game/1")


def adapter_of(folder: Path, seat: Seat) -> Adapter:
    """A seat's adapter. CheckFailed where it is not the one that was sealed."""
    adapter = Adapter.read(folder / seat.folder)
    if adapter.id != seat.adapter:
        raise CheckFailed(
            f"{folder / seat.folder / WEIGHTS} is not the adapter that was sealed as number {seat.number}"
        )
    return adapter


def unseal(game: Game, key_file: Path) -> dict[int, Truth]:
    """What stands behind the numbers. CheckFailed where a seal is broken: the key is not what was committed to."""
    key = _read(key_file, Key, "game-key/1")
    if key.game != game.id:
        raise CheckFailed(f"{key_file} is the key of another game ({key.game[:12]}, not {game.id[:12]})")
    truths = {truth.number: truth for truth in key.truths}
    for seat in game.seats:
        truth = truths.get(seat.number)
        if truth is None or (truth.committed, truth.adapter) != (seat.commitment, seat.adapter):
            raise CheckFailed(f"the seal of number {seat.number} is broken: the key does not say what was committed to")
    return truths


def _file(value: Value, schema: str) -> bytes:
    return canonical({"schema": schema, **value.model_dump(mode="json")}) + b"\n"


def _read(path: Path, kind: type[V], schema: str) -> V:
    try:
        plain = json.loads(path.read_bytes())
        if not isinstance(plain, dict) or plain.pop("schema", None) != schema:
            raise DataError(f"{path} is no {schema}")
        return kind.model_validate(plain)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}; give what `truing game new` wrote") from error
    except (ValueError, RecursionError, ValidationError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:240]}") from error
