"""A store against a model so small that it is plainly right: one dict of tickets, all else counted anew."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.errors import LeaseLost, QueueFull
from gateway.ports import Entry, Limits, Store
from gateway.request import ServiceClass, Ticket, slot_of
from tests.store_contract import entry

IDS = [f"call/{i}" for i in range(12)]
"""Few enough that the queue is always shown whole."""
REPLICAS = ["replica-1", "replica-2"]
SETS = [(bin, service_class) for bin in range(3) for service_class in ServiceClass]
LEASE_S = 1e6
"""No lease ends by itself here; the contract suite has the clock."""


@dataclass
class Known:
    ticket: Ticket
    arrival: int
    replica: str | None = None


drafts = st.builds(
    entry,
    id=st.sampled_from(IDS),
    attempt=st.integers(0, 3),
    origin=st.sampled_from(["gateway-1", "gateway-2"]),
    tenant=st.sampled_from(["a", "b"]),
    bin=st.integers(0, 2),
    service_class=st.sampled_from(ServiceClass),
    prompt_tokens=st.integers(0, 500),
    seconds=st.floats(0, 10),
    slack_s=st.floats(-10, 10),
    cost_s=st.sampled_from([0.0, 0.1, 30.0]),
    score=st.sampled_from([0.0, -0.0, 5.0, 1e9]) | st.floats(-1e9, 2e9),
    payload=st.binary(max_size=9),
)
groups = st.lists(drafts, min_size=1, max_size=4, unique_by=lambda draft: draft.ticket.id)
limits = st.builds(Limits, st.integers(0, 12), st.integers(0, 3000), st.integers(0, 60)) | st.just(
    Limits(99, 9**9, 9**9)
)
attempts = st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 3)), max_size=6)
replicas = st.sampled_from(REPLICAS)


class StoreMachine(RuleBasedStateMachine):
    async def open(self) -> Store:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.run(self.open())
        self.known: dict[str, Known] = {}
        self.epochs: dict[str, int] = {}
        self.arrivals = 0
        self.leases: set[tuple[str, int]] = set()

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self.runner.close()

    def queued(self) -> list[Known]:
        waiting = [known for known in self.known.values() if known.replica is None]
        return sorted(waiting, key=lambda known: (known.ticket.score, known.arrival))

    def arrive(self, given: Entry, score: float, arrival: int | None = None) -> None:
        self.arrivals += 1
        ticket = msgspec.structs.replace(given.ticket, score=score)
        self.known[ticket.id] = Known(ticket, self.arrivals if arrival is None else arrival)
        self.leases = {lease for lease in self.leases if lease[0] != ticket.id}

    def matching(self, tickets: list[tuple[str, int]]) -> dict[str, Known]:
        known = {id: self.known.get(id) for id, _ in tickets}
        return {id: k for id, attempt in tickets if (k := known[id]) and k.ticket.attempt == attempt}

    @rule(group=groups, limits=limits)
    def put(self, group: list[Entry], limits: Limits) -> None:
        fresh = [draft.ticket for draft in group if draft.ticket.id not in self.known]
        tickets = [known.ticket for known in self.queued()] + fresh
        fits = not fresh or (
            len(tickets) <= limits.max_tickets
            and sum(ticket.prompt_tokens for ticket in tickets) <= limits.max_tokens
            and sum(ticket.size_bytes for ticket in tickets) <= limits.max_bytes
        )
        if not fits:
            with pytest.raises(QueueFull):
                self.run(self.store.put(group, limits))
            return
        for draft, score in zip(group, self.run(self.store.put(group, limits)), strict=True):
            if draft.ticket in fresh:
                self.arrive(draft, score)
            else:
                assert score == self.known[draft.ticket.id].ticket.score

    @precondition(lambda self: self.epochs)
    @rule(replica=replicas, group=groups, behind=st.sampled_from([0, 0, 0, 1]))
    def start(self, replica: str, group: list[Entry], behind: int) -> None:
        epoch = self.epochs.get(replica, 0) - behind
        if epoch != self.epochs.get(replica):
            with pytest.raises(LeaseLost):
                self.run(self.store.start(replica, epoch, group, {}))
            return
        scores = self.run(self.store.start(replica, epoch, group, {}))
        if self.queued() or any(draft.ticket.id in self.known for draft in group):
            assert scores is None
            return
        for draft, score in zip(group, scores, strict=True):
            self.arrive(draft, score)
            self.known[draft.ticket.id].replica = replica
            self.leases.add((draft.ticket.id, draft.ticket.attempt))

    @rule(group=groups)
    def put_back(self, group: list[Entry]) -> None:
        self.run(self.store.put_back(group))
        for draft in group:
            known = self.known.get(draft.ticket.id)
            if known is None or known.ticket.attempt < draft.ticket.attempt:
                self.arrive(draft, draft.ticket.score, known.arrival if known else None)

    @rule(replica=replicas)
    def elect(self, replica: str) -> None:
        epoch = self.run(self.store.elect(replica, "gateway-1", LEASE_S))
        assert epoch > self.epochs.get(replica, 0)
        self.epochs[replica] = epoch

    @precondition(lambda self: self.epochs)
    @rule(replica=replicas, tickets=attempts, behind=st.sampled_from([0, 0, 0, 1]), best=st.integers(0, 5))
    def claim(self, replica: str, tickets: list[tuple[str, int]], behind: int, best: int) -> None:
        tickets = [(known.ticket.id, known.ticket.attempt) for known in self.queued()[:best]] + tickets
        epoch = self.epochs.get(replica, 0) - behind
        if epoch != self.epochs.get(replica):
            with pytest.raises(LeaseLost):
                self.run(self.store.claim(replica, epoch, tickets, {}))
            return
        claimed = [entry.ticket for entry in self.run(self.store.claim(replica, epoch, tickets, {}))]
        expected = [known.ticket for known in self.matching(tickets).values() if known.replica is None]
        assert claimed == expected
        for ticket in claimed:
            assert (ticket.id, ticket.attempt) not in self.leases, "leased twice under one attempt"
            self.leases.add((ticket.id, ticket.attempt))
            self.known[ticket.id].replica = replica

    @rule(tickets=attempts)
    def finish(self, tickets: list[tuple[str, int]]) -> None:
        self.run(self.store.finish(tickets))
        for id in self.matching(tickets):
            del self.known[id]

    @rule(tickets=attempts)
    def cancel(self, tickets: list[tuple[str, int]]) -> None:
        leased = set()
        for id, attempt in tickets:
            known = self.known.get(id)
            if known and known.ticket.attempt <= attempt:
                del self.known[id]
                leased |= {(id, known.replica)} if known.replica else set()
        # `tickets` may name one twice.
        assert set(self.run(self.store.cancel(tickets))) == leased

    @rule(tickets=attempts)
    def audit(self, tickets: list[tuple[str, int]]) -> None:
        unknown = self.run(self.store.audit("gateway-1", tickets, LEASE_S))
        held = {(known.ticket.id, known.ticket.attempt) for known in self.known.values()}
        assert set(unknown) == {id for id, attempt in tickets if (id, attempt) not in held}

    @precondition(lambda self: self.epochs)
    @rule(replica=replicas, tickets=attempts)
    def sweep(self, replica: str, tickets: list[tuple[str, int]]) -> None:
        if replica not in self.epochs:
            return
        forgotten = set(self.run(self.store.sweep(replica, self.epochs[replica], tickets)))
        leased = {id: known for id, known in self.known.items() if known.replica == replica}
        assert forgotten == {id for id, known in leased.items() if (id, known.ticket.attempt) not in tickets}
        for id in forgotten:
            del self.known[id]

    @invariant()
    def heads_and_totals_are_true(self) -> None:
        queue = self.run(self.store.queue())
        queued = self.queued()
        assert queue.tickets == len(queued)
        assert queue.tokens == sum(known.ticket.prompt_tokens for known in queued)
        assert queue.bytes == sum(known.ticket.size_bytes for known in queued)
        sets: dict[tuple[int, ServiceClass], list[Ticket]] = {}
        for known in queued:
            sets.setdefault((known.ticket.bin, known.ticket.service_class), []).append(known.ticket)
        assert list(queue.shown) == [known.ticket for known in queued]
        heads = {(h.bin, h.service_class): (h.ticket, h.score, h.count) for h in queue.heads}
        assert heads == {key: (ts[0].id, ts[0].score, len(ts)) for key, ts in sets.items()}

    @invariant()
    def the_order_is_by_score(self) -> None:
        tickets = self.run(self.store.peek(SETS, 99))
        assert tickets == [known.ticket for known in self.queued()]

    @invariant()
    def the_backlog_balances(self) -> None:
        sums: dict[tuple[ServiceClass, int], list[int]] = {}
        for known in self.queued():
            slot = known.ticket.service_class, slot_of(known.ticket.score, known.ticket.slack_s)
            tokens, us = sums.get(slot, [0, 0])
            sums[slot] = [tokens + known.ticket.prompt_tokens, us + round(known.ticket.seconds * 1e6)]
        slots = self.run(self.store.backlog(ServiceClass.DEFAULT, "")).slots
        actual = {slot: [b.tokens, round(b.seconds * 1e6)] for slot, b in slots.items()}
        assert _without_zeros(actual) == _without_zeros(sums)


def _without_zeros(sums: dict[tuple[ServiceClass, int], list[int]]) -> dict[Any, Any]:
    return {slot: sum for slot, sum in sums.items() if any(sum)}


MACHINE_TIMEOUT_S = 300
"""A failure is made small before it is told, which takes many times as long as none."""


def run_machine(machine: Any, **options: Any) -> None:
    quiet = settings(
        deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None, **options
    )
    run_state_machine_as_test(machine, settings=quiet)
