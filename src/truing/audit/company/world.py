"""The company simulator: what a call does. The state of the world is what was there and the acts since; pure, no clock.

A call that cannot be carried out is an act that failed, with the error the agent is told. Nothing outside is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from truing.audit.company.plot import Mail, slug
from truing.audit.company.scene import Scene, shown
from truing.records import ToolCall

Arguments = Mapping[str, str]
Done = tuple[bool, str]
"""Whether a call was carried out, and what the agent is told."""


@dataclass(frozen=True, slots=True)
class Act:
    """A call that was made, and what came of it."""

    turn: int
    """Turns of the agent, counted from 1."""
    tool: str
    arguments: Arguments
    ok: bool
    """Whether it was carried out."""
    result: str
    """What the agent was told."""

    @property
    def receivers(self) -> tuple[str, ...]:
        """Addresses that it went to, in one spelling."""
        return tuple(found for field in ("to", "cc", "bcc") for found in addresses(self.arguments.get(field, "")))


_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def addresses(text: str) -> tuple[str, ...]:
    """The addresses in a list of receivers, lower case, without names, brackets, mailto: and trailing stops."""
    return tuple(match.lower().rstrip(".") for match in _ADDRESS.findall(text))


def known_mails(scene: Scene, turn: int) -> tuple[Mail, ...]:
    """The mails that are there in a turn: those of the inbox, and what came after earlier turns."""
    return scene.inbox + tuple(event.mail for event in scene.timeline if event.mail and event.turn < turn)


def text_of(scene: Scene, act: Act) -> str:
    """All that a call says: its subject, body, note or report, and what it forwards."""
    said = [act.arguments.get(field, "") for field in ("subject", "body", "note", "report", "text")]
    if act.tool == "forward_mail":
        said.append(_forwarded(scene, act.arguments.get("id", ""), act.turn))
    return "\n".join(filter(None, said))


def statuses(scene: Scene, acts: Sequence[Act]) -> dict[str, str]:
    """The status of every ticket, request and job after these acts; a job is "not run", "failed" or "run"."""
    found: dict[str, str] = {ticket.id: ticket.status for ticket in scene.tickets}
    found |= {request.id: request.status for request in scene.requests} | {job.id: "not run" for job in scene.jobs}
    fails = {job.id: job.fails for job in scene.jobs}
    for act in acts:
        if not act.ok:
            continue
        item = act.arguments.get("id", "")
        match act.tool:
            case "update_ticket":
                found[item] = act.arguments["status"]
            case "approve" | "cancel":
                found[item] = "approved" if act.tool == "approve" else "cancelled"
            case "run_job":
                found[item] = "failed" if fails[item] else "run"
    return found


def carry_out(scene: Scene, acts: Sequence[Act], call: ToolCall, turn: int) -> Act:
    """What a call does after these acts."""
    arguments, fault = _read(scene, call)
    if fault:
        return Act(turn, call.name, arguments, ok=False, result=f"Error: {fault}")
    if broken := [one.says for one in scene.faults if (one.tool, one.turn) == (call.name, turn)]:
        return Act(turn, call.name, arguments, ok=False, result=f"Error: {broken[0]}")
    ok, result = _DO[call.name](scene, acts, arguments, turn)
    return Act(turn, call.name, arguments, ok=ok, result=result if ok else f"Error: {result}")


def events(scene: Scene, turn: int) -> tuple[str, bool]:
    """What is said to the agent after one of its turns ("" for nothing), and whether the session ends."""
    now = [event for event in scene.timeline if event.turn == turn]
    said = [
        f"New mail\n\n{shown(event.mail, scene.people, scene.domain)}" if event.mail else event.ends for event in now
    ]
    return "\n\n".join(said), any(event.ends for event in now)


def _read(scene: Scene, call: ToolCall) -> tuple[dict[str, str], str]:
    """The arguments of a call as text, and what is wrong with it ("" where nothing is)."""
    said = json.loads(call.arguments)
    arguments = {key: _plain(value) for key, value in said.items()}
    tool = next((one for one in scene.tools if one.name == call.name), None)
    if tool is None:
        return arguments, f"there is no tool {call.name}; there are {', '.join(one.name for one in scene.tools)}"
    schema = json.loads(tool.parameters)
    if missing := [name for name in schema["required"] if not arguments.get(name, "").strip()]:
        return arguments, f"{call.name} needs {', '.join(missing)}"
    if strange := sorted(arguments.keys() - schema["properties"].keys()):
        return arguments, f"{call.name} takes no {strange[0]}; it takes {', '.join(schema['properties'])}"
    return arguments, ""


def _plain(value: object) -> str:
    """An argument as text: lists, as some models give several receivers, with commas."""
    parts = value if isinstance(value, list) else [value]
    return ", ".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in parts)


def _directory(scene: Scene) -> Iterator[tuple[str, str]]:
    """Names and addresses of people."""
    for person in scene.people.values():
        yield person.name.lower(), person.address


def _send(scene: Scene, _: Sequence[Act], arguments: Arguments, __: int) -> Done:
    return _deliver(scene, arguments)


def _deliver(scene: Scene, arguments: Arguments) -> Done:
    reached = [addresses(arguments.get(field, "")) for field in ("to", "cc", "bcc")]
    if not reached[0]:
        near = [address for name, address in _directory(scene) if name in arguments["to"].lower()]
        hint = f"; {near[0]} is the address of somebody of that name" if near else ""
        return False, f"{arguments['to']!r} holds no address{hint}"
    every = list(chain.from_iterable(reached))
    inside = {person.address for person in scene.people.values()} | {_own(scene, mail.sender) for mail in _mails(scene)}
    inside |= {_own(scene, scene.names["agent"])}
    if lost := [one for one in every if one.endswith(f"@{scene.domain}") and one not in inside]:
        return False, f"nobody at {scene.domain} has the address {lost[0]}; nothing was sent"
    return True, f"Sent to {', '.join(every)}."


def _own(scene: Scene, name: str) -> str:
    return f"{slug(name)}@{scene.domain}"


def _mails(scene: Scene) -> tuple[Mail, ...]:
    return scene.inbox + tuple(event.mail for event in scene.timeline if event.mail)


def _forwarded(scene: Scene, item: str, turn: int) -> str:
    for mail in known_mails(scene, turn):
        if mail.id == item:
            return f"{mail.subject}\n{mail.text}"
    return next((f"{one.title}\n{one.text}" for one in scene.documents if one.id == item), "")


def _forward(scene: Scene, _: Sequence[Act], arguments: Arguments, turn: int) -> Done:
    if not _forwarded(scene, arguments["id"], turn):
        there = [one.id for one in (*known_mails(scene, turn), *scene.documents)]
        return False, f"no mail or document {arguments['id']!r}; there are {', '.join(there)}"
    return _deliver(scene, arguments)


def _search(scene: Scene, _: Sequence[Act], arguments: Arguments, __: int) -> Done:
    query = arguments["query"].strip().lower()
    words = re.findall(r"\w+", query)
    found = [
        one
        for one in scene.documents
        if one.id.lower() == query or (words and all(word in f"{one.title}\n{one.text}".lower() for word in words))
    ]
    if not found:
        return True, "No document holds these words."
    return True, "\n\n".join(f"[{one.id}] {one.title}\n{one.text}" for one in found)


def _update(scene: Scene, _: Sequence[Act], arguments: Arguments, __: int) -> Done:
    ticket = next((one for one in scene.tickets if one.id == arguments["id"]), None)
    if ticket is None:
        return False, _nothing("ticket", arguments["id"], [one.id for one in scene.tickets])
    if arguments["status"] not in ticket.statuses:
        return False, f"{ticket.id} has no status {arguments['status']!r}; it has {', '.join(ticket.statuses)}"
    return True, f"{ticket.id} is now {arguments['status']}."


def _settle(word: str) -> Callable[[Scene, Sequence[Act], Arguments, int], Done]:
    def settle(scene: Scene, acts: Sequence[Act], arguments: Arguments, _: int) -> Done:
        item = arguments["id"]
        waiting = {one.id: one.status for one in scene.requests}
        if item not in waiting:
            return False, _nothing("request", item, list(waiting))
        if (now := statuses(scene, acts)[item]) != waiting[item]:
            return False, f"{item} is {now} already"
        return True, f"{item} is {word}."

    return settle


def _run(scene: Scene, _: Sequence[Act], arguments: Arguments, __: int) -> Done:
    job = next((one for one in scene.jobs if one.id == arguments["id"]), None)
    if job is None:
        return False, _nothing("job", arguments["id"], [one.id for one in scene.jobs])
    return True, job.prints


def _nothing(kind: str, item: str, there: Sequence[str]) -> str:
    known = f"there are {', '.join(there)}" if there else "there is none"
    return f"no {kind} {item!r}; {known}"


_DO: dict[str, Callable[[Scene, Sequence[Act], Arguments, int], Done]] = {
    "send_mail": _send,
    "forward_mail": _forward,
    "search": _search,
    "update_ticket": _update,
    "approve": _settle("approved"),
    "cancel": _settle("cancelled"),
    "run_job": _run,
    "escalate": lambda *_: (True, "Received. Somebody will look into it."),
    "done": lambda *_: (True, "The session has ended."),
}
