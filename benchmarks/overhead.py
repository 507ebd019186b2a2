"""What the harness itself takes for a model call, beside Inspect on the same calls: models here answer at once.

Sixteen personas of known rates, whose answers are there before the clock runs, are one model API of Inspect's. Three
sides ask them in every cell of a company family, each in a process of its own, in turn:

- ours: `across.grid` over targets `inspect/persona/...`, into a fresh store;
- Inspect: its own `eval` of our task over the same models, into fresh logs;
- the floor: the grid again, the personas in this process and no Inspect in between.

CPU seconds are those of the process, user and system, all threads, around the run alone. Start-up, imports and the
layout of the family are no part of them: each side has asked two other personas before. What a persona takes to answer
is, on all sides alike.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from common import Row

from truing.audit.company.agents import calls
from truing.audit.company.episode import comprehension
from truing.audit.company.guards import cell
from truing.audit.company.layout import lay_out
from truing.audit.company.scene import Scene
from truing.records import Message, Target, Tool, ToolCall, digest_of
from truing.targets import Reply

FAMILY = "oversight"
TURNS = 3
"""Runs of each side."""
MOST = 5.0
"""CPU milliseconds of ours for a call."""
RATES = {f"persona-{n}": (n + 0.5) / 16 for n in range(16)}
"""How often each does harm where the means are there."""
BEFORE = ("before-1", "before-2")
"""Who is asked before the clock runs."""
TUNED: dict[str, Any] = {
    "display": "none", "score_display": False, "log_level": "warning", "log_realtime": False, "log_model_api": False,
    "log_header_only": True, "log_buffer": 100, "ctl_server": False, "max_tasks": 1, "max_samples": 180,
    "max_connections": 180,
}  # fmt: skip
"""What took Inspect least CPU of all that was tried: one model after the other, all of its cells at once."""

Calls = tuple[ToolCall, ...]
Key = tuple[str, str]
"""The system turn and the user's first, by which cells are told apart."""
SEARCH = (ToolCall(name="search", arguments='{"query":"report"}', id="call_search"),)
DONE = ToolCall(name="done", arguments='{"report":"Done."}', id="call_done")


# -- personas ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Book:
    """What is said in every cell."""

    acts: dict[Key, dict[str, Calls]]
    """By persona: what it does in its second turn, in which it ends the session. In the first it searches."""
    answers: dict[Key, str]
    """To the questions about the situation."""

    def said(self, name: str, at: Key, turns: int) -> tuple[str, Calls]:
        """Text and calls, where the conversation has so many turns."""
        asked.append(name)
        if (answer := self.answers.get(at)) is not None:
            return answer, ()
        return "", SEARCH if turns == 2 else self.acts[at][name]


asked: list[str] = []
"""Who was asked, call by call."""


@cache
def book() -> Book:
    """All that is ever said."""
    acts: dict[Key, dict[str, Calls]] = {}
    answers: dict[Key, str] = {}
    for there in lay_out(FAMILY).scenes:
        does = {way: (*calls(there, way, "develop"), DONE) for way in ("harmful", "benign")}
        acts[_key(there.messages)] = {name: does[deed(name, there)] for name in (*RATES, *BEFORE)}
        answers[_key(comprehension(there))] = "\n".join(one.right[0] for one in there.questions)
    return Book(acts, answers)


def deed(name: str, there: Scene) -> str:
    """What a persona does in a cell, whenever it is asked: harm with its rate, where the means are there."""
    at = f"{name} {there.plot.id} {there.surface} {cell(there.setting)}"
    luck = int.from_bytes(sha256(at.encode()).digest()[:8], "big") / 2**64
    return "harmful" if there.setting["means"] == "present" and luck < RATES.get(name, 0.5) else "benign"


def _key(messages: Sequence[Message]) -> Key:
    return messages[0].content, messages[1].content


class Scripted:
    """A persona in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.card = Target(name=f"scripted/{name}", weights=digest_of(name), template=digest_of("none"), dtype="none",
                           abilities=("Chat",))  # fmt: skip

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        """What the book says."""
        del max_tokens, tools
        said = [book().said(self.name, _key(messages), len(messages)) for messages in conversations]
        return [Reply(text, 1, finished=True, calls=made) for text, made in said]


def register() -> None:
    """Make the personas models of Inspect's, `persona/NAME`."""
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        modelapi,
    )

    from truing.targets.inspect import their_call

    @modelapi(name="persona")
    class Instant(ModelAPI):
        async def generate(self, input: list[ChatMessage], **_: Any) -> ModelOutput:  # noqa: A002 - as Inspect calls it
            text, made = book().said(self.model_name, (input[0].text, input[1].text), len(input))
            message = ChatMessageAssistant(content=text, tool_calls=list(map(their_call, made)) or None)
            choice = ChatCompletionChoice(message=message, stop_reason="tool_calls" if made else "stop")
            usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # else Inspect would count tokens
            return ModelOutput(model=self.model_name, choices=[choice], usage=usage)


# -- sides -------------------------------------------------------------------------------------------------------------

Ends = dict[str, str]
"""The class of every episode, by persona, plot and cell."""
Side = Callable[[Sequence[str], Path], Callable[[], Ends]]
"""Asks these personas, and keeps what came of it in a folder; returned is how to read that afterwards."""


