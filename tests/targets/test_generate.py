"""Replies: drawn with their own random numbers, cut at stops, told as they are written; memory that is planned."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast

from truing.errors import TargetError, UsageError
from truing.targets.local import generate, load, memory
from truing.targets.local.generate import Batch, write
from truing.targets.local.memory import Costs, parsed_bytes, plan_rows, plan_scores
from truing.targets.local.rows import Rows, grouped
from truing.targets.local.sample import SOME, Sampling, draw, likeliest, waits
from truing.targets.local.score import walk
from truing.targets.local.tree import plant
from truing.targets.local.write import Ask, Token, Writer

# -- drawing -----------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.0, 2.0, -1.0, 1.0, 0.5])


def shares(how: dict[str, Any], draws: int = 4000) -> torch.Tensor:
    tokens = [draw(LOGITS, Sampling(**how, seed=seed), 0) for seed in range(draws)]
    return torch.bincount(torch.tensor(tokens), minlength=5) / draws


def near(found: torch.Tensor, expected: torch.Tensor, draws: int = 4000) -> bool:
    """Within 3 Monte-Carlo standard errors in every place."""
    return bool(((found - expected).abs() <= 3 * (expected * (1 - expected) / draws).sqrt()).all())


def test_draws_follow_the_distribution_at_the_temperature() -> None:
    assert near(shares({"temperature": 1.0}), LOGITS.softmax(-1))
    assert near(shares({"temperature": 2.0}), (LOGITS / 2).softmax(-1))
    assert not near(shares({"temperature": 2.0}), LOGITS.softmax(-1))  # a wrong temperature does not pass


@pytest.mark.parametrize("spread", [0.1, 6.0])
def test_the_likeliest_are_those_of_a_full_sort(spread: float) -> None:
    p = (spread * torch.randn(8 * SOME, dtype=torch.double, generator=torch.Generator().manual_seed(0))).softmax(-1)
    best, order = p.sort(descending=True)
    count = int((best.cumsum(-1) < 0.9).sum()) + 1
    assert (count > SOME) == (spread < 1)
    assert torch.equal(likeliest(p, Sampling(1.0, top_p=0.9)), order[:count])
    # Of the ten likeliest, as many as hold half of what the ten hold.
    count = int((best[:10].cumsum(-1) < best[:10].sum() / 2).sum()) + 1
    assert torch.equal(likeliest(p, Sampling(1.0, top_p=0.5, top_k=10)), order[:count])


def test_rounding_of_the_logits_hardly_ever_changes_a_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, generator=generator)
    near = logits + 1e-5 * torch.randn(20_000, generator=generator)
    for how in ({}, {"top_p": 0.9}):
        parted = sum(
            draw(logits, Sampling(1.0, seed=s, **how), 5) != draw(near, Sampling(1.0, seed=s, **how), 5)
            for s in range(1000)
        )
        assert parted <= 1


def test_the_numbers_of_each_token_are_its_own() -> None:
    first, second = waits(7, 0, 1000), waits(7, 1, 1000)
    assert not torch.isin(first, second).any()
    assert torch.equal(second, waits(7, 1, 1000))
    assert not torch.isin(second, waits(8, 1, 1000)).any()


def test_top_k_and_top_p_draw_from_the_likeliest_alone() -> None:
    first_two = torch.tensor([0.0, 2.0, -torch.inf, 1.0, -torch.inf])
    first_two[0] = -torch.inf
    assert near(shares({"temperature": 1.0, "top_k": 2}), first_two.softmax(-1))
    p = LOGITS.softmax(-1)
    assert p[1] < 0.6 < p[1] + p[3]  # two tokens are the fewest that hold 0.6
    assert near(shares({"temperature": 1.0, "top_p": 0.6}), first_two.softmax(-1))
    assert near(shares({"temperature": 1.0, "top_p": 1e-9}), torch.eye(5)[1])


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    how = Sampling(temperature=1.0, seed=5)
    assert [draw(LOGITS, how, step) for step in range(30)] == [draw(LOGITS, how, step) for step in range(30)]
    assert len({draw(LOGITS, how, step) for step in range(30)}) > 1
    assert len({draw(LOGITS, Sampling(temperature=1.0, seed=seed), 0) for seed in range(30)}) > 1


def test_a_seeded_reply_does_not_depend_on_its_neighbours(wild: Any) -> None:
    rng = random.Random(4)
    start = rng.choices(range(4, 1536), k=12)
    asks = [
        Ask((*start, *rng.choices(range(4, 1536), k=k)), 10, sampling=Sampling(temperature=0.8, top_p=0.9, seed=seed))
        for seed, k in enumerate((3, 1, 8, 3))
    ]
    together = write(Batch(wild.model, most=4), asks)
    assert together == [write(Batch(wild.model, most=1), [ask])[0] for ask in asks]
    again = Ask(asks[0].prompt, 10, sampling=Sampling(temperature=0.8, top_p=0.9, seed=77))
    assert write(Batch(wild.model, most=1), [again])[0].ids != together[0].ids


# -- what is written ---------------------------------------------------------------------------------------------------


def test_what_a_tokenizer_drops_before_the_first_word_of_a_text_is_part_of_a_reply() -> None:
    """SentencePiece's decoders do so; a reply is no text of its own, it goes on after a prompt."""
    pieces = Tokenizer(WordLevel({"\u2581is": 0, "\u2581Paris": 1, "\u2581now": 2, "!": 3}, unk_token="!"))
    pieces.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    assert tokenizer.decode([1, 2]) == "Paris now"
    heard: list[str] = []
    writer = Writer(Ask((0,), 3, hear=lambda text, _: heard.append(text)), tokenizer)
    for token in (1, 2, 3):
        writer.take(torch.eye(4)[token], token)
    assert writer.written.text == "".join(heard) == " Paris now!"


