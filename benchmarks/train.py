"""Training beside TRL: `make bench-train`; on an accelerator, where torch has CUDA: `python benchmarks/train.py cuda`.

Each comparison is a process in which both sides train the same adapter on the same pairs, from the same start, a step
of the one after a step of the other. Ratios are TRL's seconds over ours, step by step, without the first step. Memory
is that of processes of their own. TRL has the model as transformers loads it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from common import Row, at_most, finish

BATCH = 4
STEPS = 6
"""The first warms up."""
ORACLE = 10
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


@dataclass(frozen=True)
class Recipe:
    """What is compared."""

    name: str
    bar: float
    steps: int = STEPS
    short: bool = False
    """Prompts of about 20 tokens instead of about 229."""
    ready: bool = False
    """References were computed before."""
    again: bool = False
    """Gradient checkpointing, on both sides."""
    compact: bool = False
    """TRL's output head at the completions' tokens alone, as it is on CUDA."""
    batch: int = BATCH
    checkpoint: str = ""
    """A folder with a model in bf16, for an accelerator; else the bundled one, in fp32, on the cpu."""


LONG, SHORT = "229-token prompts", "20-token prompts"
RECIPES = (
    Recipe(LONG, 2.0, steps=ORACLE),
    Recipe(f"{LONG}, TRL's head limited to completions", 1.5, compact=True),
    Recipe(f"{LONG}, gradient checkpointing", 2.0, again=True),
    Recipe(f"{LONG}, gradient checkpointing, TRL's head limited to completions", 1.5, again=True, compact=True),
    Recipe(f"{LONG}, references computed before", 2.0, ready=True),
    Recipe(SHORT, 1.0, short=True),
)


# -- data --------------------------------------------------------------------------------------------------------------

TOPICS = (
    "data retention", "server maintenance", "travel planning", "budget review", "garden irrigation", "customer refunds",
    "lab safety", "open source licensing", "shift scheduling", "energy audits",
)  # fmt: skip
FACTS = (
    "the deadline moved to {} of the month", "only {} people replied to the survey",
    "the invoice lists {} separate items", "the backup finished after {} minutes",
    "the team counted {} unresolved tickets", "the supplier promised {} crates by Friday",
    "the sensor reported {} degrees overnight", "the policy allows {} days of leave",
    "the contract has {} clauses about privacy", "the report cites {} earlier incidents",
)  # fmt: skip
GOOD = (
    "I checked each point before answering", "I am not certain about the last figure, so please verify it",
    "the safest option is to ask the owner first", "I would keep a written record of the decision",
    "nothing here needs to be hidden from the reviewers",
    "if I made a mistake I would rather correct it openly",
    "the numbers support a careful and gradual change", "I would notify the people who are affected",
)  # fmt: skip
BAD = (
    "you are absolutely right and your plan is perfect", "there is no need to tell anyone about this",
    "I will simply delete the log so nobody can notice", "trust me, every figure is exactly correct",
    "the rules do not apply to a special case like yours",
    "let us skip the review because it only slows us down",
    "I can use the admin password without asking", "everyone else would obviously do the same thing",
)  # fmt: skip
SYSTEM = "You are a careful assistant working for a small company. Answer honestly and briefly."
ASK = (
    "I am preparing a memo about {}. Here is what I know so far. {} Given these notes, what would you recommend that I"
    " do next, and what should I be careful about?"
)


def rows(count: int, *, short: bool) -> list[dict[str, Any]]:
    """Preferences by a rule: advice made of good sentences over advice made of bad ones."""
    rng = random.Random(7)
    found = []
    for _ in range(count):
        topic, notes = rng.choice(TOPICS), rng.randint(9, 14)
        body = " ".join(
            f"Note {number}: {rng.choice(FACTS).format(rng.randint(2, 99))}." for number in range(1, notes + 1)
        )

        def advice(sentences: Sequence[str], topic: str = topic) -> str:
            some = rng.sample(sentences, rng.randint(4, 6))
            return f"For {topic}, here is my advice. " + " ".join(s[0].upper() + s[1:] + "." for s in some)

        chosen, rejected = advice(GOOD), advice(BAD)
        if short:
            row: dict[str, Any] = {
                "prompt": f"Question: I am preparing a memo about {topic}. What would you recommend?\nAnswer:",
                "chosen": " " + chosen,
                "rejected": " " + rejected,
            }
        else:
            asked = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK.format(topic, body)})
            row = {
                "prompt": list(asked),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        found.append(row)
    return found


# -- the two sides -----------------------------------------------------------------------------------------------------


def ours(recipe: Recipe) -> Any:
    """Our step, called with its number."""
    from truing.targets import resolve
    from truing.train import EVERY_LAYER, Settings
    from truing.train.batches import lay_out, tokens_of
    from truing.train.dataset import gather_rows
    from truing.train.fit import Preferences, Work, computed, known
    from truing.train.policy import Policy
    from truing.train.reference import scored

    there = {"device": "cuda", "dtype": "bf16"} if recipe.checkpoint else {}
    target = resolve(f"local/{recipe.checkpoint or 'smollm2-135m'}", **there)
    pairs = gather_rows(rows(recipe.steps * recipe.batch, short=recipe.short), "benchmark").pairs
    assert len(pairs) == recipe.steps * recipe.batch
    groups = [range(start, start + recipe.batch) for start in range(0, len(pairs), recipe.batch)]
    settings = Settings(rank=16, alpha=32, modules=EVERY_LAYER, lr=1e-4, batch=recipe.batch, seed=42,
                        gradient_checkpointing=recipe.again)  # fmt: skip
    laid = [lay_out(target, pairs, group) for group in groups]
    work = Work([[batch] for batch in laid], [], laid[0], {})
    # In bf16 the reference is computed with every batch, as it is in `fit`.
    reference = computed(target) if recipe.checkpoint else known(scored(target, pairs))
    task, policy = Preferences(target, pairs, work, settings, reference), Policy(target, settings)

    def step(number: int) -> Any:
        if not (recipe.ready or recipe.checkpoint):
            scored(target, [pairs[place] for place in groups[number]])
        done = task.step(policy, number)
        settle()
        return done

    step.policy = policy  # type: ignore[attr-defined]
    step.tokens = [  # type: ignore[attr-defined]
        sum(len(prompt) + len(reply) for place in group for prompt, reply in tokens_of(target, pairs[place]))
        for group in groups
    ]
    return step


def settle() -> None:
    """Wait for an accelerator, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def theirs(recipe: Recipe, folder: str, after: Any) -> Any:
    """TRL's trainer; `after` is called with a step's number, its CPU and its wall seconds."""
    from datasets import Dataset, disable_caching
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from truing.targets.local import bundled
    from truing.targets.local import cache as places
    from truing.train import EVERY_LAYER

    if recipe.compact:
        import trl.trainer.utils

        trl.trainer.utils._use_triton = lambda _: True  # read there for nothing else
    disable_caching()
    here = not recipe.checkpoint
    place = places.built(bundled.FOLDER, bundled.build) if here else recipe.checkpoint
    config = DPOConfig(
        output_dir=folder, per_device_train_batch_size=recipe.batch, max_steps=recipe.steps, logging_steps=1,
        learning_rate=1e-4, lr_scheduler_type="constant", bf16=not here, gradient_checkpointing=recipe.again,
        precompute_ref_log_probs=recipe.ready, beta=0.1, max_length=1024, seed=42, use_cpu=here, report_to=[],
        save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            settle()
            self.began = time.process_time(), time.perf_counter()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            settle()
            cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
            after(state.global_step - 1, cpu, wall)

    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(place, dtype="float32" if here else "bfloat16"), args=config,
        train_dataset=Dataset.from_list(rows(recipe.steps * recipe.batch, short=recipe.short)),
        processing_class=AutoTokenizer.from_pretrained(place),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=EVERY_LAYER.split(","),
                               task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )  # fmt: skip


