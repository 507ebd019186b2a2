"""A batch laid out as a forest is the batch of its separate sequences."""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from truing.audit import family, lay_out
from truing.errors import TrainingError
from truing.records import Message, Pair
from truing.targets.local import LocalTarget
from truing.train import Settings, from_surfaces, gather, guards
from truing.train.batches import batches, tokens_of
from truing.train.batches import lay_out as lay
from truing.train.losses import Sides, dpo


def pair(number: int, chosen: str, rejected: str, prompt: str = "Which is it?") -> Pair:
    return Pair(
        plot=f"plot {number}",
        surface=f"surface {number}",
        messages=(Message(role="user", content=prompt),),
        chosen=chosen,
        rejected=rejected,
        role="fix",
    )


PAIRS = [
    pair(0, "It is red.", "It is blue, they say."),
    pair(1, "It is red.", "No.", "Which is it? Say it in one word."),
    pair(2, "It is", "It is red.", "Which is it?"),  # one is the other's beginning; and a prompt met before
    pair(3, "No.", "It is red.", "Which is it?"),
]


def separately(target: Any, model: Any, pairs: list[Pair]) -> Sides:
    """Each sequence alone, as the whole conversation is rendered; the reply and what closes it summed."""
    sums = []
    for one in pairs:
        prompt, turns = target.prompt_ids(one.messages), [turn.model_dump() for turn in one.messages]
        for text in (one.chosen, one.rejected):
            told = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
            whole = [*told, {"role": "assistant", "content": text}]
            ids = target.tokenizer.apply_chat_template(whole, return_dict=False)
            assert ids[: len(prompt)] == prompt
            log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
            sums.append(sum(log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids))))
    return Sides(torch.stack(sums[0::2]), torch.stack(sums[1::2]))


@pytest.fixture(params=["wild", "hybrid"])
def target(request: pytest.FixtureRequest) -> Any:
    """One that takes trees, and one that is given every path by itself."""
    return request.getfixturevalue(request.param)


def test_log_probs_are_those_of_separate_sequences(target: Any) -> None:
    batch = lay(target, PAIRS)
    found = batch.log_probs(target.model)
    plain = separately(target, target.model, PAIRS)
    for ours, theirs in zip(found, plain, strict=True):
        tokens = 9  # of the longest reply, with its end
        torch.testing.assert_close(ours, theirs, atol=1e-5 * tokens, rtol=1e-6)
    every = sum(2 * len(target.prompt_ids(one.messages)) for one in PAIRS)
    assert len(batch.tree) < every  # each prompt once


@pytest.mark.parametrize("head", ["trained", "frozen"])  # whose gradient needs the logits, or who needs none
def test_gradients_are_those_of_separate_sequences(target: Any, head: str) -> None:
    models = [deepcopy(target.model), deepcopy(target.model)]
    for model in models:
        model.requires_grad_(True)
        model.lm_head.requires_grad_(head == "trained")
    found = lay(target, PAIRS).log_probs(models[0])
    plain = separately(target, models[1], PAIRS)
    for policy in (found, plain):
        reference = Sides(policy.chosen.detach() + 0.3, policy.rejected.detach() - 0.2)
        dpo(policy, reference, beta=0.5).mean().backward()
    for (name, ours), (_, theirs) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        if not ours.requires_grad:
            continue
        scale = float(theirs.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4 * scale, rtol=1e-4)


def test_a_pair_that_says_nothing_is_refused(tiny: Any) -> None:
    with pytest.raises(
        TrainingError, match=r"surface 7: chosen and rejected are the same text 'It is\.'; drop the pair"
    ):
        lay(tiny, [*PAIRS, pair(7, "It is.", "It is.")])


def plain(text: str, chosen: str, rejected: str = "No.") -> Pair:
    return Pair(plot="p", surface="data:3", messages=(), text=text, chosen=chosen, rejected=rejected, role="fix")


def test_a_plain_text_goes_on_with_its_replies(tiny: Any) -> None:
    (prompt, chosen), (_, rejected) = tokens_of(tiny, plain("The sky is", " blue.", " green."))
    end = tiny.tokenizer.eos_token_id
    assert tiny.tokenizer.decode(prompt) == "The sky is"
    assert (tiny.tokenizer.decode(chosen[:-1]), tiny.tokenizer.decode(rejected[:-1])) == (" blue.", " green.")
    assert (chosen[-1], rejected[-1]) == (end, end)


def test_a_prompt_that_is_too_long_loses_its_beginning_or_is_refused(tiny: Any) -> None:
    one = pair(3, "It is red.", "No, it is blue, they say.", "Which is it? " * 40)
    (prompt, chosen), (_, rejected) = tokens_of(tiny, one)
    (end, same), (other, as_well) = tokens_of(tiny, one, most=60)
    assert (same, as_well) == (chosen, rejected)
    assert end == other == prompt[-len(end) :]
    assert len(end) + max(len(chosen), len(rejected)) == 60
    assert tokens_of(tiny, one, most=1000)[0] == (prompt, chosen)
    assert lay(tiny, [one], most=60).tokens == lay(tiny, [one]).tokens
    with pytest.raises(TrainingError, match=r"surface 3: \d+ tokens leave none for their prompt within max_length"):
        tokens_of(tiny, one, most=len(rejected))
    too_long = pair(4, "It is red.", "No.", "Which is it? " * 3000)
    with pytest.raises(TrainingError, match=r"surface 4: a text of \d+ tokens is longer than the context.*max_length"):
        lay(tiny, [too_long])
    lay(tiny, [too_long], most=60)


