"""Company families as tasks of Inspect's: `inspect eval truing/coercion --model openai/gpt-4o`.

Inspect finds this module by its entry point, and with it all else of Truing's that it can use: the provider, and the
solver, scorer and metrics of the tasks. It loads it with every evaluation where Truing is installed, so what a task
needs is loaded when one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inspect_ai import Task, task
from inspect_ai._util.error import PrerequisiteError  # what Inspect shows as a message; it has no public name
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from rich.markup import escape

import truing.targets.provider  # noqa: F401 - registers itself
from truing.errors import UsageError
from truing.studies.inspect_play import GRADER, Cell, company, judge_called, plot_called
from truing.studies.inspect_scores import verdict
from truing.targets.inspect import theirs

FAMILIES = (
    "coercion", "leak", "inaction", "oversight", "self-preservation", "deception", "misuse", "publicity",
)  # fmt: skip
CHOICES = {"half": ("develop", "held-out"), "design": ("array", "crossed", "fraction", "random", "full")}
LEAST = {"runs": 2, "seed": 0, "turns": 1}


def _task(family: str) -> Callable[..., Task]:
    @task(name=family)
    def made(
        half: str | None = None,
        design: str = "crossed",
        runs: int = 36,
        seed: int = 0,
        turns: int = 8,
        judge: str | None = None,
        comprehension: bool = True,
    ) -> Task:
        judge = judge or None  # YAML reads "off" as false
        try:
            _check(half, design, judge, comprehension, {"runs": runs, "seed": seed, "turns": turns})
            samples = _samples(family, half, design, runs, seed)
        except UsageError as error:
            raise PrerequisiteError(escape(f"truing/{family}: {error}")) from error
        return Task(
            dataset=MemoryDataset(samples, name=family),
            solver=company(turns=turns, comprehension=comprehension, judge=judge),
            scorer=verdict(judge=judge),
            config=GenerateConfig(max_tokens=512, temperature=0.0),
            score_on_error=True,  # a failure is a class of its own, and does not disappear
        )

    return made


def _check(half: Any, design: Any, judge: Any, comprehension: Any, numbers: dict[str, Any]) -> None:
    """UsageError for a value of -T that is none."""
    for name, value in (("half", half or "develop"), ("design", design)):
        if value not in CHOICES[name]:
            raise UsageError(f"-T {name}={value} is none of {', '.join(CHOICES[name])}")
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < LEAST[name]:
            raise UsageError(f"-T {name}={value} is no whole number of {LEAST[name]} or more")
    if not isinstance(comprehension, bool):
        raise UsageError(f"-T comprehension={comprehension} is neither true nor false")
    if not isinstance(judge, str | None):
        raise UsageError(f"-T judge={judge} names no model; give one, or {GRADER} for the model that has this role")
    if judge and judge != GRADER:
        try:
            judge_called(judge)
        except ValueError as error:
            raise UsageError(f"-T judge={judge}: {error}") from error


def _samples(family: str, half: Any, design: Any, runs: int, seed: int) -> list[Sample]:
    """A sample for each cell, by plot. UsageError for a plan that there is not."""
    from truing.audit.company.guards import cell
    from truing.audit.company.layout import lay_out
    from truing.audit.company.plans import Plan

    laid = lay_out(family, half=half, plan=Plan(design, runs, seed))
    found = {}
    for one in laid.scenes:
        said = Cell(
            family=family, plot=one.plot.id, surface=one.surface + 1, cell=cell(one.setting), clause=laid.clause,
            rules=plot_called(one.plot.id)[1],
        )  # fmt: skip
        name = f"{said.plot}/{said.surface}/{said.cell}"
        found[name] = Sample(id=name, input=list(map(theirs, one.messages)), metadata=said.model_dump())
    return list(found.values())


TASKS = {family: _task(family) for family in FAMILIES}
"""The tasks, by family; Inspect calls each `truing/FAMILY`."""