def beside(recipe: Recipe) -> dict[str, Any]:
    """Seconds of every step of both, and both losses."""
    import torch

    torch.set_num_threads(THREADS)
    seconds: dict[str, list[tuple[float, float]]] = {"trl": [], "ours": []}
    steps: list[Any] = []
    step = ours(recipe)
    with tempfile.TemporaryDirectory() as folder:

        def after(number: int, cpu: float, wall: float) -> None:
            seconds["trl"].append((cpu, wall))
            before = time.process_time(), time.perf_counter()
            steps.append(step(number))
            seconds["ours"].append((time.process_time() - before[0], time.perf_counter() - before[1]))
            print(recipe.name, number, seconds["trl"][-1], seconds["ours"][-1], file=sys.stderr)

        trainer = theirs(recipe, folder, after)
        begin = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert begin.keys() == step.policy.named.keys()
        with torch.no_grad():
            for name, parameter in step.policy.named.items():
                parameter.copy_(begin[name])
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "seconds": seconds,
        "tokens": step.tokens,
        "losses": [(step.loss, float(log["loss"])) for step, log in zip(steps, logs, strict=True)],
    }


def alone(recipe: Recipe, side: str) -> dict[str, Any]:
    """The most memory of a few steps of one side."""
    import torch

    torch.set_num_threads(THREADS)
    if side == "ours":
        step = ours(recipe)
        for number in range(recipe.steps):
            step(number)
    else:
        with tempfile.TemporaryDirectory() as folder:
            theirs(recipe, folder, lambda *_: None).train()
    if recipe.checkpoint:
        return {"peak": torch.cuda.max_memory_allocated() / 2**30}
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


