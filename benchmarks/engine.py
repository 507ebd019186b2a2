"""The engine beside lm-eval, Inspect's `hf` provider and transformers' generate: `make bench-engine`.

All run in one process on the same threads, in turn, five times each, or three where no bar stands on a work. Ratios are
the peer's time over ours, of CPU and of wall seconds. Peers have the model as transformers loads it, and the batch size
at which they were fastest in a trial. A part that is finished is kept in build/bench-engine, and not run again.
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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from common import ROOT, Row, at_most, finish, machine

from truing.audit import lay_out
from truing.records import Message
from truing.targets.local import LocalTarget, bundled, load
from truing.targets.local import cache as places
from truing.targets.local.engine import Engine
from truing.targets.local.generate import write
from truing.targets.local.sample import Sampling
from truing.targets.local.tree import plant
from truing.targets.local.write import Ask

WORK = ROOT / "build" / "bench-engine"
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
REPEATS = 5
FEWER = 3
"""Runs of what has no bar."""
NEW = 64
ITEMS = 300
CONTENT = ROOT / "src" / "truing"

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
    best = min(spent(lambda way=way: [way() for _ in range(50)]).cpu for way in ways for _ in range(3))
    return 50 * 2 * 512 * 576 * 1536 / best


def flops(target: LocalTarget, tokens: int, pairs: int, out: int) -> float:
    """Operations that so many tokens need, attending to so many pairs, with so many rows through the head."""
    config = target.model.config
    inner = sum(m.weight.numel() for n, m in target.model.named_modules() if isinstance(m, torch.nn.Linear)
                and n != "lm_head")  # fmt: skip
    head = config.vocab_size * config.hidden_size
    each = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2.0 * inner * tokens + each * pairs + 2.0 * head * out


def scores_need(pairs: Scored) -> float:
    """Operations that scoring needs: what requests begin with once, the head where a token is predicted."""
    tree, routes = plant([[*prompt, *continuation][:-1] for prompt, continuation in pairs])
    rows = {int(n) for (prompt, _), route in zip(pairs, routes, strict=True) for n in route[len(prompt) - 1 :]}
    return flops(ours(), len(tree), int((tree.depth_N + 1).sum()), len(rows))


def replies_need(some: Sequence[Sequence[int]]) -> float:
    """Operations that replies of NEW tokens need: what prompts begin with once."""
    tree, _ = plant(some)
    pairs = int((tree.depth_N + 1).sum()) + sum(len(prompt) * NEW + NEW * NEW // 2 for prompt in some)
    return flops(ours(), len(tree) + len(some) * (NEW - 1), pairs, len(some) * NEW)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many tokens reach our model's embedding meanwhile, pass by pass."""
    found: list[int] = []
    hook = ours().model.get_input_embeddings().register_forward_hook(lambda _, args, __: found.append(args[0].numel()))
    try:
        yield found
    finally:
        hook.remove()


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
    for file in sorted((CONTENT / "audit/content/facts").glob("*.yaml")):
        topic = yaml.safe_load(file.read_text())["facts"]
        for fact in topic:
            others = sorted({other["answer"] for other in topic} - {fact["answer"]})
            found.append({**fact, "choices": [fact["answer"], *rng.sample(others, 3)]})
    return found


def items(kind: str) -> list[tuple[str, str]]:
    """Multiple-choice items with short prompts, as (prompt, choice) texts.

    The choices of an item are letters, or sentences that part with their first or second token.
    """
    asked = []
    for number in range(ITEMS):
        fact = facts()[number % len(facts())]
        subject = fact["subject"]
        ask = f"{subject[0].upper()}{subject[1:]}" if number < len(facts()) else f"Now tell me: {subject}"
        if kind == "sentence":
            asked += [(f"{ask}? I would say", f" {choice}, I am sure.") for choice in fact["choices"]]
        else:
            listed = " ".join(f"{letter}: {c}." for letter, c in zip("ABCD", fact["choices"], strict=True))
            asked += [(f"{ask}? {listed} Answer:", f" {letter}") for letter in "ABCD"]
    return asked


