"""A socket, a loop and the engines: serving until a signal, or beside other work."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn

from truing.errors import TargetError, UsageError
from truing.targets.local import LocalTarget
from truing.targets.local.engine import Engine
from truing.targets.local.memory import ROWS
from truing.targets.serve.app import application, is_loopback

GRACE = 5
"""Seconds that replies have to be finished in once the server is told to end; then whoever waits is told so."""
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that runs."""

    url: str
    """What clients take as their base URL."""
    engines: Mapping[str, Engine]


def listen(host: str, port: int, *, key: str | None) -> socket.socket:
    """A socket that clients may connect to; they wait until they are served. `port` 0 is any free one.

    UsageError where the port is taken, and where others could reach the server without a key.
    """
    if not is_loopback(host) and key is None:
        raise UsageError(
            f"--host {host} lets other machines in, and there is no key. Put one into a file and name it with"
            " --key-file, or into the environment variable TRUING_SERVE_KEY; or leave out --host."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}."
            " Name another with --port; --port 0 takes a free one."
        ) from error
    return found


def url_of(found: socket.socket) -> str:
    """The base URL of a server behind a socket."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def serve(
    targets: Mapping[str, LocalTarget], sock: socket.socket, *, key: str | None, ready: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called once requests are answered."""
    with _engines(targets) as engines:
        _server(engines, sock, key, ready).run(sockets=[sock])


@contextmanager
def serving(
    targets: Mapping[str, LocalTarget],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | None = None,
    rows: int = ROWS,
) -> Iterator[Serving]:
    """Serve in a thread of its own while the block runs, each target at most so many replies at once."""
    with listen(host, port, key=key) as sock, _engines(targets, rows=rows) as engines:
        url, ready = url_of(sock), threading.Event()
        server = _server(engines, sock, key, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name=f"server at {url}")
        thread.start()
        try:
            while not ready.wait(0.05):
                if not thread.is_alive():
                    raise TargetError(f"the server at {url} did not start")
            yield Serving(url, engines)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _engines(targets: Mapping[str, LocalTarget], *, rows: int = ROWS) -> Iterator[dict[str, Engine]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Engine(target, rows=rows, share=len(targets))) for name, target in targets.items()
        }


def _server(engines: Mapping[str, Engine], sock: socket.socket, key: str | None, ready: Callable[[], None]) -> _Server:
    app = application(engines, key=key, loopback=is_loopback(sock.getsockname()[0]))
    config = uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, backlog=BACKLOG, timeout_graceful_shutdown=2 * GRACE,
    )  # fmt: skip
    return _Server(config, ready, engines)


class _Server(uvicorn.Server):
    """Says when it is ready, and takes a signal to end as having been told so, not as having been killed."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], engines: Mapping[str, Engine]) -> None:
        super().__init__(config)
        self._ready, self._engines = ready, engines

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: what is not done after GRACE seconds is answered with that."""
        loop = asyncio.get_running_loop()
        late = loop.call_later(GRACE, lambda: loop.run_in_executor(None, self._close))
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def _close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after what is being answered; at a second Ctrl-C at once."""
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
