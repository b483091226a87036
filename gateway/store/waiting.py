"""The queued tickets of the memory store: its sorted sets, and sums that always equal what is in them."""

import bisect
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.errors import QueueFull
from gateway.ports import Entry, Limits
from gateway.request import Head, ServiceClass, Slot, Ticket, slot_of
from gateway.store.wire import microseconds

Set = tuple[int, ServiceClass]
Rank = tuple[float, int, str]
"""Score, arrival, id: equal scores are first in, first out."""


@dataclass(slots=True)
class Held:
    """A ticket the store knows: queued exactly if it has no replica."""

    entry: Entry
    arrival: int
    replica: str | None = None

    @property
    def ticket(self) -> Ticket:
        return self.entry.ticket

    @property
    def set(self) -> Set:
        return self.ticket.bin, self.ticket.service_class

    @property
    def rank(self) -> Rank:
        return self.ticket.score, self.arrival, self.ticket.id


class Waiting:
    def __init__(self) -> None:
        self._sets: dict[Set, list[Rank]] = {}
        self._slots: dict[tuple[ServiceClass, int], tuple[int, int, int]] = {}
        """Tickets, tokens and microseconds, since sums of integers come back to zero exactly."""
        self.tickets = 0
        self.tokens = 0
        self.bytes = 0
        self.us = 0

    def check(self, tickets: list[Ticket], limits: Limits) -> None:
        """Raises QueueFull if these may not come in together."""
        if self.tickets + len(tickets) > limits.max_tickets:
            raise QueueFull("tickets")
        if self.tokens + sum(ticket.prompt_tokens for ticket in tickets) > limits.max_tokens:
            raise QueueFull("tokens")
        if self.bytes + sum(ticket.size_bytes for ticket in tickets) > limits.max_bytes:
            raise QueueFull("bytes")
        if self.us + sum(microseconds(ticket.seconds) for ticket in tickets) > limits.max_seconds * 1e6:
            raise QueueFull("seconds")

    def enter(self, held: Held) -> None:
        bisect.insort(self._sets.setdefault(held.set, []), held.rank)
        self._account(held.ticket, 1)

    def leave(self, held: Held) -> None:
        ranks = self._sets[held.set]
        del ranks[bisect.bisect_left(ranks, held.rank)]
        if not ranks:
            del self._sets[held.set]
        self._account(held.ticket, -1)

    @property
    def sets(self) -> Iterable[Set]:
        """Those that are not empty."""
        return self._sets

    def heads(self) -> list[Head]:
        return [
            Head(bin, service_class, ranks[0][2], ranks[0][0], len(ranks))
            for (bin, service_class), ranks in self._sets.items()
        ]

    def best(self, sets: Iterable[Set]) -> Iterator[str]:
        """Ids, best score first."""
        return (id for _, _, id in heapq.merge(*(self._sets.get(name, []) for name in sets)))

    def slots(self) -> dict[tuple[ServiceClass, int], Slot]:
        return {slot: Slot(tokens, us / 1e6) for slot, (_, tokens, us) in self._slots.items()}

    def _account(self, ticket: Ticket, sign: int) -> None:
        tokens, us = sign * ticket.prompt_tokens, sign * microseconds(ticket.seconds)
        self.tickets += sign
        self.tokens += tokens
        self.bytes += sign * ticket.size_bytes
        self.us += us
        slot = ticket.service_class, slot_of(ticket.score, ticket.slack_s)
        in_slot, slot_tokens, slot_us = self._slots.get(slot, (0, 0, 0))
        if in_slot + sign:
            self._slots[slot] = in_slot + sign, slot_tokens + tokens, slot_us + us
        else:
            del self._slots[slot]