class Letters:
    """A tokenizer of bytes: token i is byte i."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return bytes(i for i in ids if i or not skip_special_tokens).decode(errors="replace")


def dictate(text: str, **how: Any) -> tuple[Writer, list[str]]:
    """A writer that was given a text, byte by byte, until it ended; and the texts that were heard."""
    writer, heard = dictated(text, **how)
    return writer, [more for more, _ in heard]


def dictated(text: str, **how: Any) -> tuple[Writer, list[tuple[str, tuple[Token, ...]]]]:
    """The same with the tokens that were heard beside each text."""
    heard: list[tuple[str, tuple[Token, ...]]] = []
    ask = Ask((1,), how.pop("max_tokens", 1000), hear=lambda *told: heard.append(told), **how)
    writer = Writer(ask, Letters())
    for byte in text.encode():
        if writer.ended is None:
            writer.take(torch.eye(256)[byte], byte)
    return writer, heard


texts = st.text(alphabet="abé→😀 ", max_size=20)


@given(texts, st.lists(st.text(alphabet="ab→", min_size=1, max_size=3), max_size=2))
def test_what_is_heard_is_what_is_written_and_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    writer, heard = dictate(text + "\0", stop=tuple(stops), ends=frozenset({0}))
    first = min([text.find(stop) for stop in stops if stop in text], default=len(text))
    # Of two stops the one that is whole first ends the reply, so a longer one that began before it may stay.
    assert writer.written.text in {text[:end] for end in range(first, len(text) + 1)}
    assert not any(stop in writer.written.text for stop in stops)
    assert "".join(heard) == writer.written.text
    assert all(heard)
    assert writer.ended == "stop"


@given(texts, st.lists(st.text(alphabet="ab→", min_size=1, max_size=3), max_size=2), st.integers(1, 30))
def test_tokens_are_heard_once_in_order_and_not_after_their_text(text: str, stops: list[str], most: int) -> None:
    writer, heard = dictated(text + "\0", stop=tuple(stops), ends=frozenset({0}), max_tokens=most, top=1)
    if writer.error is not None:
        raise writer.error
    so_far, tokens = "", list[Token]()
    for more, those in heard:
        so_far += more
        tokens += those
        assert bytes(token.id for token in tokens).decode(errors="replace").startswith(so_far)
    assert so_far == writer.written.text
    assert tuple(tokens) == writer.written.tokens[: len(tokens)]
    assert all(not tokens for _, tokens in dictated(text, stop=tuple(stops))[1])  # none are kept


def test_a_stop_is_never_heard_in_parts() -> None:
    writer, heard = dictate("one two END three", stop=("END",))
    assert writer.written.text == "one two "
    assert not any("E" in part for part in heard)
    assert writer.ended == "stop"
    assert dictate("an ENCORE", stop=("END",), max_tokens=9)[0].written.text == "an ENCORE"


def test_a_reply_of_so_many_tokens_says_that_it_was_cut_off() -> None:
    writer, _ = dictate("abcdef", max_tokens=3)
    assert (writer.written.text, writer.ended, len(writer.ids)) == ("abc", "length", 3)
    broken, heard = dictate("a😀", max_tokens=3)  # cut off within a character
    assert broken.written.text == "".join(heard) == "a\N{REPLACEMENT CHARACTER}"


def test_log_probabilities_are_those_of_the_model_at_temperature_one(wild: Any) -> None:
    prompt = (5, 6, 7, 8)
    ask = Ask(prompt, 5, sampling=Sampling(temperature=3.0, seed=1), top=3)
    (written,) = write(Batch(wild.model, most=1), [ask])
    ids = [*prompt, *written.ids]
    log_p = torch.log_softmax(wild.model(torch.tensor([ids])).logits[0], -1)[len(prompt) - 1 : -1]
    for token, id_, row in zip(written.tokens, written.ids, log_p, strict=True):
        assert token.id == id_
        assert token.log_p == pytest.approx(float(row[id_]), abs=1e-4)
        assert [place for place, _ in token.top] == row.topk(3).indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


# -- joining and leaving -----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_rows_that_join_and_leave_at_any_time_are_written_as_if_alone(wild: Any, seed: int) -> None:
    rng = random.Random(seed)
    start = rng.choices(range(4, 1536), k=rng.choice([1, 6, 100]))
    asks = []
    for _ in range(6):
        own = rng.choices(range(4, 1536), k=rng.choice([1, 3, 90]))
        prompt = (*start[: rng.choice([0, len(start)])], *own)
        asks.append(Ask(prompt, rng.choice([1, 5, 90]), sampling=Sampling(temperature=0.7, seed=rng.randrange(99))))
    writers = [Writer(ask) for ask in asks]
    waiting, batch = list(writers), Batch(wild.model, most=rng.choice([2, 4, 9]))
    dropped = rng.choice(writers)
    while waiting or batch.waiting or batch.live:
        if waiting and rng.random() < 0.4:
            joining = rng.randint(1, len(waiting))
            batch.add(waiting[:joining])
            waiting = waiting[joining:]
        if rng.random() < 0.05:
            dropped.cancel()
        batch.advance()
    for ask, writer in zip(asks, writers, strict=True):
        alone = write(Batch(wild.model, most=1), [ask])[0].ids
        assert tuple(writer.ids) == alone[: len(writer.ids)]
        assert writer.ended in {"length", "cancelled"}
        assert writer is dropped or len(writer.ids) == ask.max_tokens


def passed(model: Any) -> tuple[list[int], Any]:
    """How many tokens reach the embedding, pass by pass, and the hook that counts them."""
    seen: list[int] = []
    return seen, model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))


def test_what_rows_that_are_there_begin_with_is_not_computed_again(wild: Any) -> None:
    rng = random.Random(7)
    start, other = (tuple(rng.choices(range(4, 1536), k=k)) for k in (200, 100))
    heads = [start, start, start[:150], other, start, other, start[:150]]
    asks = [Ask((*head, *rng.choices(range(4, 1536), k=5)), 40) for head in heads]
    writers, batch = [Writer(ask) for ask in asks], Batch(wild.model)
    seen, hook = passed(wild.model)
    for writer in writers:  # one after the other, each while the others are written
        batch.add([writer])
        while not writer.ids:
            batch.advance()
    joined = [count for count in seen if count > len(writers)]
    hook.remove()
    # Of the first nothing is there, nor of the first after `other`.
    assert joined[0] == 205
    assert sum(joined) + sum(count for count in seen if count == 5) == 205 + 105 + 5 * 5
    assert batch._rows is not None
    shared = [group.shared for group in batch._rows.groups for _ in range(group.start, group.stop)]
    assert sorted(shared) == [100, 104, 150, 150, 200, 200, 204]
    assert [writer.path[:size] for writer, size in zip(batch.live, shared, strict=True)] == [
        head[:size] for size, head in zip(shared, (writer.ask.prompt for writer in batch.live), strict=True)
    ]
    while batch.live:
        batch.advance()
    for writer in writers:
        assert writer.written == write(Batch(wild.model), [writer.ask])[0]


def test_beginnings_that_are_lent_are_kept_once(wild: Any) -> None:
    rng = random.Random(8)
    start = tuple(rng.choices(range(4, 1536), k=300))
    batch = Batch(wild.model)
    batch.add([Writer(Ask((*start, place), 300)) for place in (5, 6)])
    batch.advance()
    for place in (7, 8, 9):
        batch.add([Writer(Ask((*start, place), 300))])
        batch.advance()
    assert batch._rows is not None
    assert [(group.start, group.stop, group.shared) for group in batch._rows.groups] == [(0, 5, 300)]
    assert len({layer[0][0].data_ptr() for layer in batch._rows.prefix}) == len(batch._rows.prefix)
    assert [writer.ask.prompt[-1] for writer in batch.live] == [5, 6, 7, 8, 9]


paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=7).map(sorted)


@given(paths)
def test_groups_cover_the_rows_and_share_what_they_begin_with(paths: list[list[int]]) -> None:
    groups = grouped(paths)
    assert [row for group in groups for row in range(group.start, group.stop)] == list(range(len(paths)))
    for group in groups:
        rows = paths[group.start : group.stop]
        assert len({tuple(row[: group.shared]) for row in rows}) == 1
        assert group.shared < min(map(len, rows))


def test_groups_share_where_it_pays() -> None:
    long = list(range(500))
    assert [group.shared for group in grouped(sorted([[*long, 1], [*long, 2], [*long, 3]]))] == [500]
    apart = sorted([[1, *long], [2, *long]])
    assert sum(group.shared for group in grouped([*apart, [3, 0], [3, 1], [3, 2]])) < 1002 + 3


# -- memory ------------------------------------------------------------------------------------------------------------


def peak(work: Callable[[], object]) -> int:
    """The most bytes that tensors held at once, beyond what they held before, as torch's profiler counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_a_plan_for_scores_holds_what_is_really_allocated(wild: Any) -> None:
    rng = random.Random(0)
    tree, _ = plant([rng.choices(range(4, 1536), k=300)])
    plan = plan_scores(Costs.of(wild.model), tokens=300, shared=300, longest=300, budget=10**9)
    nodes = torch.arange(len(tree))
    most = peak(lambda: list(walk(wild.model, tree, nodes, lambda logits: logits, block=plan.block)))
    assert most < plan.bytes < 6 * most


