"""How much memory a graph takes, said before it is made, and how many of its targets go back at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from truing.errors import TargetError
from truing.trace.rows import CELLS, LISTED
from truing.trace.select import BATCH

FP32 = 4
WIDE = 131_072
"""Nodes of all targets of a batch together at most, so that long cases fit. Larger batches share patterns, and are
faster where there is memory for them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes of the tree, neurons in the graph, targets at once, bytes beyond the weights."""

    nodes: int
    neurons: int
    batch: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"a graph of {self.neurons:,} neurons over {self.nodes:,} tokens, {self.batch} targets at once: about"
            f" {self.bytes / 1e6:,.0f} MB beyond the weights"
        )


def plan(model: Any, nodes: int, neurons: int, *, budget: int, by_hand: bool, more: int = 0) -> Plan:
    """The most targets at once that fit. TargetError, with the numbers, where not even one does. `more`: bytes that a
    target takes besides.
    """
    config = model.config.get_text_config()
    layers, width, inner = config.num_hidden_layers, config.hidden_size, _inner(config)
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    listed = (neurons + 1) * (LISTED * 4 // 3 + nodes) * 8 * 4
    looked_at = 3 * CELLS * inner * FP32
    if by_hand:
        # Gate, up, neurons; attention outputs, queries, keys, values; the stream and norms.
        kept = nodes * layers * (3 * inner + 5 * width) * FP32
        # A mask, and patterns of the heads that share a key, with what they are made of.
        square = nodes * nodes * FP32 * (2 + 3 * heads // groups)
        each = nodes * (8 * width + 2 * inner // BATCH + 2 * layers) * FP32
    else:
        # The graph of the pass: what each operation keeps for the way back; patterns of all layers, twice.
        kept = nodes * layers * (24 * width + 12 * inner) * FP32
        square = nodes * nodes * FP32 * heads * layers * 4
        each = nodes * layers * 3 * inner * FP32
    each += more
    fixed = kept + square + listed + looked_at
    batch = min(BATCH, neurons + 1, max(1, WIDE // nodes), (budget - fixed) // each)
    if batch < 1:
        raise TargetError(
            f"a graph of {neurons:,} neurons over {nodes:,} tokens takes about {(fixed + each) / 1e6:,.0f} MB beyond"
            f" the weights, more than the {budget / 1e6:,.0f} MB allowed. Shorten the case, ask for fewer neurons, or"
            " raise max_memory (TRUING_MAX_MEMORY)."
        )
    return Plan(nodes, neurons, int(batch), int(fixed + batch * each))


def _inner(config: Any) -> int:
    return int(getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * config.hidden_size)