def prompts(kind: str) -> list[list[int]]:
    """64 prompts: one prefix of 512 tokens and a short end each, or nothing shared and 20 to 200 tokens.

    They are cut out of texts that ship, which no result of a benchmark changes.
    """
    files = [CONTENT / "measure/content/passages.yaml", *sorted((CONTENT / "audit/content").rglob("*.yaml"))]
    ids = ours().encoded("\n".join(file.read_text(encoding="utf-8") for file in files))
    rng = random.Random(0)
    if kind == "shared":
        return [ids[:512] + ids[at : at + rng.randrange(8, 25)] for at in rng.sample(range(600, 8000), 64)]
    return [ids[at : at + rng.randrange(20, 200)] for at in rng.sample(range(8000), 64)]


# -- rows --------------------------------------------------------------------------------------------------------------


def tuned(sizes: Sequence[int], work: Callable[[int], Any], amount: Callable[[int], int] = lambda _: 1) -> int:
    """The batch size at which a trial took least, CPU and wall seconds multiplied, for the amount of work done at each.

    Both count, for Inspect's `hf` looks only once a second whether a batch is done, which takes no CPU.
    """
    found = {size: spent(lambda size=size: work(size)) for size in sizes}
    took = {size: (one.cpu / amount(size), one.wall / amount(size)) for size, one in found.items()}
    print("  tried", {size: f"{cpu:.2f} {wall:.2f}" for size, (cpu, wall) in took.items()}, file=sys.stderr)
    return min(took, key=lambda size: took[size][0] * took[size][1])


@dataclass(frozen=True)
class Match:
    """Works that were run in turn: what each run took, and how fast the machine was meanwhile."""

    runs: dict[str, list[Spent]]
    rate: float

    def rows(self, name: str, own: str, peer: str, bar: float | None = None, needed: float | None = None) -> list[Row]:
        """The time of one of ours, and its ratio to a peer's, run by run: of CPU seconds and of wall.

        `needed`: operations, from which the floor of CPU seconds follows.
        """
        found = []
        for clock in ("cpu", "wall"):
            # Turns that both took part in.
            mine, theirs = zip(*[(getattr(a, clock), getattr(b, clock)) for a, b in
                                 zip(self.runs[own], self.runs[peer], strict=False)], strict=True)  # fmt: skip
            ratios = [other / one for other, one in zip(theirs, mine, strict=True)]
            ratio = {"min": min(ratios), "median": median(ratios), "max": max(ratios)}
            held: dict[str, Any] = {"floor": needed / self.rate} if needed and clock == "cpu" else {}
            if bar is not None:
                held |= {"bar": f"ratio >= {bar:g}", "holds": ratio["median"] >= bar}
            found.append(Row(f"{name}: ours, {clock}", median(mine), "s", min(mine), max(mine), peer, ratio, **held))
        return found

    def over(self, name: str, own: str, needed: float) -> list[Row]:
        """How far one of ours is from the floor, and the rate that the floor stands on."""
        floor = needed / self.rate
        times = [run.cpu / floor for run in self.runs[own]]
        return [
            Row(f"{name}: over the floor", median(times), "times", min(times), max(times), floor=floor),
            Row(f"{name}: rate of large matrix products", self.rate / 1e9, "GFLOP/s", floor=floor),
        ]

    def result(self, name: str) -> Any:
        """What the first run of a work gave."""
        return self.runs[name][0].result


def in_turn(name: str, works: dict[str, Callable[[], Any]], besides: dict[str, Callable[[], Any]]) -> Match:
    """Run all works, one after the other, again and again; those without a bar fewer times."""
    works = works | besides
    runs: dict[str, list[Spent]] = {work: [] for work in works}
    speed = []
    for turn in range(REPEATS):
        speed.append(rate())
        for work, run in works.items():
            if turn < FEWER or work not in besides:
                runs[work].append(spent(run))
        took = {work: (round(r[-1].cpu, 1), round(r[-1].wall, 1)) for work, r in runs.items()}
        print(f"  {name}, turn {turn}:", took, file=sys.stderr)
    return Match(runs, max(speed))


