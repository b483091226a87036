"""The queue in one process, on any clock: the rules of `lua/`; a verb is atomic because it never awaits.

For the simulator and for tests: one process sees it, and it dies with the process.  Dicts stand where Redis
has sets, so that runs repeat whatever the hash seed.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from gateway.errors import LeaseLost
from gateway.ports import MAX_SHOWN, Adopted, Assembly, Entry, Limits, LogWrite, Peer, Record, Written
from gateway.request import Backlog, Queue, ServiceClass, Ticket
from gateway.store.inboxes import Inboxes
from gateway.store.leases import Leases
from gateway.store.lessons import Lessons
from gateway.store.records import Records
from gateway.store.waiting import Held, Set, Waiting
from gateway.store.wire import check_snapshot, check_times


class MemoryStore:
    """`grace_s` is how long an origin that has put but not yet audited counts as alive."""

    def __init__(self, clock: Callable[[], float] = time.time, *, grace_s: float = 10.0) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._arrivals = itertools.count()
        self._held: dict[str, Held] = {}
        self._waiting = Waiting()
        self._leased: dict[str, dict[str, None]] = {}
        self._put_by: dict[str, dict[str, None]] = {}
        self._origins: dict[str, float] = {}
        self._leases = Leases()
        self._gateways: dict[str, tuple[float, Peer]] = {}
        self._inboxes = Inboxes()
        self._records = Records(clock)
        self._lessons = Lessons()
        self._tags: dict[tuple[str, ServiceClass], float] = {}
        self._max_tags = 64
        self._served: dict[ServiceClass, float] = {}
        self._bounds: tuple[int, ...] = (0,)
        self._bounds_version = 0

    async def put(self, entries: Sequence[Entry], limits: Limits) -> list[float]:
        check_times(entries)
        fresh = {entry.ticket.id: entry for entry in entries if entry.ticket.id not in self._held}
        if fresh:
            self._waiting.check([entry.ticket for entry in fresh.values()], limits)
        for entry in fresh.values():
            score = self._advance(entry.ticket, limits.max_lead_s)
            self._waiting.enter(self._hold(entry.scored(score)))
        self._prune_tags()
        return [self._held[entry.ticket.id].ticket.score for entry in entries]

    async def start(
        self, replica: str, epoch: int, entries: Sequence[Entry], served: Mapping[ServiceClass, float]
    ) -> list[float] | None:
        check_times(entries)
        self._check_lease(replica, epoch)
        if self._waiting.tickets or any(entry.ticket.id in self._held for entry in entries):
            return None
        scores = [self._advance(entry.ticket, 0.0) for entry in entries]
        for entry, score in zip(entries, scores, strict=True):
            self._lease(self._hold(entry.scored(score)), replica)
        self._prune_tags()
        self._served.update(served)
        return scores

    async def put_back(self, entries: Sequence[Entry]) -> None:
        check_times(entries)
        for entry in entries:
            known = self._held.get(entry.ticket.id)
            if known and known.ticket.attempt >= entry.ticket.attempt:
                continue
            if known:
                self._forget(known)
            self._waiting.enter(self._hold(entry, known.arrival if known else None))

    async def queue(self) -> Queue:
        return Queue(
            now_s=self._clock(),
            heads=self._waiting.heads(),
            served=dict(self._served),
            bounds=self._bounds,
            bounds_version=self._bounds_version,
            tickets=self._waiting.tickets,
            tokens=self._waiting.tokens,
            bytes=self._waiting.bytes,
            shown=self._best(self._waiting.sets, MAX_SHOWN) if self._waiting.tickets <= MAX_SHOWN else (),
        )

    async def peek(self, sets: Sequence[Set], limit: int) -> list[Ticket]:
        return self._best(dict.fromkeys(sets), limit)

    async def claim(
        self,
        replica: str,
        epoch: int,
        tickets: Sequence[tuple[str, int]],
        served: Mapping[ServiceClass, float],
    ) -> list[Entry]:
        self._check_lease(replica, epoch)
        queued = [held for held in self._known(tickets) if held.replica is None]
        for held in queued:
            self._waiting.leave(held)
            self._lease(held, replica)
        if queued:
            self._served.update(served)
        return [held.entry for held in queued]

    async def finish(self, tickets: Sequence[tuple[str, int]]) -> None:
        for held in self._known(tickets):
            self._forget(held)

    async def cancel(self, tickets: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        known = ((self._held.get(id), attempt) for id, attempt in tickets)
        return self._forget_all(
            [held.ticket.id for held, attempt in known if held and held.ticket.attempt <= attempt]
        )

    async def audit(self, gateway: str, live: Sequence[tuple[str, int]], lease_s: float) -> list[str]:
        self._origins[gateway] = self._clock() + lease_s
        known = {(held.ticket.id, held.ticket.attempt) for held in self._known(live)}
        return [id for id, attempt in live if (id, attempt) not in known]

    async def reap(self, limit: int) -> list[tuple[str, str]]:
        now_s = self._clock()
        leased = []
        for gateway in [name for name, expiry_s in self._origins.items() if expiry_s <= now_s]:
            ids = list(itertools.islice(self._put_by.get(gateway, ()), limit))
            limit -= len(ids)
            leased += self._forget_all(ids)
            if gateway not in self._put_by:
                del self._origins[gateway]
        return leased

    async def sweep(self, replica: str, epoch: int, live: Sequence[tuple[str, int]]) -> list[str]:
        self._check_lease(replica, epoch)
        alive = {held.ticket.id for held in self._known(live)}
        forgotten = [id for id in self._leased.get(replica, ()) if id not in alive]
        self._forget_all(forgotten)
        return forgotten

    async def elect(self, replica: str, gateway: str, lease_s: float) -> int | None:
        now_s = self._clock()
        return self._leases.elect(replica, gateway, now_s + lease_s, now_s)

    async def renew(self, replica: str, epoch: int, lease_s: float, standing: bytes) -> bool:
        return self._leases.renew(replica, epoch, self._clock() + lease_s, standing)

    async def resign(self, replica: str, epoch: int) -> None:
        self._leases.resign(replica, epoch, self._clock())

    async def assemble(self, gateway: str, peer: Peer, life_s: float) -> Assembly:
        now_s = self._clock()
        self._gateways[gateway] = (now_s + life_s, peer)
        self._gateways = {name: seen for name, seen in self._gateways.items() if seen[0] > now_s}
        peers = {name: peer for name, (_, peer) in self._gateways.items()}
        return Assembly(peers, self._leases.live(now_s))

    async def post(self, letters: Mapping[str, bytes]) -> None:
        self._inboxes.post(letters)

    async def collect(self, gateway: str, after: str, limit: int, wait_s: float) -> list[tuple[str, bytes]]:
        return await self._inboxes.collect(gateway, after, limit, wait_s)

    async def keep(self, records: Sequence[Record], ttl_s: float) -> list[Written]:
        return [self._records.keep(record, ttl_s) for record in records]

    async def log(self, writes: Sequence[LogWrite], ttl_s: float) -> list[Written]:
        return [self._records.log(write, ttl_s) for write in writes]

    async def adopt(self, call: str, owner: str, ttl_s: float) -> Adopted | None:
        return self._records.adopt(call, owner, ttl_s)

    async def rebucket(self, bounds: tuple[int, ...], version: int) -> bool:
        if version != self._bounds_version:
            return False
        self._bounds, self._bounds_version = bounds, version + 1
        return True

    async def backlog(self, service_class: ServiceClass, tenant: str) -> Backlog:
        now_s = self._clock()
        return Backlog(now_s, max(now_s, self._tags.get((tenant, service_class), 0.0)), self._waiting.slots())

    async def append_samples(self, samples: Sequence[bytes]) -> None:
        self._lessons.append(samples, self._clock())

    async def samples(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        return self._lessons.after(after, limit)

    async def publish(self, snapshot: bytes, version: int) -> bool:
        check_snapshot(snapshot)
        return self._lessons.publish(snapshot, version, self._clock())

    async def snapshot(self, version: int) -> tuple[int, bytes] | None:
        return self._lessons.newer_than(version)

    async def ping(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def _best(self, sets: Iterable[Set], limit: int) -> list[Ticket]:
        return [self._held[id].ticket for id in itertools.islice(self._waiting.best(sets), limit)]

    def _known(self, tickets: Iterable[tuple[str, int]]) -> Iterator[Held]:
        """Those the store knows under this attempt, each once."""
        for id, attempt in dict.fromkeys(tickets):
            held = self._held.get(id)
            if held and held.ticket.attempt == attempt:
                yield held

    def _check_lease(self, replica: str, epoch: int) -> None:
        if not self._leases.holds(replica, epoch, self._clock()):
            raise LeaseLost

    def _advance(self, ticket: Ticket, max_lead_s: float) -> float:
        """The ticket's score; its tenant's tag moves on."""
        name = (ticket.tenant, ticket.service_class)
        now_s = self._clock()
        start_s = max(now_s, min(self._tags.get(name, 0.0), now_s + max_lead_s))
        self._tags[name] = start_s + ticket.cost_s
        return start_s + ticket.slack_s

    def _prune_tags(self) -> None:
        # Seldom enough that a put costs the same however many tenants there are.
        if len(self._tags) > self._max_tags:
            now_s = self._clock()
            self._tags = {name: tag for name, tag in self._tags.items() if tag > now_s}
            self._max_tags = 64 + 2 * len(self._tags)

    def _hold(self, entry: Entry, arrival: int | None = None) -> Held:
        """A ticket becomes known; without an `arrival` it has just come."""
        held = Held(entry, next(self._arrivals) if arrival is None else arrival)
        origin = entry.ticket.origin
        self._held[entry.ticket.id] = held
        self._put_by.setdefault(origin, {})[entry.ticket.id] = None
        expiry_s = self._clock() + self._grace_s
        self._origins[origin] = max(expiry_s, self._origins.get(origin, expiry_s))
        return held

    def _lease(self, held: Held, replica: str) -> None:
        held.replica = replica
        self._leased.setdefault(replica, {})[held.ticket.id] = None

    def _forget(self, held: Held) -> None:
        id = held.ticket.id
        del self._held[id]
        _discard(self._put_by, held.ticket.origin, id)
        if held.replica is None:
            self._waiting.leave(held)
        else:
            _discard(self._leased, held.replica, id)

    def _forget_all(self, ids: Iterable[str]) -> list[tuple[str, str]]:
        """(id, replica) of those that were leased."""
        known = [self._held[id] for id in dict.fromkeys(ids) if id in self._held]
        for held in known:
            self._forget(held)
        return [(held.ticket.id, held.replica) for held in known if held.replica is not None]


def _discard(ids_of: dict[str, dict[str, None]], owner: str, id: str) -> None:
    del ids_of[owner][id]
    if not ids_of[owner]:
        del ids_of[owner]
