"""Rows of an attribution graph by hand beside the usual way: a text of many equal rows, and autograd through them.

The usual way (circuit-tracer's, here under the same linear rules and in the same neurons): the text is laid B times,
one pass keeps its graph, cotangents of B targets are put in at once, one in each row, and one backward pass gives what
every MLP output adds to all of them. By hand nothing is kept but the text's own activations, once. Both give the same
totals of layers and places, and the same bounds of neurons; looking at neurons one by one is the same for both and no
part of the figures. Sides run in turn, each in a process of its own. Steady state: seconds of all targets without what
is done once for a text.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import Row, at_most
from trace_peer import child, resident, show, status

LENGTHS = (64, 256)
TARGETS = 512
BATCHES = (64, 8)
"""Targets that are taken together, on both sides; bars are those of the first."""
TURNS = 3
THREADS = 1
PEER = "expand and backward"
FASTER, SMALLER, APART = 1.1, 5.0, 1e-4
"""Bars: times as fast at least, and with so many times less memory; edges apart at most, of their size."""
SIZES = {"vocab_size": 4000, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 7,
         "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}  # fmt: skip


def model() -> Any:
    """Seven layers, 10.5 million random parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval().requires_grad_(False)
    for parameter in made.parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(0.06 * noise if parameter.dim() == 2 else parameter + 0.1 * noise)
    return made


def decision(length: int) -> Any:
    """One token against another at the end of a random text."""
    import torch

    from truing.targets.local import Functional
    from truing.targets.local.tree import plant

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()
    tree, routes = plant([[*ids, 17], [*ids, 23]])
    return Functional(tree, torch.stack([route[length] for route in routes]), torch.tensor([1.0, -1.0]), length)


class ExpandEngine:
    """The usual way, as an engine: goals in batches of `rows`."""

    def __init__(self, made: Any, functional: Any, rows: int) -> None:
        import torch

        from truing.targets.local.attention import alone
        from truing.targets.local.inside import eager, forward
        from truing.trace.hand import HandEngine
        from truing.trace.rules import linear

        self.own = HandEngine(made, functional)  # values, and cotangents of targets
        self.model, self.rows = made, rows
        self.layers, self.nodes, self.width = self.own.layers, self.own.nodes, self.own.width
        self.before: list[Any] = []
        self.outputs: list[Any] = []

        def before(_: Any, args: tuple[Any, ...]) -> None:
            self.before.append(args[0])

        def output(_: Any, __: Any, out: Any) -> Any:
            self.outputs.append(out.detach().requires_grad_())
            return self.outputs[-1]

        def unseen(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0].detach(),)  # no gradient goes through an MLP, so that no graph of it need be kept

        with alone(made), ExitStack() as stack:
            for layer in made.model.layers:
                stack.callback(layer.mlp.register_forward_pre_hook(unseen).remove)
                stack.callback(layer.post_attention_layernorm.register_forward_pre_hook(before).remove)
                stack.callback(layer.mlp.register_forward_hook(output).remove)
            stack.callback(made.model.norm.register_forward_pre_hook(before).remove)
            stack.callback(made.model.embed_tokens.register_forward_hook(output).remove)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(eager(made))
            stack.enter_context(linear(made, "relp"))
            # As long as the text; every row the same.
            forward(made, functional.tree, functional.before_M.unique(), rows=rows, output_attentions=True)

    def value(self, goal: Any) -> float:
        """What is explained."""
        return self.own.value(goal)

    def into(self, goals: Sequence[Any], sink: Any) -> Any:
        """One backward pass."""
        import torch

        from truing.trace.engine import Sources
        from truing.trace.linear import spot_cotangents

        given: list[Any] = [None] * len(self.before)
        for layer in {self.layers if goal is None else goal[0] for goal in goals}:
            given[layer] = torch.zeros_like(self.before[layer])
        with torch.no_grad():
            for layer in range(self.layers):
                some = [(b, *goal[1:]) for b, goal in enumerate(goals) if goal is not None and goal[0] == layer]
                if some:
                    row, node, index = torch.tensor(some).T
                    given[layer][row, node] = spot_cotangents(self.model, self.own.seen, layer, node, index)
            if goals[0] is None:
                given[self.layers][0] = self.own._decision
        put = [layer for layer, grad in enumerate(given) if grad is not None]
        top = max(put)
        # What is given at several layers goes back together.
        grads = torch.autograd.grad(
            [self.before[layer] for layer in put], self.outputs[: top + 1], [given[layer] for layer in put],
            retain_graph=True, allow_unused=True,
        )  # fmt: skip
        for layer in range(top - 1, -1, -1):
            above = sum(goal is None or goal[0] > layer for goal in goals)
            if above:
                sink(self.own._layer(layer, grads[1 + layer][:above]))
        embeddings = (grads[0] * self.outputs[0].detach()).sum(-1)[: len(goals)]
        return Sources(embeddings, torch.zeros(len(goals), dtype=torch.double))


def chosen(made: Any, length: int) -> list[Any]:
    """The decision and the neurons that are explained, highest layers first."""
    from truing.trace.hand import HandEngine
    from truing.trace.select import select

    found = [row.goal for row in select(HandEngine(made, decision(length)), TARGETS - 1, listed=300)]
    return sorted(found, key=lambda goal: -1000 if goal is None else -goal[0])