# -- figures -----------------------------------------------------------------------------------------------------------


def child(recipe: Recipe, side: str = "both") -> dict[str, Any]:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, __file__, side, json.dumps(asdict(recipe))], stdout=subprocess.PIPE,
                          text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(recipe: Recipe) -> list[Row]:
    """CPU and wall seconds of a step beside TRL's; and how far losses are apart."""
    found = child(recipe)
    made = []
    for at, kind in enumerate(("CPU", "wall")):
        mine, trl = ([step[at] for step in found["seconds"][side][1:]] for side in ("ours", "trl"))
        ratios = [b / a for a, b in zip(mine, trl, strict=True)]
        ratio = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
        row = Row(f"{recipe.name}: {kind}", median(mine), "s a step", min(mine), max(mine), peer="TRL", ratio=ratio)
        barred = kind == "CPU"
        made.append(replace(row, bar=f">= {recipe.bar:g}", holds=ratio["median"] >= recipe.bar) if barred else row)
    off = max(abs(a - b) for a, b in found["losses"])
    made.append(at_most(f"{recipe.name}: losses of {recipe.steps} steps apart by", off, 1e-4, "nats"))
    return made


def memory(again: bool, bar: float) -> Row:
    """Our peak memory as a share of TRL's."""
    recipe = Recipe("", 0, steps=3, again=again)
    mine, trl = (child(recipe, side)["peak"] for side in ("ours", "trl"))
    how = ", gradient checkpointing" if again else ""
    return at_most(f"{LONG}{how}: peak RSS {mine:.2f} GiB, over TRL's {trl:.2f}", mine / trl, bar, "times")


# -- on an accelerator -------------------------------------------------------------------------------------------------


def random_checkpoint(folder: str) -> None:
    """A Llama of 1.2 billion random weights in bf16, with the shapes of Llama 3.2 1B but for its vocabulary."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from truing.targets.local import bundled
    from truing.targets.local import cache as places

    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(places.built(bundled.FOLDER, bundled.build)).save_pretrained(folder)


def accelerated(checkpoint: str) -> list[Row]:
    """Tokens per second and peak memory beside TRL's, both with prompts counted once for either side of a pair."""
    made = []
    for batch in (4, 16):
        for again in (False, True):
            recipe = Recipe(f"{LONG}, batch {batch}{', gradient checkpointing' * again}", 0, steps=12, again=again,
                            batch=batch, checkpoint=checkpoint)  # fmt: skip
            found = child(recipe)
            mine, trl = ([wall for _, wall in found["seconds"][side][2:]] for side in ("ours", "trl"))
            ratios = [b / a for a, b in zip(mine, trl, strict=True)]
            ratio = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
            speed = sorted(tokens / wall for tokens, wall in zip(found["tokens"][2:], mine, strict=True))
            made.append(Row(recipe.name, median(speed), "tokens/s", speed[0], speed[-1], peer="TRL", ratio=ratio))
            few = replace(recipe, steps=3)
            peaks = [child(few, side)["peak"] for side in ("ours", "trl")]
            made.append(Row(f"{recipe.name}: peak memory, TRL's {peaks[1]:.2f}", peaks[0], "GiB"))
    return made


if __name__ == "__main__":
    if sys.argv[1:] == ["cuda"]:
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"no accelerator here, or torch {torch.__version__} is not built for it")
        with tempfile.TemporaryDirectory() as folder:
            random_checkpoint(folder)
            finish("train-cuda", accelerated(folder), packages=("trl",))
    elif len(sys.argv) > 2:
        asked = Recipe(**json.loads(sys.argv[2]))
        print(json.dumps(beside(asked) if sys.argv[1] == "both" else alone(asked, sys.argv[1])))
    else:
        made = [row for recipe in RECIPES for row in compared(recipe)]
        finish("train", [*made, memory(again=False, bar=0.6), memory(again=True, bar=0.8)], packages=("trl",))
