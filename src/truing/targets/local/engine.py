"""A model that many ask at once: one thread owns it, and whoever asks joins the batch at the next token."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from copy import copy
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from truing.errors import TargetBusy
from truing.targets.local import LocalTarget
from truing.targets.local.memory import ROWS
from truing.targets.local.write import Ask, Writer, Written

TURNS = 4
"""Works of several steps that are under way at once: each may hold memory between its steps."""

_Steps = Generator[None, None, Any]
_Job = tuple["Future[Any]", Ask | Callable[[], Any]]


class Engine:
    """Answers from any thread. A future that is cancelled frees its row; closing cancels what is left."""

    def __init__(self, target: LocalTarget, *, rows: int = ROWS, share: int = 1) -> None:
        """At most so many replies at once, fewer where memory is short: of `share` engines each has an equal part.

        What there is, is settled here. Later, what rows hold would count as taken from those that come.
        """
        self.target = copy(target.checked())  # nobody else's target is to be short of memory
        self.target.max_memory = max(1, target.budget // share)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._rows = rows
        self._batch = self.target.batch(rows=rows)
        self._open: list[tuple[Future[Written], Writer]] = []
        self._works: deque[tuple[Future[Any], _Steps]] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"engine of {target.card.name}", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask) -> Future[Written]:
        """What will be written. The future's error is a TargetError where it cannot be."""
        return self._put(ask)

    def run(self, work: Callable[[], Any]) -> Future[Any]:
        """Whatever else the model is needed for, done between two tokens; it must not wait for this engine.

        Where `work` makes a generator, there are tokens between its steps too, and what it returns is the result. It is
        closed at its next turn where the future is cancelled, and must not fail at that.
        """
        return self._put(work)

    def _put(self, what: Ask | Callable[[], Any]) -> Future[Any]:
        if self._closed.is_set():
            raise TargetBusy(f"the engine of {self.target.card.name} is closed; make another")
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
            self._work()
            for future, writer in self._open:
                if future.cancelled():
                    writer.cancel()
            if self._batch.live or self._batch.waiting:
                self._advance()
            self._hand_out()
        for _, steps in self._works:
            steps.close()
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
                self._works.append((future, _steps(what)))

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

    def _work(self) -> None:
        """One step of the work whose turn it is, so that rows go on before the next."""
        while self._works:
            future, steps = self._works.popleft()
            if not future.cancelled():
                if _stepped(future, steps):
                    self._works.insert(TURNS - 1, (future, steps))
                return
            steps.close()
            future.set_running_or_notify_cancel()

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


def _steps(work: Callable[[], Any]) -> _Steps:
    """Work as a generator; what is none is one step."""
    found = work()
    return (yield from found) if isinstance(found, Generator) else found


def _stepped(future: Future[Any], steps: _Steps) -> bool:
    """Whether there are more steps after the one that is done here."""
    try:
        next(steps)
    except StopIteration as end:
        if future.set_running_or_notify_cancel():
            future.set_result(end.value)
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        _fail(future, error)
    else:
        return True
    return False


def _fail(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


__all__ = ["Engine"]
