"""`kind/name` to a target. A kind loads its packages when it is named."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from truing.errors import TargetError
from truing.runner import Silent, Watcher

KINDS = {
    "inspect": "any model that Inspect reaches: inspect/openai/gpt-4o, inspect/anthropic/NAME, inspect/mockllm/model",
    "local": "open weights: local/smollm2-135m (bundled), local/tiny, local/FOLDER, local/HUB-ID, @ADAPTER, +CHANGES",
    "scripted": "known behaviour, for tests and controls: scripted/honest, scripted/anchored, scripted/coercive, ...",
}


def resolve(name: str, watcher: Watcher | None = None, **options: Any) -> Any:
    """The target of this name. TargetError for an unknown kind, a missing package or broken weights.

    `options` are those of the kind's own `load`, such as `device` (local) or `max_connections` (inspect).
    """
    told, watcher = watcher, watcher or Silent()
    kind, slash, rest = name.partition("/")
    if not slash or not rest or kind not in KINDS:
        known = "; ".join(f"{key}/... ({what})" for key, what in KINDS.items())
        raise TargetError(f"unknown target {name!r}. A target is kind/name. Known: {known}")
    if kind == "scripted":
        from truing.targets.scripted import scripted

        return scripted(rest)
    if kind == "inspect":
        if find_spec("inspect_ai") is None:
            raise TargetError(f"{name} needs inspect-ai, not installed here. Run: pip install 'truing[inspect]'")
        from truing.targets import inspect  # Inspect alone takes a second or two

        return inspect.load(rest, **options)
    missing = [package for package in ("torch", "transformers", "peft", "gguf") if find_spec(package) is None]
    if missing:
        raise TargetError(f"{name} needs {', '.join(missing)}, not installed here. Run: pip install 'truing[local]'")
    watcher.start(f"load {name}", 1)
    from truing.targets.local import BUNDLED, cache, load  # torch alone takes seconds

    base = rest.partition("+")[0].partition("@")[0]
    if base in BUNDLED and not (cache.root() / BUNDLED[base][0]).exists():
        watcher.say(f"local/{base} is made ready in {cache.root()}; this happens once")
    target = load(rest, **options)
    watcher.step()
    if told is not None:
        target.say = told.say
    return target
