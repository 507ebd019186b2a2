"""Truing tests alignment claims about a language model or an agent, and turns them true."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["loop", "open_store", "target"]
__version__ = "0.1.0"

_PUBLIC = {
    "target": ("truing.targets", "resolve"),
    "open_store": ("truing.store", "open_store"),
    "loop": ("truing.studies.loop", "loop"),
}


def __getattr__(name: str) -> Any:
    """Load public names when they are used: `import truing` loads nothing heavy (PEP 562)."""
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'truing' has no attribute {name!r}; it has {', '.join(__all__)}")