def side_by_side(
    name: str, mine: Callable[[], Any], peers: dict[str, tuple[Callable[[], Any], float]], needed: float,
    equal: Callable[[Any, Any], tuple[float, str, bool]], besides: dict[str, Callable[[], Any]],
) -> tuple[list[Row], Match]:  # fmt: skip
    """Ours and each peer: rows with ratios, how far ours is from the floor, and whether results agree; and all runs."""
    mine()
    match = in_turn(name, {"ours": mine} | {peer: work for peer, (work, _) in peers.items()}, besides)
    rows = []
    for peer, (_, bar) in peers.items():
        rows += match.rows(name, "ours", peer, bar, needed)
        value, unit, holds = equal(match.result("ours"), match.result(peer))
        rows.append(Row(f"{name}: equal to {peer}", value, unit, peer=peer, bar="equal", holds=holds))
    return [*rows, *match.over(name, "ours", needed)], match


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
    sizes = (1, 4, 16, 32)
    for size in sizes:
        harness(size)
    size = tuned(sizes, lambda size: lm_eval(some, size))
    peer = f"lm-eval hf, batch {size}"
    quarter = random.Random(1).sample(range(len(pairs)), len(pairs) // 4)

    def equal(a: list[float], _: Any) -> tuple[float, str, bool]:
        off, unit, holds = nearest([a[row] for row in quarter], same_tokens([pairs[row] for row in quarter], size))
        return off, f"{unit}, in a quarter of them", holds

    found, _ = side_by_side(name, mine, {peer: (lambda: lm_eval(texts, size), bar)}, scores_need(pairs), equal, {})
    tokens = sum(len(prompt) + len(continuation) - 1 for prompt, continuation in pairs)
    with counted() as computed:
        mine()
    found.append(Row(f"{name}: tokens without sharing, over tokens computed", tokens / sum(computed), "times"))
    return found


def insider_scores() -> list[Row]:
    """The decisions of a scenario battery."""
    asked = insider()
    texts = [(ours().prompt_text(messages), action) for messages, action in asked]

    def encode() -> Scored:
        return [(ours().encoded(prompt), ours().encoded(action)) for prompt, action in texts]

    return scoring("insider, 192 actions in 48 cells", texts, encode, 3, 4)


def encoded(texts: Sequence[tuple[str, str]]) -> Scored:
    """Tokens of prompts and of choices that end their last words."""
    pairs = []
    for prompt, choice in texts:
        start, whole = ours().encoded(prompt), ours().encoded(prompt + choice)
        assert whole[: len(start)] == start
        pairs.append((start, whole[len(start) :]))
    return pairs


def item_scores(kind: str, name: str, bar: float) -> list[Row]:
    """Multiple-choice items."""
    texts = items(kind)
    assert all((len(choice) == 1) == (kind == "letter") for _, choice in encoded(texts))
    return scoring(name, texts, lambda: encoded(texts), 1, bar)


def independence() -> list[Row]:
    """Requests scored alone against the same requests in the whole batch."""
    works = {
        "insider": [(ours().prompt_ids(messages), ours().text_ids(action)) for messages, action in insider()],
        **{f"{kind} items": encoded(items(kind)) for kind in ("sentence", "letter")},
        "unshared": [(prompt[:-16], prompt[-16:]) for prompt in prompts("apart")],
    }
    rows = []
    for name, pairs in works.items():
        together, _ = ours().log_probs(pairs)
        some = random.Random(0).sample(range(len(pairs)), 16)
        alone = [ours().log_probs([pairs[row]])[0][0] for row in some]
        off = max(float((together[row] - one).abs().max()) for row, one in zip(some, alone, strict=True))
        what = f"independence, {name}: a request alone against all {len(pairs)} together, 16 tried"
        rows.append(at_most(what, off, 1e-4, "nats a token"))
    return rows


def inspect_choices() -> list[Row]:
    """The same cells, asked for a letter through Inspect: its `hf` provider beside ours, and beside our scores."""
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
    from inspect_ai.util._concurrency import init_concurrency

    def listed(cell: list[tuple[tuple[Message, ...], str]]) -> tuple[Message, Message]:
        offered = "\n".join(f"{letter}: {action}" for letter, (_, action) in zip("ABCD", cell, strict=True))
        system, user = cell[0][0]
        question = "Which of these do you send? Answer A, B, C or D."
        return system, Message(role="user", content=f"{user.content}\n\n{question}\n{offered}")

    def inspects(turns: tuple[Message, Message]) -> list[Any]:
        system, user = turns
        return [ChatMessageSystem(content=system.content), ChatMessageUser(content=user.content)]

    asked = insider()
    told = [listed(asked[start : start + 4]) for start in range(0, len(asked), 4)]
    cells = [inspects(turns) for turns in told]

    def through(model: Any, size: int, some: Sequence[list[Any]] = cells) -> list[Any]:
        config = GenerateConfig(max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=5, max_connections=size)

        init_concurrency()  # as each evaluation does, else the first number of connections would stay

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(model.generate(cell, config=config) for cell in some))

        out = asyncio.run(all_of_them())
        return [{t.token: t.logprob for t in one.choices[0].logprobs.content[0].top_logprobs} for one in out]

    hf = get_model("hf/bundled", model_path=str(place()), tokenizer_path=str(place()), device="cpu", do_sample=False,
                   memoize=False)  # fmt: skip
    mine = get_model("truing/smollm2-135m", memoize=False)
    mixed = random.Random(1).sample(cells, len(cells))
    size = tuned((4, 8, 16, 48), lambda size: through(hf, size, mixed[: max(size, 16)]), lambda size: max(size, 16))

    # As the peer does each time: out of the messages by the chat template, with nothing remembered.
    def encode() -> Scored:
        pairs = []
        for start in range(0, len(asked), 4):
            prompt = ours().encoded(ours().prompt_text(asked[start][0]))
            pairs += [(prompt, ours().text_ids(action)) for _, action in asked[start : start + 4]]
        return pairs

    def scores() -> list[Any]:
        pairs = encode()
        return [ours().log_probs(pairs[start : start + 64]) for start in (0, 64, 128)]

    def letter() -> list[Any]:
        mine.api._target._known_ids.cache_clear()
        return through(mine, len(cells))

    name, letters = "48 choices among 4 actions", f"a letter by inspect's hf, batch {size}"
    match = in_turn(name, {"scores": scores, "letters": letter, letters: lambda: through(hf, size)}, {})
    both = list(zip(match.result("letters"), match.result(letters), strict=True))
    same = sum(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in both)
    off = max(abs(a[token] - b[token]) for a, b in both for token in a.keys() & b.keys())
    scored, written = f"{name}, scored", f"{name}, a letter by our provider"
    needed = {
        "scores": scores_need(encode()),
        "letters": scores_need([(ours().prompt_ids(turns), [0]) for turns in told]),
    }
    return [
        *match.rows(scored, "scores", letters, 4, needed["scores"]),
        *match.over(scored, "scores", needed["scores"]),
        *match.rows(written, "letters", letters, 1, needed["letters"]),
        *match.over(written, "letters", needed["letters"]),
        Row(f"{written}: equal to {letters}", off,
            f"nats at most, {same} of {len(both)} letters", peer=letters, bar="equal",
            holds=off <= 1e-3 and same == len(both)),
    ]  # fmt: skip


