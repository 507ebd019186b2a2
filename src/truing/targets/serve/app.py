"""The endpoints: who may ask, what is asked of which target, and who waits for the answer."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from truing.targets.local.engine import Engine
from truing.targets.local.pieces import Pieces
from truing.targets.local.write import Token, Written
from truing.targets.serve.bodies import Asked, ChatBody, CompletionBody, parsed
from truing.targets.serve.forms import Chat, Completion, Form, Plain, Served
from truing.targets.serve.plan import Work
from truing.targets.serve.refusal import Refusal, refusal
from truing.targets.serve.scores import scores
from truing.targets.serve.told import Told

LIMIT = 4_000_000
"""Bytes that the body of a request may have."""
LEFT = 499
"""The status that is noted, and sent to nobody, where a client left before it had its answer."""
QUIET = 15.0
"""Seconds without a chunk after which a stream says that it is alive; what stands between may give it up otherwise."""
_LOG = logging.getLogger("truing.serve")

Answer = tuple[list[Written], list[tuple[Token, ...]]]
Handler = Callable[[Request], Awaitable[Response]]
Hearer = Callable[[int, str, tuple[Token, ...]], None]


def application(engines: Mapping[str, Engine], *, key: str | None = None, loopback: bool = True) -> ASGIApp:
    """The server as an ASGI application. `loopback`: it is meant for this machine alone."""
    models = Models(engines)
    routes = [
        Route("/health", _health),
        Route("/v1/models", models.ls),
        Route("/v1/models/{id:path}", models.show),
        Route("/v1/chat/completions", _answered(partial(models.answer, ChatBody, Chat.of)), methods=["POST"]),
        Route("/v1/completions", _answered(partial(models.answer, CompletionBody, Completion.of)), methods=["POST"]),
    ]
    guard = Middleware(Guard, key=key, loopback=loopback)
    app = Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _no_such})
    app.router.redirect_slashes = False  # it would send clients to whatever host they named
    return app


class Models:
    """What is served, by name."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = dict(engines)
        self._served = {name: Served(name, e.target, Pieces(e.target.tokenizer)) for name, e in engines.items()}
        self._since = int(time.time())

    async def ls(self, _: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._plain(name) for name in self._served]})

    async def show(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        try:
            return JSONResponse(self._plain(self._find(request.path_params["id"])))
        except Refusal as error:
            return _refused(error)

    async def answer(self, kind: type[Any], form_of: Callable[[Served, Any], Form], request: Request) -> Response:
        """POST /v1/chat/completions and /v1/completions. Refusal, TargetError, ClientDisconnect."""
        raw = await _body(request)
        # Parsing, templates and tokenizing take their time for long texts; others are served meanwhile.
        asked: Asked = await asyncio.to_thread(parsed, raw, kind)
        name = self._find(asked.model)
        form = await asyncio.to_thread(form_of, self._served[name], asked)
        engine = self._engines[name]
        if asked.stream:
            return Events(_events(engine, form))
        with _begun(engine, form.work) as answer:
            found = await _awaited(answer, request)
            return await asyncio.to_thread(lambda: JSONResponse(form.whole(*found)))

    def _find(self, model: str) -> str:
        name = model.removeprefix("local/")
        if name not in self._served:
            known = ", ".join(self._served)
            raise Refusal(
                404, f"the model {model!r} is not served here; known: {known}", param="model", code="model_not_found"
            )
        return name

    def _plain(self, name: str) -> Plain:
        card = self._served[name].target.card
        return {"id": name, "object": "model", "created": self._since, "owned_by": "truing", "truing": {"id": card.id}}


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


# -- waiting for an answer ---------------------------------------------------------------------------------------------


@contextmanager
def _begun(engine: Engine, work: Work, hear: Hearer | None = None) -> Iterator[asyncio.Future[Answer]]:
    """Let the engine begin. Whatever of it is not done when the block ends is cancelled, and its rows are free.

    `hear` is told the text and the tokens of every choice as they are written, in the loop's own thread.
    """
    loop = asyncio.get_running_loop()

    def told(index: int, text: str, tokens: tuple[Token, ...]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more, and the engine must not trip on it
            loop.call_soon_threadsafe(hear, index, text, tokens)  # type: ignore[arg-type]

    asks = [replace(ask, hear=partial(told, index)) if hear else ask for index, ask in enumerate(work.asks)]
    futures: list[asyncio.Future[Any]] = []
    try:
        futures += [asyncio.wrap_future(engine.submit(ask)) for ask in asks]
        if work.texts:
            futures.append(asyncio.wrap_future(engine.run(partial(scores, engine.target, work.texts, top=work.top))))
        answer = asyncio.ensure_future(_gathered(tuple(futures), len(asks)))
        futures.append(answer)
        yield answer
    finally:
        for future in futures:
            future.cancel()
            future.add_done_callback(_looked_at)


async def _gathered(futures: Sequence[asyncio.Future[Any]], replies: int) -> Answer:
    found = await asyncio.gather(*futures)
    return found[:replies], found[replies] if len(found) > replies else []


def _looked_at(future: asyncio.Future[Any]) -> None:
    """An error of one that nobody waits for any more needs no mention."""
    if not future.cancelled():
        future.exception()


def _result(answer: asyncio.Future[Answer]) -> Answer:
    if answer.cancelled():
        raise Refusal(503, "the server is shutting down", code="shutting_down")
    return answer.result()


async def _awaited(answer: asyncio.Future[Answer], request: Request) -> Answer:
    """The answer. ClientDisconnect where the client leaves before."""
    left = asyncio.ensure_future(_left(request))
    try:
        both: list[asyncio.Future[Any]] = [answer, left]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
    if not answer.done():
        raise ClientDisconnect
    return _result(answer)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- streams -----------------------------------------------------------------------------------------------------------


class Events(StreamingResponse):
    """Server-sent events. However the response ends, so does what makes them."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them until the last, or until the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _events(engine: Engine, form: Form) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(_chunks(engine, form)) as chunks:
            async for chunk in chunks:
                yield _event(chunk) if chunk else ": keep-alive\n\n"
    except Exception as error:  # noqa: BLE001 - the status was sent long ago; what remains is to say it here
        yield _event(_as_refusal(error).plain)
        return
    yield "data: [DONE]\n\n"


async def _chunks(engine: Engine, form: Form) -> AsyncGenerator[Plain | None, None]:
    """The chunks of a stream; None after every QUIET seconds without one."""
    ready: asyncio.Queue[Plain | None] = asyncio.Queue()
    told = [Told(form.served.pieces, ask, form.certain) for ask in form.work.asks]

    def hear(index: int, text: str, tokens: tuple[Token, ...]) -> None:
        part = told[index].hear(text, tokens)
        if part.text:
            ready.put_nowait(form.delta(index, part))

    with _begun(engine, form.work, hear) as answer:
        answer.add_done_callback(lambda _: ready.put_nowait(None))
        for chunk in form.opening():
            yield chunk
        while True:
            try:
                more = await asyncio.wait_for(ready.get(), QUIET)
            except TimeoutError:
                yield None
                continue
            if more is None:
                break
            yield more
        for chunk in await asyncio.to_thread(lambda: list(form.closing(*_result(answer), told))):
            yield chunk


def _event(chunk: Plain) -> str:
    return f"data: {json.dumps(chunk, allow_nan=False)}\n\n"


# -- errors ------------------------------------------------------------------------------------------------------------


def _answered(handler: Handler) -> Handler:
    """A handler whose errors are answers in OpenAI's shape."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=LEFT)
        except Exception as error:  # noqa: BLE001 - a client is told, and the server goes on
            return _refused(_as_refusal(error))

    return answered


def _as_refusal(error: Exception) -> Refusal:
    known = refusal(error)
    if known is None:
        _LOG.error("a request failed", exc_info=error)
        known = Refusal(500, "the server failed at this request; its log says why", code="internal_error")
    return known


def _refused(error: Refusal) -> Response:
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(error.plain, status_code=error.status, headers=headers)


async def _no_such(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _refused(Refusal(status, f"{request.method} {request.url.path}: there is no such endpoint here"))


async def _body(request: Request) -> bytes:
    """The body. Refusal 413 where it is too long, after some of what the client still sends was let pass."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= LIMIT:
            parts.append(part)
        elif size > 8 * LIMIT:
            break
    if size > LIMIT:
        raise Refusal(413, f"the body has more than {LIMIT:,} bytes; send less at once")
    return b"".join(parts)


# -- who may ask -------------------------------------------------------------------------------------------------------


class Guard:
    """Lets requests through that have the key; and, where the server is for this machine alone, that were meant for it.

    A page in a browser can send requests to this machine, and can have its own name point here. So on loopback the
    Host must be a loopback name, and so must the Origin where there is one.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, loopback: bool) -> None:
        self._app, self._key, self._loopback = app, key, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "http" and (error := self._fault(Request(scope))):
            await _refused(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, request: Request) -> Refusal | None:
        host, origin = f"//{request.headers.get('host', '')}", request.headers.get("origin")
        # Whoever has the key is no page that found its way here, and may come through a proxy.
        open_here = self._loopback and self._key is None
        if open_here and not (_is_here(host) and (origin is None or _is_here(origin))):
            return Refusal(
                403, "this server is for its own machine: Host, and Origin if any, must be 127.0.0.1, [::1] or"
                " localhost", code="host_not_allowed",
            )  # fmt: skip
        # Not the path of request.url, which is made of the Host that the client sent, too.
        if self._key is not None and request.scope["path"] != "/health":
            kind, _, given = request.headers.get("authorization", "").partition(" ")
            # Bytes, since text that is not ASCII is not compared; and all of them, whatever the first ones are.
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                return Refusal(
                    401, "the key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key"
                )
        return None


def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a name or address leads to this machine and to nowhere else."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