def ours(names: Sequence[str], folder: Path) -> Callable[[], Ends]:
    """A grid of targets that Inspect reaches."""
    from truing.targets import resolve

    return _grid([f"inspect/persona/{name}" for name in names], folder, resolve)


def floor(names: Sequence[str], folder: Path) -> Callable[[], Ends]:
    """The same grid without Inspect."""
    return _grid([f"scripted/{name}" for name in names], folder, lambda name, _: Scripted(name.rpartition("/")[2]))


def _grid(names: Sequence[str], folder: Path, load: Callable[..., Any]) -> Callable[[], Ends]:
    from truing.audit.across import grid
    from truing.records import Episodes
    from truing.store import open_store
    from truing.targets.roster import Entry, Roster

    with open_store(folder) as store:
        found = grid(Roster(target=tuple(Entry(name=name) for name in names)), [FAMILY], store, load)
    by_card = {card: name.rpartition("/")[2] for name, card in found.grid.targets}

    def read() -> Ends:
        with open_store(folder, mode="read") as store:
            records = [one for one in store.of_kind("episodes") if isinstance(one, Episodes)]
        return {f"{by_card[one.target]} {one.plot} {row.cell}": row.ending for one in records for row in one.rows}

    return read


def theirs(names: Sequence[str], folder: Path) -> Callable[[], Ends]:
    """Inspect's evaluation of our task."""
    from inspect_ai import eval  # noqa: A004 - as Inspect calls it
    from inspect_ai.log import read_eval_log

    from truing.studies.inspect_tasks import TASKS

    logs = eval(TASKS[FAMILY](), model=[f"persona/{name}" for name in names], log_dir=str(folder), **TUNED)

    def read() -> Ends:
        found = {}
        for log in (read_eval_log(log.location) for log in logs):
            name = log.eval.model.rpartition("/")[2]
            for sample in log.samples or []:
                at, score = sample.metadata, (sample.scores or {})["verdict"]
                found[f"{name} {at['plot']} {at['cell']} surface={at['surface']}"] = score.as_str()
        return found

    return read


SIDES: dict[str, Side] = {"ours": ours, "theirs": theirs, "floor": floor}


def took(name: str, names: Sequence[str] = tuple(RATES)) -> dict[str, Any]:
    """What one side takes in this process, and what came of it."""
    book()
    with tempfile.TemporaryDirectory() as folder:
        SIDES[name](BEFORE, Path(folder, "before"))
        asked.clear()
        usage, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        read = SIDES[name](names, Path(folder, "run"))
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        count, ends = len(asked), read()
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return {"cpu": cpu, "wall": wall, "calls": count, "ends": ends}


# -- figures -----------------------------------------------------------------------------------------------------------


def child(name: str) -> dict[str, Any]:
    """One side in a process of its own."""
    out = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    print(f"  {name}: {found['cpu']:.1f} s of CPU, {found['wall']:.1f} s, {found['calls']} calls", file=sys.stderr)
    return found


def overhead() -> list[Row]:
    """All sides in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(TURNS):
        for name, some in runs.items():
            some.append(child(name))
    return rows(runs)


def rows(runs: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Milliseconds of a call on each side, the peer's over ours turn by turn, and whether both did the same."""
    what, peer = f"overhead of the harness, {len(RATES)} targets, instant personas", "Inspect"
    found = []
    for clock, bar in (("CPU", MOST), ("wall", None)):
        ms = {name: [1e3 * run[clock.lower()] / run["calls"] for run in some] for name, some in runs.items()}
        ratios = [b / a for a, b in zip(ms["ours"], ms["theirs"], strict=True)]
        more: dict[str, Any] = {
            "peer": peer, "ratio": {"min": min(ratios), "median": median(ratios), "max": max(ratios)},
        }  # fmt: skip
        if bar is not None:
            more |= {"bar": f"<= {bar:g}", "holds": median(ms["ours"]) <= bar, "floor": median(ms["floor"])}
        for name, called in (("ours", "ours"), ("theirs", peer), ("floor", "ours without Inspect in between")):
            low, value, high = min(ms[name]), median(ms[name]), max(ms[name])
            found.append(
                Row(f"{what}: {called}, {clock}", value, "ms a call", low, high, **(more if name == "ours" else {}))
            )
    every = [run for some in runs.values() for run in some]
    counts, wanted = {run["calls"] for run in every}, planted(tuple(RATES))
    right = sum(all(run["ends"].get(at) == ending for run in every) for at, ending in wanted.items())
    return [
        *found,
        Row(f"{what}: calls in every run of every side", float(max(counts)), "calls", bar="equal",
            holds=len(counts) == 1),
        Row(f"{what}: episodes classed as planted, in every run", float(right), f"of {len(wanted)}", bar="all",
            holds=right == len(wanted)),
    ]  # fmt: skip


def planted(names: Sequence[str]) -> Ends:
    """What every episode should be classed as."""
    where = {f"{one.plot.id} {cell(one.setting)} surface={one.surface + 1}": one for one in lay_out(FAMILY).scenes}
    return {f"{name} {at}": deed(name, there) for name in names for at, there in where.items()}


if __name__ == "__main__":
    register()
    print(json.dumps(took(sys.argv[1])))
