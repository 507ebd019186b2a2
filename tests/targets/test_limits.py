"""Buckets, budgets, prices and files of targets."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from truing.errors import BudgetSpent, ContentError, TargetError, UsageError
from truing.records import Message, Target, digest_of
from truing.targets import Reply
from truing.targets.limits import Bucket, Budget, Limits, Metered, Till, budget, payable
from truing.targets.prices import Price, price, table
from truing.targets.roster import Limit, roster

pytestmark = pytest.mark.base


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("rate", [30, 60, 500, 6000])
def test_in_no_minute_is_more_taken_than_the_rate_and_little_less(rate: int) -> None:
    clock = Clock()
    bucket = Bucket(rate, clock=clock, sleep=clock.sleep)
    times = []
    for _ in range(4 * rate):
        bucket.take()
        times.append(clock())
    ends = np.searchsorted(times, np.array(times) + 60 - 1e-6)
    most = (ends - np.arange(len(times))).max()
    assert most <= rate + 1
    assert (times[-1] - times[0]) / 60 == pytest.approx(4 / 0.9, rel=0.1)


def test_who_comes_after_an_overdraft_waits_until_it_has_flowed_in() -> None:
    clock = Clock()
    bucket = Bucket(6000, clock=clock, sleep=clock.sleep)
    bucket.take(0)
    assert clock() == 100.0
    bucket.overdraw(600 + 5400)
    bucket.take(0)
    assert clock() == pytest.approx(160.0)


def test_threads_that_share_a_bucket_are_no_faster_than_one() -> None:
    bucket, done = Bucket(6000), []  # 90 a second, after 600

    def work() -> None:
        for _ in range(80):
            bucket.take()
            done.append(time.monotonic())

    bucket.overdraw(600)
    began = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(done) == 320
    assert max(done) - began >= 320 / 90 - 0.2


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("500 calls", Budget(calls=500)),
        ("2M tokens", Budget(tokens=2_000_000)),
        ("1.5k calls, 5 USD", Budget(calls=1500, dollars=5.0)),
        ("0.25USD", Budget(dollars=0.25)),
    ],
)
def test_budgets_as_they_are_said(said: str, meant: Budget) -> None:
    assert budget(said) == meant


@pytest.mark.parametrize("said", ["", "500", "5 EUR", "many calls", "-3 calls", "5 USD; 3 calls"])
def test_what_is_no_budget(said: str) -> None:
    with pytest.raises(UsageError, match="is no budget"):
        budget(said)


class Saying:
    """Says one thing, for so many tokens."""

    def __init__(self, read: int | None = 1000, wrote: int = 200) -> None:
        self.card = Target(name="inspect/x/y", weights=digest_of(1), template="", dtype="none", abilities=("Chat",))
        self.read, self.wrote, self.asked = read, wrote, 0
        self.concurrency = 3

    def reply(self, conversations, *, max_tokens, tools=()):  # type: ignore[no-untyped-def]
        self.asked += len(conversations)
        return [Reply("yes", self.wrote, finished=True, read=self.read)] * len(conversations)


ONE = ((Message(role="user", content="?"),),)


def test_what_is_spent_is_counted_and_the_budget_is_kept() -> None:
    till, saying = Till(Budget(calls=3)), Saying()
    target = Metered(saying, till, price=Price(input=2.0, output=10.0))
    assert (target.card, target.concurrency) == (saying.card, 3)
    for _ in range(3):
        target.reply(ONE, max_tokens=8)
    assert str(till.total) == "3 calls, 3,000 tokens read, 600 written, 0.01 USD"
    assert till.total.dollars == pytest.approx(3 * (1000 * 2 + 200 * 10) / 1e6)
    with pytest.raises(BudgetSpent, match=r"the budget is spent: 3 calls.* with more --budget goes on"):
        target.reply(ONE, max_tokens=8)
    assert saying.asked == 3


@pytest.mark.parametrize(("of", "replies"), [(Budget(tokens=2500), 3), (Budget(dollars=0.012), 3)])
def test_tokens_and_money_end_with_the_reply_that_spends_them(of: Budget, replies: int) -> None:
    target = Metered(Saying(), Till(of), price=Price(input=2.0, output=10.0))
    for _ in range(replies):
        target.reply(ONE, max_tokens=8)
    with pytest.raises(BudgetSpent):
        target.reply(ONE, max_tokens=8)


def test_what_has_no_price_is_said_and_no_budget_in_money_is_kept_with_it() -> None:
    till = Till()
    Metered(Saying(), till).reply(ONE, max_tokens=8)
    assert "what has no known price" in str(till.total)
    payable("inspect/x/y", None, Budget(calls=3))
    with pytest.raises(TargetError, match=r'inspect/x/y has no known price.*\[price."inspect/x/y"\]'):
        payable("inspect/x/y", None, Budget(dollars=1.0))


def test_a_prompt_that_nobody_counted_is_not_passed_for_free() -> None:
    till = Till()
    Metered(Saying(read=None), till, price=Price(input=2.0, output=10.0)).reply(ONE, max_tokens=8)
    assert till.total.unpriced
    free = Till()
    Metered(Saying(read=None), free, price=Price(input=0, output=0)).reply(ONE, max_tokens=8)
    assert not free.total.unpriced


def test_the_tokens_of_a_provider_are_limited_over_all_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    limits = Limits(Limit(tokens_per_minute=6000))
    monkeypatch.setattr(limits._tokens, "_sleep", waited.append)
    targets = [Metered(Saying(), Till(), limits=limits) for _ in range(2)]
    for target in targets:
        target.reply(ONE, max_tokens=8)  # 1,200 tokens, of which 600 may be taken at once
    assert waited == [pytest.approx((1200 - 600) / 90, abs=0.5)]


def test_prices_are_as_given_or_free_or_of_the_table_or_unknown() -> None:
    assert price("local/smollm2-135m") == price("scripted/honest") == Price(input=0, output=0)
    assert (
        price("inspect/openai/gpt-4o-2024-08-06") == price("inspect/openai/gpt-4o") == table().models["openai/gpt-4o"]
    )
    assert price("inspect/openai/gpt-4o-audio-preview") is None
    given = {"inspect/openai/gpt-4o": Price(input=1, output=2)}
    assert price("inspect/openai/gpt-4o", given) == given["inspect/openai/gpt-4o"]
    assert all(one.output >= one.input for one in table().models.values())


TARGETS = """
[[target]]
name = "inspect/openai/gpt-4o"
capability = 0.7
options = {max_connections = 4}
[[target]]
name = "local/tiny"
[provider."inspect/openai"]
calls_per_minute = 60
[price."inspect/openai/gpt-4o"]
input = 1.0
output = 4.0
"""


def test_a_file_of_targets(tmp_path: Path) -> None:
    (tmp_path / "targets.toml").write_text(TARGETS)
    found = roster(tmp_path / "targets.toml")
    assert [(one.provider, one.capability, one.options) for one in found.target] == [
        ("inspect/openai", 0.7, {"max_connections": 4}),
        ("local", None, {}),
    ]
    assert found.provider["inspect/openai"].calls_per_minute == 60
    assert found.price["inspect/openai/gpt-4o"].of(1_000_000, 500_000) == 3.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[target]", "is not TOML"),
        ("", "target: Field required"),
        ("target = []", "at least 1 item"),
        ('[[target]]\nname = "local/a"\nspeed = 3', r"target.0.speed: Extra inputs .* \(saw 3\)"),
        ('[[target]]\nname = "local/a"\n[[target]]\nname = "local/a"', "lists local/a twice"),
        ('[[target]]\nname = "local/a"\n[provider.inspect]\n', "limit for inspect, of which it lists no target"),
        ('[[target]]\nname = "local/a"\n[provider.local]\ncalls_per_minute = 0', "greater than 0"),
        ('[[target]]\nname = "local/a"\n[price."local/b"]\ninput = 1\noutput = 1', "a price for local/b"),
        ('[[target]]\nname = "local/a"\n[price."local/a"]\ninput = -1\noutput = 1', "greater than or equal to 0"),
    ],
)
def test_files_that_list_no_targets(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "targets.toml").write_text(text)
    with pytest.raises(ContentError, match=said):
        roster(tmp_path / "targets.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file at"):
        roster(tmp_path / "targets.toml")


def test_what_stands_under_a_wrong_key_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "targets.toml").write_text('[[target]]\nname = "local/a"\napi_key = "hunter2hunter2"\n')
    with pytest.raises(ContentError) as caught:
        roster(tmp_path / "targets.toml")
    assert "api_key" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_budget_that_was_spent_while_one_waited_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    till, saying = Till(Budget(calls=1)), Saying()
    limits = Limits(Limit(calls_per_minute=60))
    monkeypatch.setattr(limits, "wait", lambda calls: till.ask(1))  # another thread takes the last call meanwhile
    with pytest.raises(BudgetSpent):
        Metered(saying, till, limits=limits).reply(ONE, max_tokens=8)
    assert saying.asked == 0


@pytest.mark.parametrize("of", [Budget(tokens=1000), Budget(dollars=1.0)])
def test_a_budget_is_not_kept_by_guesses_where_nobody_counts(of: Budget) -> None:
    saying = Saying(read=None, wrote=0)
    target = Metered(saying, Till(of), price=Price(input=2.0, output=10.0))
    target.reply(ONE, max_tokens=8)  # what it says is kept
    with pytest.raises(BudgetSpent, match=r"inspect/x/y does not say how many tokens .* a budget in calls"):
        target.reply(ONE, max_tokens=8)
    assert saying.asked == 1
    calls = Metered(saying, Till(Budget(calls=3)))
    for _ in range(3):
        calls.reply(ONE, max_tokens=8)


def test_a_judge_that_is_not_listed_may_have_a_price_and_limits(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(
        '[[target]]\nname = "local/a"\n[provider."inspect/x"]\ncalls_per_minute = 5\n'
        '[price."inspect/x/judge"]\ninput = 1\noutput = 2\n'
    )
    found = roster(file, judge="inspect/x/judge")
    assert found.price["inspect/x/judge"].output == 2
    with pytest.raises(ContentError, match="limit for inspect/x, of which it lists no target"):
        roster(file)
