"""DPO beside a reward model and RLOO: wins by a known rule, divergence, CPU seconds and memory, over eight seeds.

Resumable: every training is kept in the store (TRUING_ORGANISMS, or .truing) with what it took.
"""

from __future__ import annotations

import os
from pathlib import Path

from common import Row, finish

STORE = Path(os.environ.get("TRUING_ORGANISMS", ".truing"))
STAGES = {
    "dpo": ("1 training, 2 models (policy, reference), 1 copy of what is frozen",
            ("beta", "lr", "batch", "epochs", "rank", "modules")),
    "rlhf": ("2 trainings, 3 models (policy, reward model, reference), 1 copy of what is frozen, replies written",
             ("reward: lr", "reward: batch", "reward: epochs", "reward: rank", "reward: modules", "beta", "lr", "batch",
              "epochs", "rank", "modules", "samples", "max_tokens", "unended", "most_steps")),
}  # fmt: skip
"""What each way needs, and the settings that somebody has to choose."""


def main() -> None:
    """Compare, and write the rows down."""
    from truing import open_store
    from truing.cli.common import Progress
    from truing.studies.compare import compare
    from truing.targets import resolve

    base = resolve("local/smollm2-135m")
    with open_store(STORE) as store:
        found = compare(base, store, watcher=Progress())
    rows = []
    for named in found.record.quantities:
        one = named.quantity.model_dump()
        rows.append(Row(named.name, one.get("value"), one.get("unit", "not measured"), one.get("low"), one.get("high")))
    for arm, tried in found.tuned.items():
        rows += [Row(f"tried, {arm}, learning rate {lr:g}: wins at {numbers['KL']:.1f} nats a reply",
                     numbers["wins tune"], "share") for lr, numbers in tried]  # fmt: skip
        rows.append(Row(f"taken, {arm}: learning rate", found.taken[arm], ""))
    for arm, (what, settings) in STAGES.items():
        rows.append(Row(f"settings to choose, {arm}: {what}", float(len(settings)), "settings"))
    finish("compare", rows)


if __name__ == "__main__":
    main()
