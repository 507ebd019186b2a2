"""The engine beside lm-eval, Inspect's `hf` provider and transformers' generate: `make bench-engine`.

All run in one process on the same threads, in turn, five times each; ratios are of CPU seconds, the peer's over ours.
Peers have the model as transformers loads it, and the batch size at which they were fastest in a trial. A finished
row is kept in build/bench-engine, so that a run that was stopped goes on.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from common import ROOT, Row, finish, machine

from truing.audit import lay_out
from truing.records import Message
from truing.targets.local import LocalTarget, bundled, load
from truing.targets.local import cache as places
from truing.targets.local.generate import write
from truing.targets.local.tree import plant
from truing.targets.local.write import Ask

WORK = ROOT / "build" / "bench-engine"
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
REPEATS = 5
NEW = 64
ITEMS = 300

Scored = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Spent:
    """What one run took."""

    cpu: float
    wall: float
    result: Any


def spent(work: Callable[[], Any]) -> Spent:
    """Run it once."""
    usage, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = work()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return Spent(cpu, wall, result)


def rate() -> float:
    """Floating-point operations a second in matrix products of the model's MLP, by the faster of two libraries."""
    x, w = torch.randn(512, 576), torch.randn(1536, 576)
    ways = (
        lambda: torch.nn.functional.linear(x, w),
        lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
    )
    best = min(spent(lambda way=way: [way() for _ in range(100)]).cpu for way in ways for _ in range(3))
    return 100 * 2 * 512 * 576 * 1536 / best


def flops(target: LocalTarget, tokens: int, pairs: int, out: int) -> float:
    """Operations that so many tokens need, attending to so many pairs, with so many rows through the head."""
    config = target.model.config
    inner = sum(m.weight.numel() for n, m in target.model.named_modules() if isinstance(m, torch.nn.Linear)
                and n != "lm_head")  # fmt: skip
    head = config.vocab_size * config.hidden_size
    each = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2.0 * inner * tokens + each * pairs + 2.0 * head * out


# -- who takes part ----------------------------------------------------------------------------------------------------


@cache
def ours() -> LocalTarget:
    """The bundled model in Truing."""
    return load("smollm2-135m", device="cpu")


@cache
def theirs() -> Any:
    """The bundled model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place(), dtype=torch.float32).eval()


def place() -> Path:
    """The folder of the bundled model."""
    return places.built(bundled.FOLDER, bundled.build)


@cache
def harness(size: int) -> Any:
    """lm-eval's Hugging Face model at a batch size."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=theirs(), tokenizer=ours().tokenizer, batch_size=size, device="cpu", add_bos_token=False)


def lm_eval(texts: Sequence[tuple[str, str]], size: int) -> list[float]:
    """Summed log-probabilities by lm-eval's `loglikelihood`."""
    from lm_eval.api.instance import Instance

    asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(texts)]
    return [value for value, _ in harness(size).loglikelihood(asked, disable_tqdm=True)]


def same_tokens(pairs: Scored, size: int) -> list[float]:
    """What lm-eval gives for exactly these tokens (`loglikelihood` moves blanks from prompts to continuations)."""
    asked = [(("", ""), prompt, continuation) for prompt, continuation in pairs]
    return [value for value, _ in harness(size)._loglikelihood_tokens(asked, disable_tqdm=True)]


# -- work --------------------------------------------------------------------------------------------------------------


def insider() -> list[tuple[tuple[Message, ...], str]]:
    """3 surfaces x 16 cells x 4 actions: the cells of the family, each with and without a goal in the system turn."""
    asked = []
    for surface in [group[0] for group in lay_out("insider").groups][:3]:
        first, second = surface.decision.actions[0], surface.decision.alternatives[0]
        head = first.split("\n")[0]
        actions = (first, second, f"{head}\nI would like to hear more about this before I say anything at all.",
                   f"{head}\nPlease let the whole board discuss this in the meeting on Thursday.")  # fmt: skip
        for case in surface.cases:
            for more in ("", " Your own goal stays what it was: keep the service running."):
                first_turn = case.messages[0]
                messages = (Message(role=first_turn.role, content=first_turn.content + more), *case.messages[1:])
                asked += [(messages, action) for action in actions]
    return asked


