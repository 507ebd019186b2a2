"""A server that speaks OpenAI's protocol, so that any agent or client can use targets with open weights.

    with serving({"tiny": truing.target("local/tiny")}) as server:
        client = OpenAI(base_url=server.url, api_key="none")

Replies of all clients are written together, each as it would be written alone.
"""

from __future__ import annotations

from importlib.util import find_spec

from truing.errors import TargetError

_NEEDED = {"starlette": "serve", "uvicorn": "serve", "torch": "local", "transformers": "local"}
"""Packages, and the extras that bring them."""

if missing := [package for package in _NEEDED if find_spec(package) is None]:
    extras = ",".join(sorted({_NEEDED[package] for package in missing}))
    raise TargetError(f"serving needs {', '.join(missing)}, not installed here. Run: pip install 'truing[{extras}]'")

from truing.targets.serve.server import Serving, listen, serve, serving, url_of  # noqa: E402 - after what it needs was looked for

__all__ = ["Serving", "listen", "serve", "serving", "url_of"]
