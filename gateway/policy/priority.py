"""Whose turn is it, and who comes first?

Between classes: each with waiting work gets its share of prefill tokens.  Within a class: earliest virtual
deadline, whose slack is fixed here and whose start the store fixes at put (start-time fair queueing).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.request import ServiceClass, Ticket

Turn = tuple[ServiceClass, ...]
"""Classes that are looked at together."""
_ALL: Turn = tuple(ServiceClass)


class PriorityRule(Protocol):
    @property
    def window(self) -> int:
        """How many tickets to look at, best score first, whatever the batch may take."""

    def place(self, slack_s: float, cost_s: float) -> tuple[float, float]:
        """The slack and the cost under which a ticket is queued: its score is its (virtual) start plus slack."""

    def turns(self, waiting: Collection[ServiceClass], served: Mapping[ServiceClass, float]) -> list[Turn]:
        """The classes with waiting work, in the order in which they are offered room."""

    def order(self, tickets: Sequence[Ticket], now_s: float) -> list[Ticket]:
        """Tickets of one turn (best score first), as the batch should take them."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """First come, first served, whatever the class; `key` reorders what is waiting (BucketServe's offline
    modes: shortest or longest job first)."""

    key: Callable[[Ticket], float] | None = None
    window: int = 0

    def place(self, slack_s: float, cost_s: float) -> tuple[float, float]:
        return 0.0, 0.0

    def turns(self, waiting: Collection[ServiceClass], served: Mapping[ServiceClass, float]) -> list[Turn]:
        return [_ALL] if waiting else []

    def order(self, tickets: Sequence[Ticket], now_s: float) -> list[Ticket]:
        return sorted(tickets, key=self.key) if self.key else list(tickets)


def shortest_first(ticket: Ticket) -> float:
    return ticket.prompt_tokens


def longest_first(ticket: Ticket) -> float:
    return -ticket.prompt_tokens


def slo_odbs_key(ticket: Ticket) -> float:
    """UELLM's composite key SLO + 0.5 * length, the length being the predicted answer's."""
    return ticket.ttft_s + 0.5 * ticket.profile.expected_tokens


@dataclass(frozen=True, slots=True)
class Fair:
    """Shares between classes, earliest virtual deadline within; bulk by `bulk_key`.

    A bulk ticket past its virtual deadline goes before those that are not, so that reordering delays nobody
    for longer than its slack.
    """

    bulk_key: Callable[[Ticket], float] | None = shortest_first
    window: int = 128

    def place(self, slack_s: float, cost_s: float) -> tuple[float, float]:
        return slack_s, cost_s

    def turns(self, waiting: Collection[ServiceClass], served: Mapping[ServiceClass, float]) -> list[Turn]:
        order = list(ServiceClass)
        return [(name,) for name in sorted(waiting, key=lambda c: (served.get(c, 0.0), order.index(c)))]

    def order(self, tickets: Sequence[Ticket], now_s: float) -> list[Ticket]:
        key = self.bulk_key
        if key is None or not tickets or tickets[0].service_class is not ServiceClass.FLEX:
            return list(tickets)
        late = [ticket for ticket in tickets if ticket.score <= now_s]
        return late + sorted((ticket for ticket in tickets if ticket.score > now_s), key=key)


def charge(
    served: Mapping[ServiceClass, float],
    waiting: Collection[ServiceClass],
    claimed: Mapping[ServiceClass, int],
    shares: Mapping[ServiceClass, float],
) -> dict[ServiceClass, float]:
    """The classes' figures after so many tokens of prefill were `claimed` for them.

    Deficit round robin kept as one growing number per class: tokens over share.  A class without waiting work
    is lifted to the claimed one's level, so that nobody saves up turns while idle.
    """
    level = max((served.get(name, 0.0) for name in claimed), default=0.0)
    new = {
        name: served.get(name, 0.0) if name in waiting else max(served.get(name, 0.0), level)
        for name in ServiceClass
    }
    for name, tokens in claimed.items():
        new[name] = served.get(name, 0.0) + tokens / shares[name]
    return new


MIN_TTFT_SHARE = 0.25
"""Part of the class's target that a request may ask for at least: it would only pass others of its class."""
MIN_TPOT_SHARE = 0.5
"""The same for the time per token, whose price all rows beside it pay."""


MIN_PREFILLS = 4.0
"""A class's target does not hold for a prompt that takes more than a part of it alone: it gets so many times what
it takes, for else it would never be let in.  A target that the client names holds."""


def ttft_s(asked_s: float | None, class_s: float, prefill_s: float) -> float:
    """The target that a request's place in the queue goes by."""
    if asked_s is None:
        return max(class_s, MIN_PREFILLS * prefill_s)
    return max(asked_s, MIN_TTFT_SHARE * class_s)


def tpot_s(asked_s: float | None, class_s: float) -> float:
    """The target that a request's rows are run by."""
    return class_s if asked_s is None else max(asked_s, MIN_TPOT_SHARE * class_s)


def slack_s(ttft_s: float, deadline_s: float | None, answer_s: float) -> float:
    """By when a request's prompt has to be run: for its target, or for its answer's deadline.

    Not by when it has to begin: an engine runs a long prompt in chunks and others in between, so that one that has
    to begin soon need not go before those that are due sooner.
    """
    if deadline_s is None:
        return ttft_s
    return max(min(ttft_s, deadline_s - answer_s), MIN_TTFT_SHARE * ttft_s)