@cache
def facts() -> list[dict[str, Any]]:
    """All facts that ship, with three wrong answers each from the same topic."""
    rng, found = random.Random(0), []
    for file in sorted((ROOT / "src/truing/audit/content/facts").glob("*.yaml")):
        topic = yaml.safe_load(file.read_text())["facts"]
        for fact in topic:
            others = sorted({other["answer"] for other in topic} - {fact["answer"]})
            found.append({**fact, "choices": [fact["answer"], *rng.sample(others, 3)]})
    return found


def items(kind: str) -> list[tuple[str, str]]:
    """Multiple-choice items with short prompts, as (prompt, choice) texts."""
    asked = []
    for number in range(ITEMS):
        fact = facts()[number % len(facts())]
        subject = fact["subject"]
        ask = f"{subject[0].upper()}{subject[1:]}" if number < len(facts()) else f"Now tell me: {subject}"
        if kind == "sentence":
            asked += [(f"{ask}? I think", f" that it must be {choice}.") for choice in fact["choices"]]
        else:
            listed = " ".join(f"{letter}: {c}." for letter, c in zip("ABCD", fact["choices"], strict=True))
            asked += [(f"{ask}? {listed} Answer:", f" {letter}") for letter in "ABCD"]
    return asked


def prompts(kind: str) -> list[list[int]]:
    """64 prompts: one prefix of 512 tokens and a short end each, or nothing shared and 20 to 200 tokens."""
    files = sorted((ROOT / "docs").glob("*/*.md"))
    ids = ours().tokenizer("\n".join(file.read_text() for file in files))["input_ids"]
    rng = random.Random(0)
    if kind == "shared":
        return [ids[:512] + ids[at : at + rng.randrange(8, 25)] for at in rng.sample(range(600, 8000), 64)]
    return [ids[at : at + rng.randrange(20, 200)] for at in rng.sample(range(8000), 64)]


# -- rows --------------------------------------------------------------------------------------------------------------


def tuned(sizes: Sequence[int], work: Callable[[int], Any]) -> int:
    """The batch size at which a part of the work took least."""
    found = {size: spent(lambda size=size: work(size)).cpu for size in sizes}
    print("  tried", {size: round(cpu, 1) for size, cpu in found.items()}, file=sys.stderr)
    return min(found, key=found.__getitem__)


@dataclass(frozen=True)
class Match:
    """Works that were run in turn: what each run took, and how fast the machine was meanwhile."""

    runs: dict[str, list[Spent]]
    rate: float

    def rows(self, name: str, own: str, peer: str, bar: float, floor: float | None = None) -> list[Row]:
        """The time of one of ours, and its ratio to a peer's, run by run: of CPU seconds, which count, and of wall."""
        found = []
        for clock in ("cpu", "wall"):
            mine, theirs = ([getattr(run, clock) for run in self.runs[who]] for who in (own, peer))
            ratios = [other / one for other, one in zip(theirs, mine, strict=True)]
            ratio = {"min": min(ratios), "median": median(ratios), "max": max(ratios)}
            held: dict[str, Any] = (
                {"floor": floor, "bar": f"ratio >= {bar:g}", "holds": ratio["median"] >= bar} if clock == "cpu" else {}
            )
            found.append(Row(f"{name}: ours, {clock}", median(mine), "s", min(mine), max(mine), peer, ratio, **held))
        return found

    def result(self, name: str) -> Any:
        """What the first run of a work gave."""
        return self.runs[name][0].result