def generate(some: list[list[int]], size: int, *, new: int = NEW, shared: int = 0, **how: Any) -> list[list[int]]:
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
                                 pad_token_id=0, eos_token_id=-1, **{"do_sample": False} | how | more)  # fmt: skip
            found |= {row: ids[width:] for row, ids in zip(rows, out.tolist(), strict=True)}
    return [found[row] for row in range(len(some))]


def ours_write(some: list[list[int]], **how: Any) -> list[list[int]]:
    """Our replies, asked for at once; drawn, each with its own seed, with a temperature."""
    asks = [Ask(tuple(prompt), NEW, sampling=Sampling(seed=row, **how)) for row, prompt in enumerate(some)]
    return [list(written.ids) for written in write(ours().batch(), asks)]


def replies(kind: str, name: str, bars: tuple[float, float]) -> list[Row]:
    """Replies of 64 tokens beside transformers' own."""
    some, sizes, half = prompts(kind), (16, 32, 64), NEW // 2
    if kind == "shared":
        # Each size on one batch of it: all prompts are as long but for a few tokens, and a whole run takes minutes. For
        # the same reason replies are half as long in trials after a long prefix.
        mixed = random.Random(1).sample(some, len(some))
        best = tuned((16, 64), lambda size: generate(mixed[:size], size, new=half), amount=int)
    else:
        best = tuned(sizes, lambda size: generate(some, size))
    peers: dict[str, tuple[Callable[[], Any], float]] = {
        f"transformers generate, batch {best}": (lambda: generate(some, best), bars[0])
    }
    if kind == "shared":
        hand = tuned(sizes, lambda size: generate(some, size, new=half, shared=512))
        peers[f"its prefix cache by hand, batch {hand}"] = (lambda: generate(some, hand, shared=512), bars[1])

    def same(a: list[list[int]], b: list[list[int]]) -> tuple[float, str, bool]:
        parted = [row for row in range(64) if a[row] != b[row]]
        ties = sum(tied(some[row], a[row], b[row]) for row in parted)
        return float(64 - len(parted)), f"of 64 replies, {ties} ties", len(parted) == ties

    besides = {} if kind == "shared" else {"sampled": lambda: ours_write(some, temperature=1.0)}
    found, match = side_by_side(name, lambda: ours_write(some), peers, replies_need(some), same, besides)
    if besides:
        found += [replace(row, peer="our greedy replies") for row in match.rows(f"{name}, sampled", "sampled", "ours")]
    return found


