"""How fast a provider is asked, and how much in all."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from truing.errors import BudgetSpent, TargetError, UsageError
from truing.records import Message, Tool
from truing.targets.prices import Price
from truing.targets.protocols import Reply
from truing.targets.roster import Limit

BURST = 0.1
"""Of a minute's amount: what may be taken at once."""


TELL = 10.0
"""Seconds between two words about what was spent."""


class Bucket:
    """A token bucket: in no minute is more taken than `rate`, and no more than a tenth of that at once.

    It fills at 90% of the rate, so that what is taken at once and what flows in are the rate together. Threads share
    it; each waits for its own turn.
    """

    def __init__(
        self, rate: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._most = max(1.0, BURST * rate)
        self._fill = max(rate - self._most, BURST * rate) / 60
        self._clock, self._sleep = clock, sleep
        self._level, self._at = self._most, clock()
        self._guard = Lock()

    def take(self, amount: float = 1.0) -> None:
        """Wait until so much may be taken, and take it. 0 waits until what was overdrawn has flowed in again."""
        if (wait := self._taken(amount)) > 0:
            self._sleep(wait)

    def overdraw(self, amount: float) -> None:
        """Take what is known only now, such as the tokens of a reply; who comes next waits for it."""
        self._taken(amount)

    def _taken(self, amount: float) -> float:
        """Seconds until the level, with so much taken, would be above zero again."""
        with self._guard:
            now = self._clock()
            self._level = min(self._most, self._level + (now - self._at) * self._fill) - amount
            self._at = now
            return max(0.0, -self._level / self._fill)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent at most; None: as much as it takes."""

    calls: int | None = None
    tokens: int | None = None
    dollars: float | None = None


_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kM]?)\s*(calls|tokens|USD)")


def budget(said: str) -> Budget:
    """`500 calls`, `2M tokens` or `5 USD`; several with commas between. UsageError for anything else."""
    found: dict[str, Any] = {}
    for part in said.split(","):
        if not (match := _AMOUNT.fullmatch(part.strip())):
            raise UsageError(f"{part.strip()!r} is no budget; give one such as '500 calls', '2M tokens' or '5 USD'")
        amount = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6}[match[2]]
        what = "dollars" if match[3] == "USD" else match[3]
        found[what] = amount if what == "dollars" else int(amount)
    return Budget(**found)


@dataclass(slots=True)
class Spent:
    """What was spent."""

    calls: int = 0
    read: int = 0
    wrote: int = 0
    dollars: float = 0.0
    unpriced: bool = False
    """Something has no known price, and is not in the dollars."""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        money = f"{self.dollars:.2f} USD" + (" and what has no known price" if self.unpriced else "")
        return f"{self.calls:,} calls, {self.read:,} tokens read, {self.wrote:,} written, {money}"


@dataclass(slots=True)
class Till:
    """Counts what is spent, and refuses what is beyond the budget. Threads share it."""

    budget: Budget = field(default_factory=Budget)
    total: Spent = field(default_factory=Spent)
    tell: Callable[[str], None] | None = None
    """Hears every ten seconds what was spent so far."""
    _stopped: bool = False
    _uncounted: str = ""
    """A target of which nobody counts the tokens that it reads."""
    _told: float = field(default_factory=time.monotonic)
    _guard: Any = field(default_factory=Lock)

    def stop(self) -> None:
        """Let no further call be made: whoever is about to, in any thread, gets BudgetSpent."""
        self._stopped = True

    def ask(self, calls: int) -> None:
        """Count calls that are about to be made. BudgetSpent where the budget does not reach for them."""
        with self._guard:
            if self._stopped:
                raise BudgetSpent(f"stopped: {self.total}. What was asked is kept; the same command goes on")
            if self._uncounted and (self.budget.tokens is not None or self.budget.dollars is not None):
                raise BudgetSpent(
                    f"{self._uncounted} does not say how many tokens a reply took, so a budget in tokens or USD cannot"
                    f" be kept: {self.total}. What was asked is kept; go on with a budget in calls, such as '500 calls'"
                )
            of, spent = self.budget, self.total
            over = (
                (of.calls is not None and spent.calls + calls > of.calls)
                or (of.tokens is not None and spent.read + spent.wrote >= of.tokens)
                or (of.dollars is not None and spent.dollars >= of.dollars)
            )
            if over:
                raise BudgetSpent(
                    f"the budget is spent: {spent}. What was asked is kept; the same command with more --budget goes on"
                )
            spent.calls += calls

    def pay(self, reply: Reply, price: Price | None, name: str = "the target") -> None:
        """Count the tokens of a reply of a target."""
        with self._guard:
            if reply.read is None:
                self._uncounted = name
            self.total.read += reply.read or 0
            self.total.wrote += reply.tokens
            if price is None or (reply.read is None and price.input > 0):
                self.total.unpriced = True
            if price is not None:
                self.total.dollars += price.of(reply.read or 0, reply.tokens)
            if self.tell and time.monotonic() - self._told > TELL:
                self._told = time.monotonic()
                self.tell(f"so far {self.total}")


class Limits:
    """The buckets of one provider."""

    def __init__(self, limit: Limit) -> None:
        self._calls = Bucket(limit.calls_per_minute) if limit.calls_per_minute else None
        self._tokens = Bucket(limit.tokens_per_minute) if limit.tokens_per_minute else None

    def wait(self, calls: int) -> None:
        """Until so many calls may be made."""
        if self._calls:
            self._calls.take(calls)
        if self._tokens:
            self._tokens.take(0)

    def used(self, tokens: int) -> None:
        """So many tokens went to and fro."""
        if self._tokens:
            self._tokens.overdraw(tokens)


class Metered:
    """A target whose calls are counted, paid for and spaced; in all else it is that target.

    A call is one ask of ours. What a provider's client tries again by itself is not counted, and waits as it says.
    """

    def __init__(self, target: Any, till: Till, *, price: Price | None = None, limits: Limits | None = None) -> None:
        self._target, self._till, self._price, self._limits = target, till, price, limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def reply(
        self, conversations: Sequence[tuple[Message, ...]], *, max_tokens: int, tools: Sequence[Tool] = ()
    ) -> list[Reply]:
        """The target's replies. BudgetSpent before the first one that the budget does not reach for."""
        if self._limits:
            self._limits.wait(len(conversations))
        self._till.ask(len(conversations))  # after the wait: the budget may have been spent meanwhile
        replies: list[Reply] = self._target.reply(conversations, max_tokens=max_tokens, tools=tools)
        for reply in replies:
            self._till.pay(reply, self._price, self._target.card.name)
        if self._limits:
            self._limits.used(sum((reply.read or 0) + reply.tokens for reply in replies))
        return replies


def payable(name: str, price: Price | None, of: Budget) -> None:
    """TargetError where a budget of money is to be kept and a target has no known price."""
    if of.dollars is not None and price is None:
        raise TargetError(
            f"{name} has no known price, so a budget in USD cannot be kept. Give it one in the file of targets:"
            f' [price."{name}"] with input and output, US dollars for a million tokens; or a budget in calls or tokens'
        )
