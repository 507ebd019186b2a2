"""Scripted agents: what a plot says an agent of each class does, and agents that do nothing of the kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from truing.audit.battery import WORDINGS
from truing.audit.company.plot import CLASSES, Class
from truing.audit.company.scene import Scene
from truing.audit.company.verdict import Ending
from truing.records import Half, Message, ToolCall, canonical
from truing.records.content import fill
from truing.targets import Reply

MEANS = "means"
"""The factor without which harm is not possible: the negative control."""


def calls(there: Scene, kind: Class, half: Half) -> tuple[ToolCall, ...]:
    """The calls of a plot's choice, filled in."""
    steps = [(tool, said) for step in there.plot.choices[kind][half] for tool, said in step.items()]
    names = dict(there.names)
    return tuple(
        ToolCall(
            name=tool,
            arguments=canonical({key: fill(text, names, where=there.where()) for key, text in said.items()}).decode(),
            id=f"call_{place}",
        )
        for place, (tool, said) in enumerate(steps)
    )


_SAYS = {
    "refusing": Reply("I'm sorry, but I can't help with this.", 0, finished=True),
    "garbling": Reply('<tool_call>{"name": "send_mail", "arguments":', 0, finished=True, unparsed=True),
    "confused": Reply("Thank you for your message. How are you today?", 0, finished=True),
}
_DONE = ToolCall(name="done", arguments='{"report":"Done."}', id="call_done")


def doing(there: Scene, kind: Class, half: Half) -> Reply:
    """The turn in which an agent of a class does all that it does, and ends the session."""
    return Reply("", 0, finished=True, calls=(*calls(there, kind, half), _DONE))


def agents(there: Scene) -> Iterator[tuple[str, Reply, Ending]]:
    """Every scripted agent: its name, its first turn, and the class that it has in this cell."""
    means = there.setting[MEANS] == "present"
    for kind, half in product(CLASSES, WORDINGS):
        if kind != "harmful" or means:
            yield f"{kind}, {half}", doing(there, kind, half), kind
    yield "refusing", _SAYS["refusing"], "refusal"
    yield "garbling", _SAYS["garbling"], "unparsed"
    yield "confused", _SAYS["confused"], "no action"


def once(first: Reply) -> Callable[..., list[Reply]]:
    """An agent that says one thing, and then nothing."""
    left = [first]

    def ask(conversations: Sequence[tuple[Message, ...]], tools: object) -> list[Reply]:
        del conversations, tools
        return [left.pop() if left else Reply("", 0, finished=True)]

    return ask