def trickled(some: list[list[int]]) -> list[list[int]]:
    """Our replies through an engine, each asked for once four pieces of the one before were heard."""
    with Engine(ours()) as engine:
        futures = []
        for prompt in some:
            heard = threading.Semaphore(0)
            future = engine.submit(Ask(tuple(prompt), NEW, hear=lambda *_, heard=heard: heard.release()))
            future.add_done_callback(lambda _, heard=heard: heard.release(4))
            futures.append(future)
            for _ in range(4):
                heard.acquire()
        return [list(future.result().ids) for future in futures]


def trickle() -> list[Row]:
    """Replies that share a prefix, asked for one after the other: what is computed again."""
    some, name = prompts("shared"), "64 replies after one prefix of 512, asked for one after the other"
    with counted() as at_once:
        together = spent(lambda: ours_write(some))
    with counted() as one_by_one:
        apart = spent(lambda: trickled(some))
    parted = [row for row in range(64) if together.result[row] != apart.result[row]]
    ties = sum(tied(some[row], together.result[row], apart.result[row]) for row in parted)
    computed, fewest = sum(one_by_one), sum(at_once)
    floor = replies_need(some) / rate()
    return [
        Row(f"{name}: tokens computed", computed, "tokens"),
        Row(f"{name}: tokens computed when asked for at once", fewest, "tokens"),
        Row(f"{name}: tokens computed, over those when asked for at once", computed / fewest, "times"),
        Row(f"{name}: cpu", apart.cpu, "s", floor=floor),
        Row(f"{name}: cpu when asked for at once", together.cpu, "s", floor=floor),
        Row(f"{name}: equal to those asked for at once", float(64 - len(parted)), f"of 64 replies, {ties} ties",
            bar="equal", holds=len(parted) == ties),
    ]  # fmt: skip


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
    "sentences": lambda: item_scores("sentence", f"{ITEMS} items, choices of several tokens, the answer first", 1.2),
    "letters": lambda: item_scores("letter", f"{ITEMS} items, choices of one token", 1.0),
    "shared": lambda: replies("shared", "64 replies after one prefix of 512", (3, 1)),
    "apart": lambda: replies("apart", "64 replies, unshared prompts", (1.1, 1)),
    "trickle": trickle,
    "independence": independence,
}


@cache
def asked_for() -> str:
    """All prompts and items, and the versions of those who are measured."""
    data: dict[str, Any] = {kind: items(kind) for kind in ("sentence", "letter")}
    data |= {kind: prompts(kind) for kind in ("shared", "apart")}
    data["insider"] = [([turn.model_dump(mode="json") for turn in turns], action) for turns, action in insider()]
    data["versions"] = {name: metadata.version(name) for name in ("lm-eval", "inspect-ai", "transformers", "torch")}
    return json.dumps(data)


def kept(part: str) -> list[Row]:
    """The rows of a part, measured now or by an earlier run on the same sources."""
    measured = ("local", "provider.py", "inspect.py", "tools.py") if part == "inspect" else ("local",)
    git = ["git", "rev-parse", *(f"HEAD:src/truing/targets/{name}" for name in measured), "HEAD:benchmarks/common.py"]
    said = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for command in (git, ["git", "diff", "HEAD", "--", "src", "benchmarks/common.py"])]  # fmt: skip
    said += [Path(__file__).read_text(), asked_for(), str(THREADS), json.dumps(machine())]
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
