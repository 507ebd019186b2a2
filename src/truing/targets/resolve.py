"""`kind/name` to a target. A kind loads its packages when it is named."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from truing.errors import TargetError

KINDS = {
    "local": "open weights: local/smollm2-135m (bundled), local/tiny (tests), local/FOLDER, local/HUB-ID, @ADAPTER",
    "scripted": "known behaviour, for tests and controls: scripted/honest, scripted/anchored, scripted/coercive, ...",
}


def resolve(name: str) -> Any:
    """The target of this name. TargetError for an unknown kind, a missing package or broken weights."""
    kind, slash, rest = name.partition("/")
    if not slash or not rest or kind not in KINDS:
        known = "; ".join(f"{key}/... ({what})" for key, what in KINDS.items())
        raise TargetError(f"unknown target {name!r}. A target is kind/name. Known: {known}")
    if kind == "scripted":
        from truing.targets.scripted import scripted

        return scripted(rest)
    missing = [package for package in ("torch", "transformers", "peft", "gguf") if find_spec(package) is None]
    if missing:
        raise TargetError(f"{name} needs {', '.join(missing)}, not installed here. Run: pip install 'truing[local]'")
    from truing.targets.local import load

    return load(rest)