def once(made: Any, side: str, length: int, goals: Sequence[Any], batch: int) -> tuple[float, float, Any]:
    """CPU seconds of what is done once, of all targets, and the totals, (N, L, T), and embeddings, (N, T)."""
    import torch

    from truing.trace.hand import HandEngine

    begun = time.process_time()
    functional = decision(length)
    engine = HandEngine(made, functional) if side == "hand" else ExpandEngine(made, functional, batch)
    ready = time.process_time()
    totals = torch.zeros(len(goals), engine.layers, engine.nodes)
    embeddings = torch.zeros(len(goals), engine.nodes)
    for start in range(0, len(goals), batch):
        some = goals[start : start + batch]

        def take(layer: Any, start: int = start) -> None:
            totals[start : start + len(layer.total_BT), layer.number] = layer.total_BT

        embeddings[start : start + len(some)] = engine.into(some, take).embeddings_BT
    done = time.process_time()
    return ready - begun, done - ready, (engine, totals, embeddings)


def measured(folder: Path, side: str, length: int, batch: int) -> dict[str, Any]:
    """One run in this process, after a short one."""
    from safetensors.torch import save_file

    made = model()
    goals = [None if goal is None else tuple(goal) for goal in json.loads((folder / f"{length}.json").read_text())]
    once(made, side, 8, [None, (2, 6, 3), (1, 5, 9)], batch)
    began = resident()
    wall = time.perf_counter()
    first, rest, (engine, totals, embeddings) = once(made, side, length, goals, batch)
    found = {"first": first, "cpu": rest, "wall": time.perf_counter() - wall, "extra": status("VmHWM") - began}
    save_file({"totals": totals, "embeddings": embeddings, "neurons": _neurons(engine, goals[:batch])},
              folder / f"{side}-{length}.safetensors")  # fmt: skip
    return found


def _neurons(engine: Any, goals: Sequence[Any]) -> Any:
    """Neurons one by one, of a few cells of each target of one batch: (layers, B, F)."""
    import torch

    found = torch.zeros(engine.layers, len(goals), engine.width)

    def take(layer: Any) -> None:
        B = len(layer.total_BT)
        nodes = layer.total_BT.abs().argmax(1)
        found[layer.number, :B] = layer.parts(torch.stack([torch.arange(B), nodes], 1))

    engine.into(goals, take)
    return found


def apart(folder: Path, length: int) -> float:
    """The largest difference between the sides, of the size (norm) of a target's row."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / f"{side}-{length}.safetensors") for side in ("hand", "expand"))
    found = []
    for name in ("totals", "embeddings"):
        size = b["totals"].flatten(1).norm(dim=1) + b["embeddings"].norm(dim=1)
        found.append(float(((a[name] - b[name]).flatten(1).norm(dim=1) / size).max()))
    neurons = (a["neurons"] - b["neurons"]).norm(dim=-1) / b["neurons"].norm(dim=-1).clamp(min=1e-6)
    return max(*found, float(neurons.max()))


def rows() -> list[Row]:
    """Time, memory and whether both give the same, at every length."""
    with tempfile.TemporaryDirectory() as place:
        run = partial(child, threads=THREADS)
        found = []
        for length in LENGTHS:
            run([sys.executable, __file__, "choose", place, length])
            for batch in BATCHES:
                runs: dict[str, list[dict[str, Any]]] = {"hand": [], "expand": []}
                for _ in range(TURNS):
                    for side, some in runs.items():
                        some.append(run([sys.executable, __file__, "measure", place, side, length, batch]))
                where = f"{length} tokens, {TARGETS} neurons, {batch} together"
                found += _rows(where, runs, barred=batch == BATCHES[0])
                found.append(at_most(f"{where}: edges apart", apart(Path(place), length), APART, "of size"))
        return found


def _rows(where: str, runs: dict[str, list[dict[str, Any]]], *, barred: bool) -> list[Row]:
    figures = (("cpu", "steady state, CPU", "s", FASTER), ("first", "once for a text, CPU", "s", None),
               ("wall", "all, wall", "s", None), ("extra", "extra memory", "MiB", SMALLER))  # fmt: skip
    found = []
    for key, said, unit, bar in figures:
        mine, theirs = ([one[key] for one in runs[side]] for side in ("hand", "expand"))
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        ratio = {"min": min(ratios), "median": median(ratios), "max": max(ratios)}
        held: dict[str, Any] = {"bar": f"ratio >= {bar:g}", "holds": ratio["median"] >= bar} if bar and barred else {}
        found.append(Row(f"{where}: {said}", median(mine), unit, min(mine), max(mine), PEER, ratio, **held))
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["choose", place, number]:
            Path(place, f"{number}.json").write_text(json.dumps(chosen(model(), int(number))))
            print("{}")
        case ["measure", place, name, *numbers]:
            import torch

            torch.set_num_threads(THREADS)
            print(json.dumps(measured(Path(place), name, *map(int, numbers))))
        case _:
            show(rows())
