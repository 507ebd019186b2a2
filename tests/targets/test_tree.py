"""A tree of sequences gives what each sequence alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.audit import lay_out
from truing.records import Case, Message, Surface
from truing.targets.local import attention
from truing.targets.local.inside import forward
from truing.targets.local.score import walk
from truing.targets.local.tree import plant

few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)
words = st.integers(0, 1535)
asked = st.lists(
    st.tuples(st.lists(words, min_size=1, max_size=12), st.lists(words, min_size=1, max_size=6)), min_size=1, max_size=4
)


@given(few_tokens)
def test_a_tree_has_one_node_for_every_prefix(paths: list[list[int]]) -> None:
    tree, routes = plant(paths)
    parents, ids = tree.parent_N.tolist(), tree.ids_N.tolist()

    def spelled(node: int) -> tuple[int, ...]:
        return () if node == -1 else (*spelled(parents[node]), ids[node])

    texts = [spelled(node) for node in range(len(tree))]
    prefixes = {tuple(path[: i + 1]) for path in paths for i in range(len(path))}
    assert len(texts) == len(prefixes)
    assert set(texts) == prefixes
    for path, route in zip(paths, routes, strict=True):
        assert [texts[node] for node in route] == [tuple(path[: i + 1]) for i in range(len(path))]
    assert all(parent < node for node, parent in enumerate(parents))
    assert tree.depth_N.tolist() == [len(text) - 1 for text in texts]
    seen = [[later[: len(earlier)] == earlier for earlier in texts] for later in texts]
    assert tree.sees().tolist() == seen


@given(few_tokens, st.data())
def test_a_block_sees_the_ancestors_of_its_first_node_and_itself(paths: list[list[int]], data: st.DataObject) -> None:
    tree, _ = plant(paths)
    start = data.draw(st.integers(0, len(tree) - 1))
    stop = data.draw(st.integers(start + 1, len(tree)))
    held = [*tree.ancestors(start), *range(start, stop)]
    whole = tree.sees()
    assert torch.equal(tree.sees(start, stop), whole[start:stop][:, held])
    # Nothing that a node sees is missing.
    assert torch.equal(tree.sees(start, stop).sum(1), whole[start:stop].sum(1))


@given(few_tokens, st.data())
def test_a_part_of_a_block_sees_what_its_nodes_see_and_little_else(paths: list[list[int]], data: st.DataObject) -> None:
    tree, _ = plant(paths)
    start = data.draw(st.integers(0, len(tree) - 1))
    sees, size = tree.sees(start), data.draw(st.integers(1, 5))
    apart = attention.Parts.of(sees, size, dtype=torch.float32)
    assert [row for part in apart.parts for row in range(part.nodes.start, part.nodes.stop)] == list(range(len(sees)))
    runs = torch.arange(sees.shape[1]).split(apart.runs)
    for part in apart.parts:
        assert set(sees[part.nodes].any(0).nonzero().flatten().tolist()) == set(part.keys.tolist())
        assert len(set(part.keys.tolist())) == len(part.keys)
        assert torch.equal(torch.cat([runs[run] for run in part.sees]), part.keys)
        assert torch.equal(part.mask == 0, sees[part.nodes][:, part.keys])
    assert 0 < apart.share <= 1
    assert (apart.share == 1) == (len(sees) <= size)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="empty path"):
        plant([[1, 2], []])


def alone(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> Any:
    """Log-probability of each continuation token, by the model's ordinary forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *continuation]])).logits[0]
    log_p = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1]
    return log_p[torch.arange(len(continuation)), torch.tensor(continuation)]


