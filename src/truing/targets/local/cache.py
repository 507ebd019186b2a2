"""The user's cache of built models: each folder appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from truing.errors import CacheError, TargetError

SEAL = "seal.json"
"""Written last; names every file with its size and digest."""


def root() -> Path:
    """`$TRUING_CACHE`, else `$XDG_CACHE_HOME/truing`, else `~/.cache/truing`."""
    if chosen := os.environ.get("TRUING_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "truing"


def built(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, built if it is not there.

    It is built beside its place and renamed into it, so a kill half-way leaves no broken folder; where two processes
    build at once the first to finish wins and the other takes its result. A damaged folder is a CacheError.
    """
    place = root() / name
    if place.exists():
        _check(place)
        return place
    try:
        root().mkdir(parents=True, exist_ok=True)
        _sweep(name)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root()))
    except OSError as error:
        raise TargetError(
            f"cannot write the cache folder {root()}: {error}. Set TRUING_CACHE to another place."
        ) from error
    try:
        build(draft)
        _seal(draft)
        try:
            draft.rename(place)
        except OSError:
            if not place.exists():
                raise
            _check(place)
    except (OSError, SafetensorError) as error:  # a disk that is full gives either, by who was writing
        raise TargetError(f"cannot build {name} in {root()}: {error}. Free space or set TRUING_CACHE.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _sweep(name: str) -> None:
    """Remove what builds that were killed left behind: drafts that nobody has touched for an hour."""
    for draft in root().glob(f".{name}-*"):
        if time.time() - draft.stat().st_mtime > 3600:
            shutil.rmtree(draft, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(place: Path) -> dict[str, dict[str, int | str]]:
    """What the seal says: file name -> size and sha256."""
    try:
        seal = json.loads((place / SEAL).read_text())
        return {name: {"size": int(said["size"]), "sha256": str(said["sha256"])} for name, said in seal.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{place} has no readable {SEAL}: {error!r}. Delete the folder; it is built again.") from error


def _seal(place: Path) -> None:
    files = sorted(file for file in place.rglob("*") if file.is_file())
    seal = {str(f.relative_to(place)): {"size": f.stat().st_size, "sha256": file_digest(f)} for f in files}
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    (place / SEAL).write_text(json.dumps(seal, indent=1, sort_keys=True))


def _check(place: Path) -> None:
    """Sizes always; content where it is cheap (under 8 MB). Large weights are checked by their digest on first load."""
    for name, said in sealed(place).items():
        file = place / name
        small = int(said["size"]) < 8_000_000
        if not file.is_file() or file.stat().st_size != said["size"] or (small and file_digest(file) != said["sha256"]):
            raise CacheError(
                f"cached file {file} is damaged (its size or content is not what {SEAL} says)."
                f" Delete the folder {place}; it is built again."
            )