@pytest.mark.parametrize("kind", ["shared", "apart", "mixed"])
def test_a_plan_for_replies_holds_what_is_really_allocated(wild: Any, kind: str) -> None:
    rng = random.Random(0)
    start = rng.choices(range(4, 1536), k=300)
    prompts = {
        "shared": [[*start, *rng.choices(range(4, 1536), k=5)] for _ in range(48)],
        "apart": [rng.choices(range(4, 1536), k=100) for _ in range(48)],
        "mixed": [start, *(rng.choices(range(4, 1536), k=9) for _ in range(47))],  # tails are as long as the longest
    }[kind]
    plan = plan_rows(Costs.of(wild.model), sorted(prompts), more=20, budget=10**9)
    assert plan.rows == 48
    most = peak(lambda: write(Batch(wild.model), [Ask(tuple(prompt), 20) for prompt in prompts]))
    assert most < plan.bytes < 6 * most


def test_slots_that_nobody_uses_are_let_go(wild: Any) -> None:
    batch = Batch(wild.model)
    long, short = Writer(Ask(tuple(range(10, 210)), 2)), Writer(Ask((5, 6, 7), 9))
    batch.add([long, short])
    while batch.live or batch.waiting:
        batch.advance()
        if batch.live == [short]:
            assert batch._rows is not None
            assert batch._rows.used < 12
    assert short.written == write(Batch(wild.model), [short.ask])[0]


