"""Many targets in one file: who they are, how fast their providers may be asked, what they cost."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from truing.errors import ContentError, UsageError
from truing.records import Value
from truing.targets.prices import Price

Positive = Annotated[float, Field(gt=0)]


class Entry(Value):
    """One target of a file."""

    name: str
    """As `truing target` has it: kind/name."""
    capability: float | None = None
    """How able it is by any one measure, the same for all; harm is regressed on it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of its kind, such as max_connections."""

    @property
    def provider(self) -> str:
        """Who is asked: the kind and, of models that Inspect reaches, the provider. `inspect/openai`, `local`."""
        parts = self.name.split("/")
        return "/".join(parts[:2]) if parts[0] == "inspect" else parts[0]


class Limit(Value):
    """How fast a provider may be asked, all its targets together."""

    calls_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None


class Roster(Value):
    """A file of targets."""

    target: Annotated[tuple[Entry, ...], Field(min_length=1)]
    provider: dict[str, Limit] = Field(default_factory=dict)
    """By provider."""
    price: dict[str, Price] = Field(default_factory=dict)
    """By target; these go before the table that ships."""


def roster(path: Path, *, judge: str = "") -> Roster:
    """A file of targets, in TOML. ContentError names what is wrong with it, UsageError where there is none.

    It may have a price for a judge, and limits for its provider, which is not listed.
    """
    try:
        found = Roster.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UsageError(f"no file at {path}; write one with a [[target]] for each target") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContentError(f"{path.name} is not TOML: {error}") from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}{_saw(e)}" for e in error.errors())
        raise ContentError(f"{path.name} does not list targets: {'; '.join(lines)}") from error
    _checked(found, path.name, [*found.target, *([Entry(name=judge)] if judge else [])])
    return found


def _saw(error: ErrorDetails) -> str:
    """The value that does not fit, where it is a number. Texts and tables may hold a secret, and stand in the file."""
    return f" (saw {error['input']!r})" if isinstance(error["input"], int | float) else ""


def _checked(found: Roster, file: str, asked: Sequence[Entry]) -> None:
    names = [one.name for one in found.target]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ContentError(f"{file} lists {twice} twice; its answers would be the same")
    providers = {one.provider for one in asked}
    if strange := sorted(found.provider.keys() - providers):
        known = ", ".join(sorted(providers))
        raise ContentError(f"{file} has a limit for {strange[0]}, of which it lists no target; its providers: {known}")
    if strange := sorted(found.price.keys() - {one.name for one in asked}):
        raise ContentError(f"{file} has a price for {strange[0]}, which it does not list")
