"""What starts next on one replica: the policy's five choices, asked of one queue and one replica's room."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from gateway.fleet import Replica
from gateway.metrics import Metrics
from gateway.policy import bucket, guard, preempt, priority
from gateway.policy.batch import Room
from gateway.policy.guard import Guard
from gateway.policy.preset import Policy
from gateway.policy.replan import Replanner
from gateway.ports import Store
from gateway.request import Head, Queue, ServiceClass, Ticket
from gateway.roster import Roster

log = structlog.get_logger()

STEPS_AHEAD = 4
"""Steps' worth of prompts in the engine.  One that runs ahead has started two more before we hear that some were
run, and starts the next while we send others; what waits there longer than that can no longer be reordered."""
_MAX_PEEKS = 3
"""Buckets looked into before giving up for now: when so many heads do not fit, hardly anything does."""


class Config(msgspec.Struct, frozen=True):
    """Bounds on what a replica is given."""

    policy: Policy
    max_rows: int
    """Rows in the engine at once."""
    max_batch_rows: int
    """Rows in one prefill batch."""
    max_prefill_tokens: int | None
    """Prompt tokens that wait in the engine before a batch's last, padding included within the batch; None: those
    of STEPS_AHEAD."""
    shares: Mapping[ServiceClass, float]


class Chooser:
    def __init__(self, store: Store, roster: Roster, config: Config, metrics: Metrics) -> None:
        self._store = store
        self._roster = roster
        self._config = config
        self._metrics = metrics
        self._guard = Guard()
        self._replanner = Replanner(config.policy.bucket)

    def has_room(self, replica: Replica) -> bool:
        """Whether it is worth looking at the queue."""
        if self._config.policy.batch.runs_to_completion and len(self._roster):
            return False
        return len(self._roster) < self._config.max_rows

    async def choose(self, queue: Queue, replica: Replica) -> tuple[list[Ticket], list[int]]:
        """The tickets that start now, from the first bucket in the order of turns in which something fits; or if
        there are none, the rows (by number) that should make room."""
        policy = self._config.policy
        window = max(policy.priority.window, self._config.max_batch_rows)
        room, now_s = self._room(replica), _now_s()
        self._guard.ended(lambda ticket: self._roster.find(ticket) is not None)
        while (held := self._guard.held(room, now_s)) and await self._is_gone(held, queue, window):
            self._guard.note([], [held], now_s)
        heads: list[Ticket] = []
        for group in self._groups(queue)[:_MAX_PEEKS]:
            waiting = await self._waiting(queue, [(head.bin, head.service_class) for head in group], window)
            tickets = policy.priority.order(waiting, queue.now_s)
            chosen = self._guard.select(policy.batch, tickets, room, now_s)
            if chosen:
                self._guard.note([*heads, *guard.passed(tickets, chosen)], chosen, now_s)
                return chosen, []
            heads += tickets[:1]
        return [], self._victims(heads[0], replica) if heads and preempt.is_due(heads[0], queue.now_s) else []

    async def _is_gone(self, ticket: Ticket, queue: Queue, window: int) -> bool:
        """Cancelled, or started elsewhere, as far as can be seen."""
        waiting = await self._waiting(queue, [(ticket.bin, ticket.service_class)], window)
        if any(other.id == ticket.id for other in waiting):
            return False
        # Of a longer list the end is not seen.
        return len(waiting) < window or waiting[-1].score > ticket.score

    async def _waiting(
        self, queue: Queue, sets: Sequence[tuple[int, ServiceClass]], limit: int
    ) -> Sequence[Ticket]:
        """The best tickets of these sets."""
        if not queue.shown:
            return await self._store.peek(sets, limit)
        return [ticket for ticket in queue.shown if (ticket.bin, ticket.service_class) in sets]

    def charge(self, queue: Queue, chosen: Sequence[Ticket]) -> dict[ServiceClass, float]:
        """The classes' figures once these are claimed."""
        claimed: dict[ServiceClass, int] = {}
        for ticket in chosen:
            claimed[ticket.service_class] = claimed.get(ticket.service_class, 0) + ticket.prompt_tokens
            self._replanner.note(ticket.bin, _now_s())
        return priority.charge(queue.served, queue.waiting, claimed, self._config.shares)

    async def rebucket(self, queue: Queue, replica: Replica) -> None:
        """Let the policy think the buckets over, for what waited."""
        queued: dict[int, int] = {}
        for head in queue.heads:
            queued[head.bin] = queued.get(head.bin, 0) + head.count
        mean_tokens = max(1, queue.tokens // max(1, queue.tickets))
        row_bytes = replica.layout.room_tokens(mean_tokens) * replica.layout.bytes_per_token
        max_batch = max(1, min(replica.safe_bytes // row_bytes, self._config.max_batch_rows))
        bounds = self._replanner.bounds(
            queue.bounds, queued, max_batch, replica.model.context_tokens, replica.pace.step_tokens, _now_s()
        )
        if bounds != queue.bounds and await self._store.rebucket(bounds, queue.bounds_version):
            edges = [bucket.first_tokens(first) for first in bounds]
            reason = self._config.policy.bucket.reason(queue.bounds, bounds)
            self._metrics.rebucketed(len(queue.bounds), len(bounds), reason)
            log.info(
                "buckets.changed", reason=reason, edges_tokens=edges, queued=queue.tickets, max_batch=max_batch
            )

    def _groups(self, queue: Queue) -> list[list[Head]]:
        """The heads by turn and bucket, in the order in which they are offered room."""
        return [
            group
            for turn in self._config.policy.priority.turns(queue.waiting, queue.served)
            for group in bucket.groups(queue.bounds, [head for head in queue.heads if head.service_class in turn])
        ]

    def _victims(self, head: Ticket, replica: Replica) -> list[int]:
        rule, room = self._config.policy.batch, self._room(replica)
        return [victim.number for victim in preempt.victims(rule, head, self._roster.victims, room)]

    def _room(self, replica: Replica) -> Room:
        return Room(
            running=self._roster.memory,
            layout=replica.layout,
            budget_bytes=replica.safe_bytes,
            max_rows=min(self._config.max_rows - len(self._roster), self._config.max_batch_rows),
            max_prefill_tokens=self._config.max_prefill_tokens or STEPS_AHEAD * replica.model.chunk_tokens,
            unstarted=self._roster.unstarted,
            pace=replica.pace,
            tpot_s=self._roster.tpot_s,
            alone_bytes=replica.alone_bytes,
        )


def _now_s() -> float:
    """For what lasts: the store's clock, by which tickets are due, may be set back."""
    return asyncio.get_running_loop().time()