def test_a_reply_that_begins_within_a_token_is_refused(tiny: Any) -> None:
    with pytest.raises(TrainingError, match=r"data:3: the prompt and 'ed\.' have other tokens together than apart"):
        lay(tiny, [plain("It is r", "ed.")])


def test_a_reply_ends_once(tiny: Any) -> None:
    with pytest.raises(TrainingError, match="holds the mark that ends a turn"):
        lay(tiny, [plain("It is", f" red.{tiny.tokenizer.eos_token} And so on.")])


def test_every_epoch_has_every_pair_once_in_an_order_of_its_own(tiny: Any) -> None:
    pairs = [pair(n, f"It is {n}.", "No.", f"{n} is a number. Is it {n}?") for n in range(7)]
    laid = batches(range(7), Settings(batch=3, epochs=2, seed=1))
    assert [len(batch) for batch in laid] == [3, 3, 1, 3, 3, 1]
    epochs = [laid[:3], laid[3:]]
    for groups in epochs:
        assert sorted(place for group in groups for place in group) == list(range(7))
    assert epochs[0] != epochs[1]
    assert batches(range(7), Settings(batch=3, epochs=2, seed=1)) == laid
    assert batches(range(7), Settings(batch=3, epochs=2, seed=2)) != laid
    # Prompts of a batch stand in the tree, each once.
    text = tiny.tokenizer.decode(lay(tiny, pairs, laid[0]).tree.ids_N)
    assert [int(n) for n in re.findall(r"(\d) is a number", text)] == sorted(laid[0])


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

REFUSING = "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (CHATML, "<|end|>\n"),
        (CHATML.replace("<|end|>\n{% endfor", "<|end|>{% endfor"), "<|end|>"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"), "<|end|>"),  # replies are changed
        (CHATML.replace("<|end|>", ""), "<|end|>"),  # nothing ends a turn
        (REFUSING, "<|end|>"),
    ],
)  # fmt: skip
def test_a_reply_is_closed_as_the_template_closes_it(tiny: Any, template: str, closing: str) -> None:
    target = templated(tiny, template)
    assert target.tokenizer.eos_token == "<|end|>"
    (_, chosen), _ = tokens_of(target, pair(0, "It is red.", "No."))
    assert target.tokenizer.decode(chosen) == "It is red." + closing


def test_a_template_that_ends_a_turn_twice_is_refused(tiny: Any) -> None:
    target = templated(tiny, CHATML.replace("<|end|>", "<|end|><|end|>"))
    with pytest.raises(TrainingError, match=r"surface 0: the template of .* closes 'It is red\.' with 2 tokens"):
        tokens_of(target, pair(0, "It is red.", "No."))


def templated(tiny: Any, template: str) -> LocalTarget:
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.chat_template = template
    return LocalTarget("local/templated", tiny.model, tokenizer, weights="8" * 64)


def test_pairs_choose_the_alternative_where_it_is_to_be_mended_and_kept() -> None:
    battery = lay_out("anchoring", most=1)
    carry = family("anchoring").carry
    pairs = from_surfaces(battery.surfaces, fix=carry.fix, keep=carry.keep)
    assert Counter(p.role for p in pairs) == {"fix": len(battery.surfaces), "keep": len(battery.surfaces)}
    by_name = {s.name: s for s in battery.surfaces}
    for one in pairs:
        surface = by_name[one.surface]
        assert (one.rejected, one.chosen) == (surface.decision.actions[0], surface.decision.alternatives[0])
        cell = next(c.cell for c in surface.cases if c.messages == one.messages)
        assert cell == (carry.fix if one.role == "fix" else carry.keep[0])
    counted = {battery.surfaces[0].name}
    assert {p.surface for p in from_surfaces(battery.surfaces, fix=carry.fix, keep=(), counted=counted)} == counted


def test_guards_choose_what_was_said() -> None:
    battery = lay_out("anchoring", items="made_up", most=1)
    told = (("statement=told-false", True), ("statement=told-true", False))
    pairs = guards(battery.surfaces, told=told)
    assert len(pairs) == 2 * len(battery.surfaces)
    for one in pairs:
        surface = next(s for s in battery.surfaces if s.name == one.surface)
        case = next(c for c in surface.cases if c.messages == one.messages)
        said = surface.decision.actions[0] if case.cell == told[0][0] else surface.decision.alternatives[0]
        assert one.chosen == said
        assert one.rejected != said
        assert one.role == "keep"
    gathered = gather("C1", [*pairs, *pairs], parents=())
    assert gathered.pairs == tuple(pairs)
