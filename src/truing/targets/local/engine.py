"""A model that many ask at once: one thread owns it, and whoever asks joins the batch at the next token."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from truing.errors import TargetError
from truing.targets.local import LocalTarget
from truing.targets.local.memory import ROWS
from truing.targets.local.write import Ask, Writer, Written

_Job = tuple["Future[Any]", Ask | Callable[[], Any]]


class Engine:
    """Answers from any thread. A future that is cancelled frees its row; closing cancels what is left."""

    def __init__(self, target: LocalTarget, *, rows: int = ROWS) -> None:
        """At most so many replies at once, fewer where memory is short."""
        self.target = target
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._rows = rows
        self._batch = target.batch(rows=rows)
        self._open: list[tuple[Future[Written], Writer]] = []
        self._works: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"engine of {target.card.name}", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask) -> Future[Written]:
        """What will be written. The future's error is a TargetError where it cannot be."""
        return self._put(ask)

    def run(self, work: Callable[[], Any]) -> Future[Any]:
        """Whatever else the model is needed for, done between two tokens; it must not wait for this engine."""
        return self._put(work)

    def _put(self, what: Ask | Callable[[], Any]) -> Future[Any]:
        if self._closed.is_set():
            raise TargetError(f"the engine of {self.target.card.name} is closed; make another")
        future: Future[Any] = Future()
        self._jobs.put((future, what))
        if self._closed.is_set():  # since it was asked above: the thread may not have seen this one
            future.cancel()
        return future

    @property
    def busy(self) -> tuple[int, int]:
        """How many replies are being written, and how many wait."""
        return len(self._batch.live), len(self._batch.waiting) + self._jobs.qsize()

    def close(self) -> None:
        """Cancel what is not done and let the thread end."""
        self._closed.set()
        self._jobs.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    # -- the thread

    def _run(self) -> None:
        while not self._closed.is_set():
            self._take_in()
            if self._works:
                _settle(*self._works.popleft())  # one, so that rows go on before the next
            for future, writer in self._open:
                if future.cancelled():
                    writer.cancel()
            if self._batch.live or self._batch.waiting:
                self._advance()
            self._hand_out()
        left: list[Future[Any]] = [future for future, _ in (*self._open, *self._works)]
        while not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                left.append(job[0])
        for future in left:
            future.cancel()
            future.set_running_or_notify_cancel()

    def _take_in(self) -> None:
        idle = not self._open and not self._works
        while idle or not self._jobs.empty():
            job = self._jobs.get()  # waits where there is nothing else to do
            idle = False
            if job is None:
                return
            future, what = job
            if isinstance(what, Ask):
                self._admit(future, what)
            else:
                self._works.append((future, what))

    def _admit(self, future: Future[Written], ask: Ask) -> None:
        try:
            self.target.fits(ask.prompt, more=ask.max_tokens)
            self.target.plan_replies([ask])
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            _fail(future, error)
            return
        writer = Writer(ask, self.target.tokenizer)
        self._open.append((future, writer))
        self._batch.add([writer])

    def _advance(self) -> None:
        try:
            self._batch.advance()
        except Exception as error:  # noqa: BLE001 - whoever waits is told, and the thread goes on for the others
            for future, _ in self._open:
                _fail(future, error)
            self._open.clear()
            self._batch = self.target.batch(rows=self._rows)

    def _hand_out(self) -> None:
        done = [(future, writer) for future, writer in self._open if writer.ended is not None]
        self._open = [(future, writer) for future, writer in self._open if writer.ended is None]
        for future, writer in done:
            if writer.error is not None:
                _fail(future, writer.error)
            elif future.set_running_or_notify_cancel():
                future.set_result(writer.written)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        future.set_exception(error)


def _fail(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


__all__ = ["Engine"]