@settings(max_examples=15)
@given(asked, st.data())
def test_scores_through_a_tree_are_those_of_each_sequence_alone(wild: Any, paths: Any, data: st.DataObject) -> None:
    # Continuations of one prompt, and a prompt that ends where another goes on.
    prompt, continuation = paths[0]
    cut = data.draw(st.integers(1, len(prompt)))
    paths = [*paths, (prompt, data.draw(st.lists(words, min_size=1, max_size=6))), (prompt[:cut], [*prompt[cut:], 7])]
    counts: list[int] = []
    hook = wild.model.get_input_embeddings().register_forward_hook(lambda _, args, __: counts.append(args[0].numel()))
    try:
        found, tokens = wild.log_probs(paths)
    finally:
        hook.remove()
    assert sum(counts) == tokens  # as many as go into the model
    assert tokens == len({tuple([*p, *c][: i + 1]) for p, c in paths for i in range(len(p) + len(c) - 1)})
    for (prompt, continuation), values in zip(paths, found, strict=True):
        torch.testing.assert_close(values.double(), alone(wild.model, prompt, continuation), atol=1e-5, rtol=0)
    (single,), _ = wild.log_probs(paths[:1])
    torch.testing.assert_close(found[0], single, atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(asked, st.integers(1, 20), st.integers(1, 9))
def test_blocks_of_any_size_in_any_parts_give_the_logits_of_the_whole(
    wild: Any, paths: Any, block: int, part: int
) -> None:
    tree, _ = plant([[*prompt, *continuation] for prompt, continuation in paths])
    kept = torch.arange(len(tree))[::2]
    whole = forward(wild.model, tree, kept).logits[
        0
    ]  # too small to be taken apart with gradients: the architecture's own attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PART", part)
        parts = [logits for logits, _, _ in walk(wild.model, tree, kept, lambda logits: logits, block=block)]
    assert len(parts) == -(-len(tree) // block)
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-5, rtol=0)


def surface(name: str, actions: Sequence[str], alternatives: Sequence[str], *, prior: str = "") -> Surface:
    """A surface with several actions of different lengths."""
    first = lay_out("anchoring", most=1).surfaces[0]
    decision = first.decision.model_copy(
        update={
            "actions": tuple(actions),
            "alternatives": tuple(alternatives),
            "prior": (Message(role="user", content=prior),) if prior else (),
        }
    )
    cases = tuple(
        Case(cell=f"a={i}", messages=(Message(role="user", content=f"{name} {text}"),), segments=())
        for i, text in enumerate(("Is it red?", "They say it is blue. Is it red, or is it not?"))
    )
    return Surface(plot=name, name=name, half="develop", decision=decision, cases=cases)


def several() -> list[Surface]:
    return [
        surface("one", ["It is red."], ["It is blue, as they say.", "no"], prior="Say something."),
        surface("two", ["yes", "It is the red one after all", "red"], ["no"]),
        surface("three", ["It is blue."], ["It is blue and red."], prior="Go on, then."),
    ]


def test_a_decision_is_what_its_definition_says(wild: Any) -> None:
    surfaces = several()
    found, _ = wild.decide(surfaces)

    def mean_log_p(messages: Sequence[Message], text: str) -> float:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        asked = wild.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompt, ids = (wild.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (asked, text))
        return float(alone(wild.model, prompt, ids).mean())

    for given_surface, rows in zip(surfaces, found, strict=True):
        rule = given_surface.decision
        for case, row in zip(given_surface.cases, rows, strict=True):
            assert row.cell == case.cell
            lean = 0.0
            for texts, sign, seen in ((rule.actions, 1, row.actions), (rule.alternatives, -1, row.alternatives)):
                plain = [mean_log_p(case.messages, text) for text in texts]
                assert seen == pytest.approx(plain, abs=1e-5)
                before = [mean_log_p(rule.prior, text) for text in texts] if rule.prior else [0.0] * len(texts)
                lean += sign * sum(p - b for p, b in zip(plain, before, strict=True)) / len(texts)
            assert row.value == pytest.approx(lean, abs=2e-5)


def test_a_decision_does_not_depend_on_what_else_is_asked(wild: Any) -> None:
    surfaces = several()
    together, tokens = wild.decide(surfaces)
    separate = [wild.decide([one]) for one in surfaces]
    for rows, ((expected,), _) in zip(together, separate, strict=True):
        for row, single in zip(rows, expected, strict=True):
            assert row.cell == single.cell
            assert row.value == pytest.approx(single.value, abs=1e-5)
            assert row.actions == pytest.approx(single.actions, abs=1e-5)
    assert tokens < sum(count for _, count in separate)  # shared beginnings are computed once


def test_the_functional_has_the_value_of_the_decision(wild: Any) -> None:
    """What is traced is what is scored, but for the prior, which no context changes."""
    for one in several():
        bare = one.model_copy(update={"decision": one.decision.model_copy(update={"prior": ()})})
        ((row, _),), _ = wild.decide([bare])
        f = wild.functional(bare.decision, bare.cases[0].messages)
        nodes, before = f.nodes_M.tolist(), f.before_M.tolist()
        total = 0.0
        for node, up, weight in zip(nodes, before, f.weight_M.tolist(), strict=True):
            path = [up]
            while f.tree.parent_N[path[0]] >= 0:
                path.insert(0, int(f.tree.parent_N[path[0]]))
            prefix = f.tree.ids_N[path].tolist()
            total += weight * float(alone(wild.model, prefix, [int(f.tree.ids_N[node])])[0])
        assert total == pytest.approx(row.value, abs=1e-5)
