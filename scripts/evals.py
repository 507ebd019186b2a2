"""Run five evals of inspect-evals on the bundled model, offline, and write their outcome classes: `make evals`.

Everything that is not the bundled model (graders, simulated users, the other side of a conversation) is scripted.
The logs stay in build/evals; the table goes to docs/explanation/evals.md, the counts to benchmarks/results/evals.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import evals_page
from common import commit, machine
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
from inspect_evals.tau2 import tau2_airline, tau2_banking

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "evals"
MODEL = "truing/smollm2-135m"
LIMIT = 1_000_000
"""Tokens of a sample, at most: a model of this size may call the same tool for ever."""
PACKAGES = ("truing", "inspect-ai", "inspect-evals", "torch", "transformers")

Says = Callable[[Sequence[str]], str]


def scripted(says: Says) -> Model:
    """A model that answers what the function makes of the turns before."""

    def output(turns: Any, *_: Any) -> ModelOutput:
        answer = ModelOutput.from_content("mockllm/scripted", says([turn.text for turn in turns]))
        answer.usage = ModelUsage()  # else Inspect counts tokens with a file that it would download
        return answer

    return get_model("mockllm/scripted", custom_outputs=output, memoize=False)


def customer(turns: Sequence[str]) -> str:
    """Reads out why it calls, as it was told to; then agrees."""
    reason = re.search(r"Reason for call:\s*(.*?)\s*Known info:", turns[0], re.DOTALL)
    return " ".join(reason[1].split()) if reason and len(turns) == 2 else "Yes, please do that."


@dataclass(frozen=True)
class Run:
    """One task, how much of it, and who plays the other parts."""

    task: Callable[[], Task]
    samples: int
    tokens: int
    """Of each reply, at most."""
    turns: int | None = None
    """Messages in a sample, at most."""
    roles: dict[str, Says] = field(default_factory=dict)
    note: str = "nothing: scored by rules"
    variant: str = ""
    temperature: float = 0.0
    asked: int = 1
    """How often the bundled model is asked in a sample, at least. Some tasks catch errors and go on without a reply."""


def judged(scenario: Any) -> Run:
    """One scenario of agentic_misalignment."""
    grader = scripted(lambda _: "<answer>no</answer>")
    return Run(
        lambda: agentic_misalignment(scenario=scenario, grader_model=grader), 1, 200,
        note="the grader: says no to every reply", variant=scenario,
    )  # fmt: skip


RUNS = (
    Run(agent_threat_bench_memory_poison, 6, 200, 12),
    Run(agent_threat_bench_autonomy_hijack, 6, 200, 12),
    Run(agent_threat_bench_data_exfil, 6, 200, 12),
    Run(agent_threat_bench_data_exfil, 8, 200, 12, variant="at temperature 1, seed 0", temperature=1.0),
    Run(lambda: task_with(persistbench_sycophancy(), epochs=1), 6, 200,
        roles={"grader": lambda _: '{"score": 1, "rating": 1, "reasoning": "scripted: always 1"}'},
        note="the grader: score 1 for every reply"),
    Run(lambda: tau2_airline(shuffle=False, message_limit=2), 4, 100, roles={"user": customer}, asked=2,
        note="the customer: reads out its reason for calling, then says yes"),
    Run(lambda: tau2_banking(shuffle=False, message_limit=1, retrieval_config="full_kb"), 2, 200,
        roles={"user": customer}, note="the customer: reads out its reason for calling", variant="full_kb"),
    *(judged(scenario) for scenario in ("blackmail", "leaking", "murder")),
    Run(lambda: make_me_pay(num_experiments=1, turn_cap=3), 1, 200, asked=3,
        roles={"mark": lambda said: "Here. [DONATE $1]" if "donat" in said[-1].lower() else "What is it for?"},
        note="the mark: gives 1 dollar where the word donate is said, and else asks what it is for"),
)  # fmt: skip


async def done(run: Run) -> EvalLog:
    """The log of a run. Errors of samples stand in it."""
    roles: dict[str, str | Model] = {role: scripted(says) for role, says in run.roles.items()}
    (log,) = await eval_async(
        run.task(), model=MODEL, model_roles=roles, limit=run.samples, message_limit=run.turns, token_limit=LIMIT,
        temperature=run.temperature, seed=0, max_tokens=run.tokens, max_samples=16, fail_on_error=False,
        log_dir=str(WORK),
    )  # fmt: skip
    return log


def ours(sample: EvalSample) -> list[ModelEvent]:
    """Where the bundled model was asked."""
    return [event for event in sample.events if isinstance(event, ModelEvent) and event.model == MODEL]


def ended(sample: EvalSample) -> str:
    """How a sample ended."""
    return "error" if sample.error else f"{sample.limit.type} limit" if sample.limit else "finished"


def reply_class(event: ModelEvent) -> str:
    """How a reply ended, and whether it asked for tools in words that do not parse."""
    if event.error:
        return "error"
    said = (event.output.metadata or {}).get("truing", {})
    return "unparsed" if said.get("unparsed") else str(event.output.stop_reason)


def distinct(asked: Sequence[ModelEvent]) -> int:
    """Different texts that the model wrote. Where there is an error, the text is its message."""
    return len({event.output.completion for event in asked if not (event.error or event.output.error)})


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
    asked = [event for sample in samples for event in ours(sample)]
    return {
        "task": log.eval.task.removeprefix("inspect_evals/"),
        "variant": run.variant,
        "status": log.status,
        "samples": len(samples),
        "scripted": run.note,
        "replies": dict(Counter(map(reply_class, asked)).most_common()),
        "distinct": distinct(asked),
        "missing": sum(max(0, run.asked - len(ours(sample))) for sample in samples),
        "calls": sum(len(event.output.message.tool_calls or ()) for event in asked if not event.output.empty),
        "ended": dict(Counter(map(ended, samples)).most_common()),
        "scores": dict(sorted(Counter(value for sample in samples for value in scores(sample)).items())),
        "seconds": round(seconds, 1),
    }


def failed(found: dict[str, Any]) -> bool:
    """Whether a row is not what it should be: all samples there and scored, and the model asked as often as said."""
    broken = found["missing"] or "error" in found["replies"] or "error" in found["ended"]
    return bool(broken or found["status"] != "success" or not found["samples"] or not found["scores"])


async def main() -> None:
    """Run all, one after the other. What failed is written too."""
    measured = commit()
    shutil.rmtree(WORK, ignore_errors=True)
    rows = []
    for run in RUNS:
        began = time.perf_counter()
        log = await done(run)
        rows.append(row(run, log, time.perf_counter() - began))
        print(json.dumps(rows[-1]), flush=True)
    body = {
        "model": MODEL,
        "machine": machine(),
        "versions": {package: metadata.version(package) for package in PACKAGES}
        | {"python": platform.python_version()},
        "commit": measured,
        "rows": rows,
    }
    evals_page.RESULTS.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    evals_page.main()
    if bad := [r["task"] for r in rows if failed(r)]:
        sys.exit(f"these did not run as they should: {', '.join(bad)}")


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
