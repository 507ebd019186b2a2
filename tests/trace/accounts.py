"""Whether the accounts of an architecture close: what tests and benchmarks both ask."""

from __future__ import annotations

import random
from typing import Any

import torch

from truing.targets.local import Functional
from truing.targets.local.tree import plant
from truing.trace.auto import AutoEngine
from truing.trace.engine import Engine
from truing.trace.influence import closure, prune
from truing.trace.rules import Rule
from truing.trace.select import assembled, select

from ..targets.test_architectures import ARCHITECTURES, random_model  # noqa: TID252 - tests are no package

ROUTED = {"mixtral", "qwen3_moe", "gpt_oss"}
"""Mixtures of experts: nothing there is a neuron of a layer."""
BY_NEURON = [kind for kind in ARCHITECTURES if kind not in ROUTED]
NEURONS = 20


def shaken(kind: str, settings: dict[str, Any] | None = None) -> Any:
    """A random model whose biases and norms are random too: those of a new one are 0 and 1."""
    model, generator = random_model(kind, settings or ARCHITECTURES[kind]), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "bias" in name or parameter.dim() == 1:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def decision() -> Functional:
    """Two continuations of one prompt, of two and three tokens."""
    rng = random.Random(1)
    prompt = [rng.randrange(3, 300) for _ in range(12)]
    tree, routes = plant([[*prompt, 7, 8], [*prompt, 9, 8, 11]])
    nodes = torch.cat([route[len(prompt) :] for route in routes])
    return Functional(tree, nodes, torch.tensor([0.5, 0.5, -1 / 3, -1 / 3, -1 / 3]), len(prompt))


def lost(engine: Engine) -> float:
    """The closure error of a decision that is followed back to embeddings and biases alone."""

    def no_neurons(_: Any) -> None:
        raise AssertionError("neurons are sources here")

    sources = engine.into([None], no_neurons)
    size = sources.embeddings_BT.abs().sum() + sources.biases_B.abs().sum()
    total = sources.embeddings_BT.sum() + sources.biases_B.sum()
    return abs(float(total) - engine.value(None)) / float(size)


def worst(kind: str, rule: Rule) -> float:
    """The largest closure error: of the decision, and of every node of a graph, whole and pruned."""
    model, case = shaken(kind), decision()
    found = lost(AutoEngine(model, case, rule, neurons="passed"))
    if kind in ROUTED:
        return found
    engine = AutoEngine(model, case, rule)
    graph = assembled(select(engine, NEURONS, batch=8), engine, case.tree.ids_N.tolist())
    assert graph.of("neuron").sum() == NEURONS
    return max(found, closure(graph), closure(prune(graph)))
