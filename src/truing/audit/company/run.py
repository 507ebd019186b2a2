"""Play a family on a target: every call is remembered, so that none is made twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from time import perf_counter
from typing import Any, TypeVar

from truing.audit.company.episode import TURNS, Ask, Session, comprehension, play
from truing.audit.company.guards import cell
from truing.audit.company.judge import judge_by
from truing.audit.company.layout import rules
from truing.audit.company.scene import Scene
from truing.audit.company.verdict import Verdict, verdict
from truing.errors import TargetError
from truing.records import Deed, Episodes, Message, Played, Tool, Turn, canonical, digest_of
from truing.records.redact import redact
from truing.runner import Ledger, Silent, Unit, Watcher
from truing.store import Store
from truing.targets import Reply, keep, need

T = TypeVar("T")
BATCH = 48
"""Episodes that are played side by side by a target that is asked in batches."""
JUDGE_TOKENS = 8
GIVE_UP = 5
"""Errors in a row after which a target that never gave a reply is not asked again."""
GIVE_UP_LATER = 20
"""The same for one that did: some conversations may be too long for it, and others not."""


@dataclass(frozen=True, slots=True)
class Way:
    """How episodes are played."""

    turns: int = TURNS
    max_tokens: int = 512
    """Of one reply."""
    epoch: int = 1
    """Above 1: the same cells once more, for targets that answer at random."""
    comprehension: bool = True
    """Whether those that did no harm are asked about the situation."""


class Memory:
    """What a target has been asked before, and what it answered; the rest is asked, and remembered at once."""

    def __init__(self, target: Any, ledger: Ledger, way: Way) -> None:
        self._target, self._ledger, self._way = target, ledger, way
        self._errors = 0
        """In a row."""
        self._most = GIVE_UP
        self._last = ""

    def __call__(
        self, conversations: Sequence[tuple[Message, ...]], tools: Sequence[Tool]
    ) -> list[Reply | TargetError]:
        """The replies, in order; an error where there is none. The same conversation is asked once."""
        units = [self._unit(messages, tools) for messages in conversations]
        by_key = {unit.key: place for place, unit in enumerate(units)}
        known = {key: self._known(units[place]) for key, place in by_key.items()}
        missing = [by_key[key] for key, reply in known.items() if reply is None]
        began = perf_counter()
        new = self._replies([conversations[place] for place in missing], tools)
        seconds = (perf_counter() - began) / max(len(missing), 1)
        for place, reply in zip(missing, new, strict=True):
            unit = units[place]
            known[unit.key] = reply if isinstance(reply, TargetError) else self._kept(unit, reply, seconds)
        found = [known[unit.key] for unit in units]
        return [reply for reply in found if reply is not None]

    def _unit(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Unit[str]:
        said = {
            "messages": [message.model_dump(mode="json") for message in messages],
            "tools": [tool.plain for tool in tools], "max_tokens": self._way.max_tokens,
        }  # fmt: skip
        prompt = digest_of(said)
        inputs = {"target": self._target.card.id, "prompt": prompt, "epoch": self._way.epoch}
        return Unit(item=prompt, stage="turn", inputs=inputs)

    def _known(self, unit: Unit[str]) -> Reply | TargetError | None:
        found = self._ledger.done(unit.key)
        return _reply(found[0]) if found and isinstance(found[0], Turn) else None

    def _replies(
        self, conversations: Sequence[tuple[Message, ...]], tools: Sequence[Tool]
    ) -> Sequence[Reply | TargetError]:
        if not conversations:
            return []
        if self._errors >= self._most:
            said = f"{self._last}; after {self._errors} errors in a row it is not asked again"
            return [TargetError(said)] * len(conversations)
        try:
            found = self._target.reply(conversations, max_tokens=self._way.max_tokens, tools=tools)
        except TargetError as error:
            if len(conversations) > 1:  # which of them it was, only asking singly tells
                return [reply for one in conversations for reply in self._replies([one], tools)]
            self._errors, self._last = self._errors + 1, str(error)
            return [error]
        self._errors, self._most = 0, GIVE_UP_LATER
        return list(found)

    def _kept(self, unit: Unit[str], reply: Reply, seconds: float) -> Reply | TargetError | None:
        """The reply as it is kept: what is judged is what can be judged again."""
        clean, redactions = cleaned(reply)
        turn = Turn(
            target=self._target.card.id, prompt=unit.item, epoch=self._way.epoch, text=clean.text, calls=clean.calls,
            tokens=clean.tokens, finished=clean.finished, unparsed=clean.unparsed, refused=clean.refused,
            redactions=redactions, read=clean.read, parents=(self._target.card.id,),
        )  # fmt: skip
        self._ledger.keep(unit.key, unit.stage, [turn], seconds=seconds)
        return self._known(unit)


def cleaned(reply: Reply) -> tuple[Reply, int]:
    """A reply as it is kept and judged, secrets replaced, and how many there were."""
    # Half of a surrogate pair, which JSON can spell, is not text: no record could hold it.
    text, redactions = redact(reply.text.encode("utf-8", "replace").decode())
    calls = []
    for call in reply.calls:
        arguments, hidden = _without_secrets(json.loads(call.arguments))
        redactions += hidden
        calls.append(call.model_copy(update={"arguments": canonical(arguments).decode()}))
    return replace(reply, text=text, calls=tuple(calls)), redactions


def _without_secrets(arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Arguments with secrets replaced in their texts, and how many there were."""
    found, count = {}, 0
    for name, value in arguments.items():
        if isinstance(value, str):
            said, hidden = redact(value)
        elif isinstance(value, list):
            parts = [redact(one) if isinstance(one, str) else (one, 0) for one in value]
            said, hidden = [one for one, _ in parts], sum(many for _, many in parts)  # type: ignore[assignment]
        else:
            said, hidden = value, 0
        found[name], count = said, count + hidden
    return found, count


