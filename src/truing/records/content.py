"""Content files: YAML read strictly into frozen values. Nothing else in Truing reads YAML."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from truing.errors import ContentError

M = TypeVar("M", bound=BaseModel)
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader; libyaml's, ten times as fast, where PyYAML was built with it."""
PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")


def folder(package: str, *parts: str) -> Path:
    """The path of a content folder that ships inside a package."""
    return Path(str(resources.files(package).joinpath("content", *parts)))


def read(path: Path, model: type[M], *, schema: str) -> M:
    """One content file as a value of the model. ContentError names the file, the key and the value seen."""
    try:
        plain: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)  # noqa: S506 - both are safe
    except FileNotFoundError as error:
        raise ContentError(f"no content file at {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContentError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(plain, dict) or plain.pop("schema", None) != schema:
        raise ContentError(f"{path.name} must be a mapping whose first line reads `schema: {schema}`")
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        lines = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (saw {_short(e['input'])})" for e in error.errors()
        )
        raise ContentError(f"{path.name} does not fit schema {schema}: {lines}") from error


def read_all(directory: Path, model: type[M], *, schema: str) -> tuple[M, ...]:
    """Every .yaml file of a folder, in sorted order."""
    files = sorted(directory.glob("*.yaml"))
    if not files:
        raise ContentError(f"no .yaml files in {directory}")
    return tuple(read(file, model, schema=schema) for file in files)


def fill(template: str, values: dict[str, str], *, where: str) -> str:
    """Replace every {placeholder}; ContentError for one that has no value."""

    def value(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError:
            raise ContentError(
                f"{where}: placeholder {{{match[1]}}} has no value; defined are {', '.join(sorted(values))}"
            ) from None

    text = PLACEHOLDER.sub(value, template)
    # A value may itself hold a placeholder (a mail that names the agent): filled once more, then none may remain.
    text = PLACEHOLDER.sub(value, text)
    if left := PLACEHOLDER.search(text):
        raise ContentError(f"{where}: placeholder {left[0]} stands inside the value of another placeholder")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
