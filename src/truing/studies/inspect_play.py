"""Play a cell of a company plot as a solver of Inspect's.

Calls are carried out by the simulator and not by Inspect's own loop, so that an episode is what it is in an audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated

from inspect_ai.model import ChatMessage, Model, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from pydantic import Field, TypeAdapter, ValidationError

from truing.errors import DataError, RecordError, TargetError
from truing.records import Message, Tool, Value
from truing.targets import Reply
from truing.targets.inspect import cause, ours, reply_in, their_tool, theirs, without_key
from truing.text import short

if TYPE_CHECKING:
    from truing.audit.company.episode import Session
    from truing.audit.company.plot import Plot
    from truing.audit.company.scene import Scene
    from truing.audit.company.verdict import Episode

GRADER = "grader"
"""As a judge: the model that has this role in the evaluation."""
EPISODE = "episode"
"""Where the store of a sample has what was done."""


class Cell(Value):
    """The metadata of a sample."""

    family: str
    plot: str
    surface: Annotated[int, Field(ge=1)]
    cell: str
    clause: str
    rules: str
    """Digest of all that the plot is played and judged by."""


@solver
def company(turns: int = 8, comprehension: bool = True, judge: str | None = None) -> Solver:
    """Play a cell, then ask about it. `judge`: it is looked for before anything is asked."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        from truing.audit.company.episode import Session

        del generate  # it offers tools that Inspect carries out
        there, model = scene_of(state), get_model()
        session = Session(there, list(there.messages))
        try:
            if judge:
                judge_called(judge)
            await _play(session, state, model, turns)
            if comprehension and session.quiet:
                await _ask(session, model)
        except BaseException as error:  # limits and cancellation too: what would have followed is not known
            session.error = session.error or f"broken off: {short(without_key(cause(error), model))}"
            raise
        finally:
            state.store.set(EPISODE, _episodes().dump_python(session.episode(), mode="json"))
        return state

    return solve


async def _play(session: Session, state: TaskState, model: Model, turns: int) -> None:
    """A session to its end. The conversation of the sample follows it."""
    offered = session.scene.tools
    while not session.over:
        state.output = await model.generate(state.messages, list(map(their_tool, offered)))
        before = len(session.messages)
        session.hear(heard(state.output, offered), turns)
        if said := session.messages[before:]:
            state.messages.extend([_own(state.output, said[0]), *map(theirs, said[1:])])


async def _ask(session: Session, model: Model) -> None:
    """What it understood, asked beside the conversation."""
    from truing.audit.company.episode import comprehension

    session.answered(heard(await model.generate(list(map(theirs, comprehension(session.scene))))))


def heard(output: ModelOutput, tools: Sequence[Tool] = ()) -> Reply | TargetError:
    """The reply in an output, as an audit keeps it."""
    from truing.audit.company.run import cleaned

    try:
        return cleaned(reply_in(output, tools))[0]
    except TargetError as error:
        return error


def _own(output: ModelOutput, said: Message) -> ChatMessage:
    """The model's own turn, reasoning and all, where it says what the session holds; else what the session holds.

    A call that could not be read, for one, would want a result.
    """
    try:
        return output.message if ours(output.message) == said else theirs(said)
    except (TargetError, RecordError, ValueError):
        return theirs(said)


def judge_called(name: str) -> Model:
    """The model that is asked about texts. Inspect's PrerequisiteError, among others, where it is not there."""
    return get_model(role=GRADER, required=True) if name == GRADER else get_model(name)


@cache
def plot_called(name: str) -> tuple[Plot, str]:
    """A plot, and the digest of its rules."""
    from truing.audit.company.layout import rules
    from truing.audit.company.plot import shipped

    found = shipped(name)
    return found, rules([found])


def scene_of(state: TaskState) -> Scene:
    """The cell that a sample is. DataError where other plots or rules made it than there are now."""
    from truing.audit.company import scene, setting, shared

    said = state.metadata_as(Cell)
    plot, rules = plot_called(said.plot)
    if rules != said.rules or said.surface > len(plot.surfaces):
        raise DataError(
            f"sample {short(state.sample_id)} was made by other rules than there are now; use the version of Truing"
            " that made it"
        )
    return scene(plot, said.surface - 1, setting(said.cell, shared().levels))


def episode_of(state: TaskState) -> Episode:
    """What was done in a sample; DataError where its store holds something else. An error where it was not played."""
    from truing.audit.company.verdict import Episode

    if (kept := state.store.get(EPISODE)) is None:
        return Episode((), error="it was not played")
    try:
        return _episodes().validate_python(kept)
    except ValidationError as error:
        raise DataError(f"sample {short(state.sample_id)} holds no episode: {short(error)}") from error


@cache
def _episodes() -> TypeAdapter[Episode]:
    from truing.audit.company.verdict import Episode

    return TypeAdapter(Episode)