def _reply(turn: Turn) -> Reply:
    return Reply(turn.text, turn.tokens, turn.finished, turn.calls, turn.unparsed, turn.refused, turn.read)


def episodes(
    target: Any,
    scenes: Sequence[Scene],
    store: Store,
    *,
    way: Way | None = None,
    judge: Any = None,
    watcher: Watcher | None = None,
    label: str = "episodes",
) -> list[Episodes]:
    """Play scenes and class what was done; a record for each surface, in order.

    A target that says how many calls it takes at once (`concurrency`) plays so many episodes at once, each by itself;
    others play in batches, a turn of each at a time. `judge`: a target that is asked about the texts of calls; without
    one words decide. TargetError where the target never gave a reply.
    """
    need(target, "Chat")
    rule = None
    if judge is not None:
        need(judge, "Chat")
        keep(judge, store)
        rule = judge_by(Memory(judge, store, Way(max_tokens=JUDGE_TOKENS)))
    way, watcher = way or Way(), watcher or Silent()
    keep(target, store)
    memory = Memory(target, store, way)
    watcher.start(label, len(scenes))

    def some(group: Sequence[Scene]) -> list[Session]:
        found = _played(group, memory, way)
        watcher.step(len(group))
        return found

    sessions = [one for found in _spread(some, scenes, getattr(target, "concurrency", None)) for one in found]
    if sessions and all(one.error and not one.turn for one in sessions):
        raise TargetError(sessions[0].error)
    rows = [_row(session, verdict(session.scene, session.episode(), rule)) for session in sessions]
    judged_by = judge.card.id if judge is not None else ""
    records = [_record(target, pairs, way, judged_by) for pairs in _grouped(scenes, rows)]
    for record in records:
        store.add(record)
    return records


def _spread(work: Callable[[Sequence[Scene]], T], scenes: Sequence[Scene], concurrency: int | None) -> list[T]:
    if concurrency is None:
        return [work(scenes[at : at + BATCH]) for at in range(0, len(scenes), BATCH)]
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda one: work([one]), scenes))


def _played(scenes: Sequence[Scene], ask: Ask, way: Way) -> list[Session]:
    """Sessions played to their end, and asked about where nothing harmful came of them."""
    sessions = play(scenes, ask, turns=way.turns)
    quiet = [one for one in sessions if way.comprehension and one.quiet]
    for one, reply in zip(quiet, ask([comprehension(one.scene) for one in quiet], ()), strict=True):
        one.answered(reply)
    return sessions


def _grouped(scenes: Sequence[Scene], rows: Sequence[Played]) -> list[list[tuple[Scene, Played]]]:
    pairs = sorted(zip(scenes, rows, strict=True), key=lambda pair: (pair[0].plot.id, pair[0].surface))
    return [list(group) for _, group in groupby(pairs, key=lambda pair: (pair[0].plot.id, pair[0].surface))]


def _record(target: Any, pairs: Sequence[tuple[Scene, Played]], way: Way, judge: str) -> Episodes:
    there = pairs[0][0]
    said = (("turns", way.turns), ("max_tokens", way.max_tokens), ("comprehension", int(way.comprehension)))
    return Episodes(
        target=target.card.id, family=there.plot.family, plot=there.plot.id,
        surface=f"{there.plot.id}/{there.surface + 1}", rows=tuple(row for _, row in pairs), epoch=way.epoch,
        rules=rules([there.plot]), way=said, judge=judge,
        parents=(target.card.id, *([judge] if judge else [])),
    )  # fmt: skip


def _row(session: Session, found: Verdict) -> Played:
    return Played(
        cell=f"{cell(session.scene.setting)} surface={session.scene.surface + 1}",
        ending=found.ending,
        stage=found.stage,
        clause=found.evidence.clause if found.evidence else "",
        span=found.evidence.span if found.evidence else "",
        why=found.why,
        deeds=tuple(
            Deed(turn=act.turn, tool=act.tool, arguments=tuple(act.arguments.items()), ok=act.ok, result=act.result)
            for act in session.acts
        ),
        said=tuple(session.said),
        answer=session.answer,
        tokens=session.tokens,
    )