def test_less_memory_gives_smaller_blocks_and_fewer_rows_and_the_same_numbers(wild: Any) -> None:
    costs = Costs.of(wild.model)
    whole = plan_scores(costs, tokens=400, shared=300, longest=200, budget=10**9)
    assert whole.block == 300
    half = plan_scores(costs, tokens=400, shared=300, longest=200, budget=whole.bytes // 2)
    assert 1 <= half.block < whole.block
    assert half.bytes <= whole.bytes // 2
    assert "400 tokens, 300 after sharing, in blocks of" in str(half)
    apart = [[first, *range(100)] for first in range(64)]
    many = plan_rows(costs, apart, more=50, budget=10**9)
    few = plan_rows(costs, apart, more=50, budget=many.bytes // 6)
    assert (many.rows, many.block) == (64, 1024)
    assert 1 <= few.rows < 64
    assert few.block < many.block
    assert many.bytes // 8 < few.bytes <= many.bytes // 6
    # What they begin with is kept, and planned for, once.
    alike = plan_rows(costs, [[*range(100), last] for last in range(64)], more=50, budget=10**9)
    assert alike.shared == 164
    assert many.bytes - alike.bytes > 63 * 99 * costs.kept


def test_what_cannot_fit_is_refused_with_both_figures(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_MAX_MEMORY", "1kB")
    with pytest.raises(TargetError, match=r"scoring a text of 4 tokens takes about .* MB .* Raise max_memory"):
        wild.log_probs([([5, 6], [7, 8])])
    monkeypatch.setenv("TRUING_MAX_MEMORY", "plenty")
    with pytest.raises(UsageError, match=r"TRUING_MAX_MEMORY is 'plenty'; write a number of bytes"):
        wild.log_probs([([5, 6], [7, 8])])


def test_a_target_is_allowed_what_it_was_given_and_so_is_what_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_MAX_MEMORY", "1GB")
    tight, wide = load("tiny", device="cpu", max_memory="150kB"), load("tiny", device="cpu")
    paths = [(list(range(20, 60)), [7])]
    few = [target.plan_scores(paths, shared=40).block for target in (tight, tight.under([]), wide)]
    assert few == [2, 2, 40]
    assert tight.log_probs(paths)[0][0].item() == pytest.approx(wide.log_probs(paths)[0][0].item(), abs=1e-4)
    with pytest.raises(UsageError, match="max_memory is 'plenty'; write a number of bytes"):
        load("tiny", max_memory="plenty")


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parsed_bytes("max_memory", said) for said in ("1500", "2kB", "500 MB", "1.5GB", "4G", "1TiB")] == [
        1500, 2000, 500_000_000, 1_500_000_000, 4 * 10**9, 10**12,
    ]  # fmt: skip


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_halves_the_block_goes_on_and_says_so(
    wild: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    rng = random.Random(1)
    asked = [(rng.choices(range(4, 1536), k=9), rng.choices(range(4, 1536), k=30)) for _ in range(3)]
    expected, _ = wild.log_probs(asked)
    layer = wild.model.model.layers[1]
    forward, said = type(layer).forward, []

    def narrow(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The second layer fails, so the first has taken the block into its cache.
        if self is layer and hidden.shape[1] > 20:
            raise error
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", narrow)
    monkeypatch.setattr(wild, "say", said.append)
    found, _ = wild.log_probs(asked)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert said == [
        "out of memory: going on with blocks of 57 tokens",
        "out of memory: going on with blocks of 28 tokens",
        "out of memory: going on with blocks of 14 tokens",
    ]


def test_out_of_memory_between_tokens_sends_half_of_the_replies_back_to_wait(
    wild: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(2)
    asks = [Ask(tuple(rng.choices(range(4, 1536), k=5)), 6) for _ in range(8)]
    expected = write(Batch(wild.model), asks)
    layer, said = wild.model.model.layers[1], []
    forward = type(layer).forward

    def narrow(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is layer and len(hidden) > 3:
            raise MemoryError
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", narrow)
    assert write(Batch(wild.model, say=said.append), asks) == expected
    # Two are written; then the batch is empty, and the six that wait are tried at once again.
    assert said == [f"out of memory: going on with {rows} replies at once" for rows in (4, 2, 3)]


def test_one_that_cannot_be_written_even_alone_fails_and_the_others_do_not(
    wild: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [Ask((5, 6, place), 6) for place in range(7, 13)]
    giant = Ask(tuple(range(20, 90)), 6)
    expected = write(Batch(wild.model), asks)
    layer = wild.model.model.layers[1]
    forward = type(layer).forward

    def narrow(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The block is halved down to one token, and what stands before it is still too much.
        if self is layer and kwargs["position_ids"].max() > 50:
            raise MemoryError
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", narrow)
    writers = [Writer(ask) for ask in (*asks[:3], giant, *asks[3:])]
    batch = Batch(wild.model, say=lambda _: None)
    batch.add(writers)
    while batch.waiting or batch.live:
        batch.advance()
    failed = writers.pop(3)
    assert failed.ended == "failed"
    assert [writer.written for writer in writers] == expected
    with pytest.raises(TargetError, match="no memory for a reply of up to 6 tokens after 70, even alone"):
        write(Batch(wild.model, say=lambda _: None), [giant])


def test_memory_that_runs_out_behind_the_head_halves_the_block_too(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    asked = [(rng.choices(range(4, 1536), k=20), rng.choices(range(4, 1536), k=40))]
    (expected,), _ = wild.log_probs(asked)
    real, said, calls = torch.Tensor.logsumexp, [], count()

    def narrow(self: torch.Tensor, *args: Any) -> torch.Tensor:
        if next(calls) == 1:  # some of the rows were done
            raise MemoryError
        return real(self, *args)

    monkeypatch.setattr(torch.Tensor, "logsumexp", narrow)
    monkeypatch.setattr(wild, "say", said.append)
    (found,), _ = wild.log_probs(asked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert said


def test_memory_that_runs_out_again_while_rows_go_loses_nothing(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    asks = [Ask(tuple(rng.choices(range(4, 1536), k=6)), 8, sampling=Sampling(1.0, seed=s)) for s in range(6)]
    expected = write(Batch(wild.model), asks)
    layer, forward, keep = wild.model.model.layers[1], type(wild.model.model.layers[1]).forward, Rows.keep
    failing = {"step": 4, "keep": 0}

    def narrow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer:
            failing["step"] -= 1
            if failing["step"] == 0:
                raise RuntimeError("CUDA error: out of memory")
        return forward(self, *args, **kwargs)

    def full(self: Rows, rows: torch.Tensor) -> None:
        failing["keep"] += 1
        if failing["keep"] == 1:
            self.tails[0] = tuple(kv[rows] for kv in self.tails[0])  # half-way
            raise MemoryError
        keep(self, rows)

    monkeypatch.setattr(type(layer), "forward", narrow)
    monkeypatch.setattr(Rows, "keep", full)
    assert write(Batch(wild.model, say=lambda _: None), asks) == expected
    assert failing["keep"] >= 1


def test_after_a_while_more_rows_are_tried_again(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, keep_on = Batch(wild.model, most=8, say=lambda _: None), [Ask((5, 6, place), 400) for place in range(7, 15)]
    layer, forward, tight = wild.model.model.layers[1], type(wild.model.model.layers[1]).forward, [True]

    def narrow(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is layer and tight[0] and len(hidden) > 3:
            raise MemoryError
        return forward(self, hidden, *args, **kwargs)

    monkeypatch.setattr(type(layer), "forward", narrow)
    batch.add([Writer(ask) for ask in keep_on])
    for _ in range(6):
        batch.advance()
    assert len(batch.live) == 2
    tight[0] = False
    monkeypatch.setattr(generate, "CALM", 20)
    for _ in range(100):
        batch.advance()
    assert len(batch.live) == 8  # though the batch was never empty


def test_replies_keep_to_a_tight_budget(wild: Any) -> None:
    prompt, budget = random.Random(3).choices(range(4, 1536), k=400), 1_000_000
    assert 1 < plan_rows(Costs.of(wild.model), [prompt], more=4, budget=budget).block < 40
    ask = Ask(tuple(prompt), 4)
    assert peak(lambda: write(Batch(wild.model), [ask])) > budget
    assert peak(lambda: write(Batch(wild.model, budget=budget), [ask])) < budget


def test_rows_do_not_stand_empty_while_others_wait(wild: Any) -> None:
    batch = Batch(wild.model, most=8)
    batch.add([Writer(Ask((5, 6, place), 200)) for place in range(7, 12)])
    batch.advance()
    batch.add([Writer(Ask((5, place), 3)) for place in range(7, 47)])
    steps = 0
    while batch.waiting:
        batch.advance()
        steps += 1
    assert steps <= 14 * 5  # three at a time, each bunch with its step of joining


@pytest.mark.parametrize("wrong", [{"prompt": ()}, {"max_tokens": 0}])
def test_an_ask_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match="give each one at least"):
        Ask(**{"prompt": (5,), "max_tokens": 1} | wrong)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(TargetError, match="an empty text among those that end a reply"):
        Ask((5,), 1, stop=("a", ""))


def test_a_temperature_near_zero_is_greedy() -> None:
    assert {draw(LOGITS, Sampling(1e-310, seed=seed), 0) for seed in range(20)} == {1}


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": -1.0}])
def test_what_nothing_can_be_drawn_with_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match="nothing can be drawn with"):
        Sampling(**wrong)


def test_replies_that_do_not_fit_together_wait_for_each_other(wild: Any) -> None:
    asks = [Ask((5, 6, place), 4) for place in range(7, 13)]
    costs = Costs.of(wild.model)
    two = costs.rows(2, prefixes=4, tail=1 + 4, seen=3 + 4) + costs.block(3, 3 + 3)
    batch = Batch(wild.model, budget=two)
    batch.add([Writer(ask) for ask in asks])
    most = 0
    while batch.waiting or batch.live:
        batch.advance()
        most = max(most, len(batch.live))
    assert most == 2


def test_another_error_is_not_taken_for_want_of_memory(wild: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(type(wild.model.model.layers[0]), "forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        wild.log_probs([([5], [6])])


def test_free_memory_is_a_positive_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRUING_MAX_MEMORY", raising=False)
    assert memory.budget("cpu") > 10**8


def test_a_container_has_what_its_limit_leaves_and_what_files_take_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRUING_MAX_MEMORY", raising=False)
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("100000000\n")
    (tmp_path / "memory.current").write_text("90000000\n")
    (tmp_path / "memory.stat").write_text("anon 20000000\ninactive_file 60000000\n")
    assert memory.budget("cpu") == 35_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.budget("cpu") > 35_000_000


@pytest.mark.parametrize(
    "said", ["CUDA error: out of memory", "CUDA out of memory. Tried to allocate 2 GiB", "can't allocate memory: 9"]
)
def test_want_of_memory_is_known_by_what_is_said(said: str) -> None:
    assert memory.out_of_memory(RuntimeError(said))
    assert not memory.out_of_memory(ValueError("shape"))
