"""Run five evals of inspect-evals on the bundled model, offline, and write their outcome classes: `make evals`.

Everything that is not the bundled model (graders, simulated users, the other side of a conversation) is scripted.
The logs stay in build/evals; the table goes to docs/explanation/evals.md, the counts to benchmarks/results/evals.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from demo_page import between
from inspect_ai import Task, eval_async, task_with
from inspect_ai.event import ModelEvent
from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model
from inspect_evals.agent_threat_bench import (
    agent_threat_bench_autonomy_hijack,
    agent_threat_bench_data_exfil,
    agent_threat_bench_memory_poison,
)
from inspect_evals.agentic_misalignment import agentic_misalignment
from inspect_evals.make_me_pay import make_me_pay
from inspect_evals.persistbench import persistbench_sycophancy
from inspect_evals.tau2 import tau2_airline

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "evals"
RESULTS = ROOT / "benchmarks" / "results" / "evals.json"
PAGE = ROOT / "docs" / "explanation" / "evals.md"
MODEL = "truing/smollm2-135m"
LIMIT = 100_000
"""Tokens of a sample, at most: a model of this size may call the same tool for ever."""


def scripted(says: Callable[[str], str]) -> Model:
    """A model that answers what the function makes of the last turn."""

    def output(turns: Any, *_: Any) -> ModelOutput:
        answer = ModelOutput.from_content("mockllm/scripted", says(turns[-1].text))
        answer.usage = ModelUsage()  # else Inspect counts tokens with a file that it would download
        return answer

    return get_model("mockllm/scripted", custom_outputs=output, memoize=False)


@dataclass(frozen=True)
class Run:
    """One task, how much of it, and who plays the other parts."""

    task: Callable[[], Task]
    samples: int
    tokens: int
    """Of each reply, at most."""
    turns: int | None = None
    """Messages in a sample, at most."""
    roles: dict[str, Callable[[str], str]] = field(default_factory=dict)
    note: str = "nothing: scored by rules"
    variant: str = ""


def judged(scenario: Any) -> Run:
    """One scenario of agentic_misalignment."""
    grader = scripted(lambda _: "<answer>no</answer>")
    return Run(
        lambda: agentic_misalignment(scenario=scenario, grader_model=grader), 1, 600,
        note="the grader: says no to every reply", variant=scenario,
    )  # fmt: skip


RUNS = (
    Run(agent_threat_bench_memory_poison, 6, 200, 12),
    Run(agent_threat_bench_autonomy_hijack, 6, 200, 12),
    Run(agent_threat_bench_data_exfil, 6, 200, 12),
    Run(lambda: task_with(persistbench_sycophancy(), epochs=1), 8, 200,
        roles={"grader": lambda _: '{"score": 1, "rating": 1, "reasoning": "scripted: always 1"}'},
        note="the grader: score 1 for every reply"),
    Run(lambda: tau2_airline(shuffle=False, message_limit=2), 4, 200,
        roles={"user": lambda _: "I would like to change my flight. Can you help me with that?"},
        note="the customer: says the same in each of two turns"),
    *(judged(scenario) for scenario in ("blackmail", "leaking", "murder")),
    Run(lambda: make_me_pay(num_experiments=4, turn_cap=3), 4, 200,
        roles={"mark": lambda said: "Here. [DONATE $1]" if "donat" in said.lower() else "What is it for?"},
        note="the mark: gives 1 dollar where the word donate is said, and else asks what it is for"),
)  # fmt: skip


async def done(run: Run) -> EvalLog:
    """The log of a run. Errors of samples stand in it."""
    roles: dict[str, str | Model] = {role: scripted(says) for role, says in run.roles.items()}
    (log,) = await eval_async(
        run.task(), model=MODEL, model_roles=roles, limit=run.samples, message_limit=run.turns, temperature=0.0,
        max_tokens=run.tokens, token_limit=LIMIT, max_samples=16, fail_on_error=False,
        log_dir=str(WORK),
    )  # fmt: skip
    return log


def ours(sample: EvalSample) -> list[ModelOutput]:
    """What the bundled model gave."""
    return [event.output for event in sample.events if isinstance(event, ModelEvent) and event.model == MODEL]


def ended(sample: EvalSample) -> str:
    """How a sample ended."""
    return "error" if sample.error else f"{sample.limit.type} limit" if sample.limit else "finished"


def reply_class(output: ModelOutput) -> str:
    """How a reply ended, and whether it asked for tools in words that do not parse."""
    said = (output.metadata or {}).get("truing", {})
    return "unparsed" if said.get("unparsed") else str(output.stop_reason)


def scores(sample: EvalSample) -> list[str]:
    """Every value that was scored, named."""
    found = []
    for name, score in (sample.scores or {}).items():
        parts = score.value if isinstance(score.value, dict) else {name: score.value}
        found += [f"{part} {value}" for part, value in parts.items()]
    return found


def row(run: Run, log: EvalLog, seconds: float) -> dict[str, Any]:
    """Counts of what happened."""
    samples = log.samples or []
    outputs = [output for sample in samples for output in ours(sample)]
    return {
        "task": " ".join([log.eval.task.removeprefix("inspect_evals/"), run.variant]).strip(),
        "status": log.status,
        "samples": len(samples),
        "scripted": run.note,
        "replies": dict(Counter(map(reply_class, outputs)).most_common()),
        "calls": sum(len(output.message.tool_calls or ()) for output in outputs if not output.empty),
        "ended": dict(Counter(map(ended, samples)).most_common()),
        "scores": dict(sorted(Counter(value for sample in samples for value in scores(sample)).items())),
        "seconds": round(seconds, 1),
    }


def counts(found: dict[str, int]) -> str:
    """For a cell of a table."""
    return ", ".join(f"{name}: {count}" for name, count in found.items()) or "none"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the page."""
    lines = [
        "| Task | Samples | Scripted | Replies of the model | Tool calls | Samples ended | Scores |",
        "|" + "---|" * 7,
    ]
    lines += [
        f"| `{r['task']}` | {r['samples']} | {r['scripted']} | {counts(r['replies'])} | {r['calls']} |"
        f" {counts(r['ended'])} | {counts(r['scores'])} |"
        for r in rows
    ]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("inspect-ai", "inspect-evals"))
    return "\n".join([*lines, "", f"With {versions}."])


async def main() -> None:
    """Run all, one after the other."""
    shutil.rmtree(WORK, ignore_errors=True)
    rows = []
    for run in RUNS:
        began = time.perf_counter()
        log = await done(run)
        rows.append(row(run, log, time.perf_counter() - began))
        print(json.dumps(rows[-1]), flush=True)
    if any(r["status"] != "success" or not r["replies"] or "error" in r["ended"] for r in rows):
        sys.exit("a run did not succeed, or the model was never asked; nothing was written")
    RESULTS.write_text(json.dumps({"model": MODEL, "rows": rows}, indent=2) + "\n")
    PAGE.write_text(between(PAGE.read_text(), "evals", table(rows)))


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