def in_turn(name: str, works: dict[str, Callable[[], Any]]) -> Match:
    """Run all works, one after the other, again and again."""
    runs: dict[str, list[Spent]] = {work: [] for work in works}
    speed = []
    for turn in range(REPEATS):
        speed.append(rate())
        for work, run in works.items():
            runs[work].append(spent(run))
        took = {work: (round(r[-1].cpu, 1), round(r[-1].wall, 1)) for work, r in runs.items()}
        print(f"  {name}, turn {turn}:", took, file=sys.stderr)
    return Match(runs, max(speed))


def side_by_side(
    name: str, mine: Callable[[], Any], peers: dict[str, tuple[Callable[[], Any], float]], needed: float,
    equal: Callable[[Any, Any], tuple[float, str, bool]],
) -> list[Row]:  # fmt: skip
    """Ours and each peer: rows with ratios, how far ours is from the floor, and whether results agree."""
    mine()
    match = in_turn(name, {"ours": mine} | {peer: work for peer, (work, _) in peers.items()})
    floor = needed / match.rate
    rows = []
    for peer, (_, bar) in peers.items():
        rows += match.rows(name, "ours", peer, bar, floor)
        value, unit, holds = equal(match.result("ours"), match.result(peer))
        rows.append(Row(f"{name}: equal to {peer}", value, unit, peer=peer, bar="equal", holds=holds))
    own = [run.cpu / floor for run in match.runs["ours"]]
    rows.append(Row(f"{name}: over the floor", median(own), "times", min(own), max(own), floor=floor))
    return rows


def nearest(mine: list[float], other: list[float]) -> tuple[float, str, bool]:
    """The largest difference of summed log-probabilities."""
    off = max(abs(a - b) for a, b in zip(mine, other, strict=True))
    return off, "nats at most", off <= 1e-3


def scoring(
    name: str, texts: Sequence[tuple[str, str]], encode: Callable[[], Scored], groups: int, bar: float
) -> list[Row]:
    """Our scores beside lm-eval's, tokenizing included in both."""
    pairs = encode()

    def mine() -> list[float]:
        pairs = encode()
        found, size = [], len(pairs) // groups
        for start in range(0, len(pairs), size):
            found += [float(values.double().sum()) for values in ours().log_probs(pairs[start : start + size])[0]]
        return found

    # An eighth of the items, each with all its choices.
    some = [text for item in random.Random(0).sample(range(len(texts) // 4), len(texts) // 32) for text in
            texts[4 * item : 4 * item + 4]]  # fmt: skip
    sizes = (1, 4, 8, 16, 32)
    for size in sizes:
        harness(size)
    size = tuned(sizes, lambda size: lm_eval(some, size))
    tree, routes = plant([[*prompt, *continuation][:-1] for prompt, continuation in pairs])
    rows = {int(n) for (prompt, _), route in zip(pairs, routes, strict=True) for n in route[len(prompt) - 1 :]}
    needed = flops(ours(), len(tree), int((tree.depth_N + 1).sum()), len(rows))
    peer = f"lm-eval hf, batch {size}"
    found = side_by_side(
        name,
        mine,
        {peer: (lambda: lm_eval(texts, size), bar)},
        needed,
        lambda a, _: nearest(a, same_tokens(pairs, size)),
    )
    tokens = sum(len(prompt) + len(continuation) - 1 for prompt, continuation in pairs)
    found.append(Row(f"{name}: tokens without sharing, over tokens computed", tokens / len(tree), "times"))
    return found


def insider_scores() -> list[Row]:
    """The decisions of a scenario battery."""
    asked = insider()
    texts = [(ours().prompt_text(messages), action) for messages, action in asked]

    def encode() -> Scored:
        return [(ours().encoded(prompt), ours().encoded(action)) for prompt, action in texts]

    return scoring("insider, 192 actions in 48 cells", texts, encode, 3, 4)


def item_scores(kind: str, name: str, bar: float) -> list[Row]:
    """Multiple-choice items."""
    texts = items(kind)

    def encode() -> Scored:
        pairs = []
        for prompt, choice in texts:
            start, whole = ours().encoded(prompt), ours().encoded(prompt + choice)
            assert whole[: len(start)] == start
            pairs.append((start, whole[len(start) :]))
        return pairs

    assert all((len(choice) == 1) == (kind == "letter") for _, choice in encode())
    return scoring(name, texts, encode, 1, bar)


def inspect_choices() -> list[Row]:
    """The same cells, asked for a letter through Inspect: its `hf` provider beside ours, and beside our scores."""
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model

    def listed(cell: list[tuple[tuple[Message, ...], str]]) -> list[Any]:
        offered = "\n".join(f"{letter}: {action}" for letter, (_, action) in zip("ABCD", cell, strict=True))
        system, user = cell[0][0]
        question = "Which of these do you send? Answer A, B, C or D."
        return [
            ChatMessageSystem(content=system.content),
            ChatMessageUser(content=f"{user.content}\n\n{question}\n{offered}"),
        ]

    asked = insider()
    cells = [listed(asked[start : start + 4]) for start in range(0, len(asked), 4)]

    def through(model: Any, size: int) -> list[Any]:
        config = GenerateConfig(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=5, max_connections=size)

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(model.generate(cell, config=config) for cell in cells))

        out = asyncio.run(all_of_them())
        return [{t.token: t.logprob for t in one.choices[0].logprobs.content[0].top_logprobs} for one in out]

    hf = get_model("hf/bundled", model_path=str(place()), tokenizer_path=str(place()), device="cpu", do_sample=False,
                   memoize=False)  # fmt: skip
    mine = get_model("truing/smollm2-135m", memoize=False)
    size = tuned((4, 16, 48), lambda size: through(hf, size))

    pairs = [(ours().prompt_ids(messages), ours().text_ids(action)) for messages, action in asked]
    name, letters = "48 choices among 4 actions", f"a letter by inspect's hf, batch {size}"
    match = in_turn(name, {
        "scores": lambda: [ours().log_probs(pairs[start : start + 64]) for start in (0, 64, 128)],
        "letters": lambda: through(mine, len(cells)),
        letters: lambda: through(hf, size),
    })  # fmt: skip
    both = list(zip(match.result("letters"), match.result(letters), strict=True))
    same = sum(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in both)
    off = max(abs(a[token] - b[token]) for a, b in both for token in a.keys() & b.keys())
    return [
        *match.rows(f"{name}, scored", "scores", letters, 4),
        *match.rows(f"{name}, a letter by our provider", "letters", letters, 1),
        Row(f"{name}, a letter by our provider: equal to {letters}", off,
            f"nats at most, {same} of {len(both)} letters", peer=letters, bar="equal",
            holds=off <= 1e-3 and same == len(both)),
    ]  # fmt: skip


def generate(some: list[list[int]], size: int, *, shared: int = 0, new: int = NEW) -> list[list[int]]:
    """transformers' generate in padded batches; with `shared`, the cache of so many first tokens reused by hand."""
    from transformers import DynamicCache

    model, found = theirs(), {}
    base = DynamicCache(config=model.config)
    with torch.no_grad():
        if shared:
            model(torch.tensor([some[0][:shared]]), past_key_values=base, use_cache=True, logits_to_keep=1)
        order = sorted(range(len(some)), key=lambda row: len(some[row]))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            width = max(len(some[row]) for row in rows)
            # What is not real stands between the shared tokens and the rest.
            ids = [some[r][:shared] + [0] * (width - len(some[r])) + some[r][shared:] for r in rows]
            real = [[1] * shared + [0] * (width - len(some[r])) + [1] * (len(some[r]) - shared) for r in rows]
            more: dict[str, Any] = {}
            if shared:
                more["past_key_values"] = copy.deepcopy(base)
                more["past_key_values"].batch_repeat_interleave(len(rows))
            out = model.generate(input_ids=torch.tensor(ids), attention_mask=torch.tensor(real), max_new_tokens=new,
                                 do_sample=False, pad_token_id=0, eos_token_id=-1, **more)  # fmt: skip
            found |= {row: ids[width:] for row, ids in zip(rows, out.tolist(), strict=True)}
    return [found[row] for row in range(len(some))]


def replies(kind: str, name: str, bars: tuple[float, float]) -> list[Row]:
    """Replies of 64 tokens beside transformers' own."""
    some = prompts(kind)

    def mine() -> list[list[int]]:
        return [list(written.ids) for written in write(ours().batch(), [Ask(tuple(prompt), NEW) for prompt in some])]

    # A long prefix that is computed for each prompt takes nearly all of a trial, and its size hardly matters.
    few, sizes = (some[:32], (8, 16, 32)) if kind == "shared" else (some, (8, 16, 32, 64))
    best = tuned(sizes, lambda size: generate(few, size, new=NEW // 4))
    peers: dict[str, tuple[Callable[[], Any], float]] = {
        f"transformers generate, batch {best}": (lambda: generate(some, best), bars[0])
    }
    if kind == "shared":
        hand = tuned((8, 16, 32, 64), lambda size: generate(some, size, shared=512, new=NEW // 4))
        peers[f"its prefix cache by hand, batch {hand}"] = (lambda: generate(some, hand, shared=512), bars[1])
    tree, _ = plant(some)
    lengths = [len(prompt) for prompt in some]
    pairs = int((tree.depth_N + 1).sum()) + sum(n * NEW + NEW * NEW // 2 for n in lengths)
    needed = flops(ours(), len(tree) + 64 * (NEW - 1), pairs, 64 * NEW)

    def same(a: list[list[int]], b: list[list[int]]) -> tuple[float, str, bool]:
        parted = [row for row in range(64) if a[row] != b[row]]
        ties = sum(tied(some[row], a[row], b[row]) for row in parted)
        return float(64 - len(parted)), f"of 64 replies, {ties} ties", len(parted) == ties

    return side_by_side(name, mine, peers, needed, same)


def tied(prompt: list[int], a: list[int], b: list[int]) -> bool:
    """Whether two replies part where their tokens are as likely as rounding can tell."""
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    with torch.no_grad():
        logits = theirs()(torch.tensor([[*prompt, *a[:at]]])).logits[0, -1]
    return abs(float(logits[a[at]] - logits[b[at]])) < 1e-4


# -- all ---------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], list[Row]]] = {
    "insider": insider_scores,
    "inspect": inspect_choices,
    "sentences": lambda: item_scores("sentence", f"{ITEMS} items, choices of several tokens", 1.2),
    "letters": lambda: item_scores("letter", f"{ITEMS} items, choices of one token", 1.0),
    "shared": lambda: replies("shared", "64 replies after one prefix of 512", (3, 1)),
    "apart": lambda: replies("apart", "64 replies, unshared prompts", (1.1, 1)),
}


def kept(part: str) -> list[Row]:
    """The rows of a part, measured now or by an earlier run on the same sources."""
    measured = ("local", "provider.py", "inspect.py", "tools.py") if part == "inspect" else ("local",)
    git = ["git", "rev-parse", *(f"HEAD:src/truing/targets/{name}" for name in measured), "HEAD:benchmarks/common.py"]
    said = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for command in (git, ["git", "diff", "HEAD", "--", "src", "benchmarks/common.py"])]  # fmt: skip
    said += [Path(__file__).read_text(), torch.__version__, str(THREADS), json.dumps(machine())]
    stamp = hashlib.sha256("".join(said).encode()).hexdigest()
    file = WORK / f"{part}.json"
    if file.exists() and (said := json.loads(file.read_text()))["sources"] == stamp:
        return [Row(**row) for row in said["rows"]]
    print(part, file=sys.stderr)
    rows = PARTS[part]()
    WORK.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"sources": stamp, "rows": [asdict(row) for row in rows]}))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    chosen = sys.argv[1:] or list(PARTS)
    rows = [row for part in chosen for row in kept(part)]
    if chosen == list(PARTS):
        finish("engine", rows, packages=("lm-eval", "inspect-ai"))
    for row in rows:
        print(row)
