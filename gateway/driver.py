"""The loop of one replica: look -> choose -> claim -> send; session events -> the rows' origins.

One gateway at a time drives a replica, elected by a lease in the store; the engine arbitrates by epoch.  The
driver knows every row in its engine, so planning memory needs no lock.  It never puts a ticket back: it tells
the origin that a row is gone, and the origin decides.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NoReturn, Protocol

import msgspec
import structlog

from gateway import chooser, standing
from gateway.chooser import Chooser
from gateway.errors import BackendLost, LeaseLost, Outranked, StoreLost
from gateway.fleet import Fleet, Replica
from gateway.metrics import Metrics
from gateway.policy import batch
from gateway.ports import MAX_SHOWN, Backend, Entry, Session, Store
from gateway.request import Departed, Drawn, Queue, ServiceClass, Work
from gateway.roster import Mail, Mails, Roster
from triton_backend import contract

log = structlog.get_logger()

SWEEP_S = 5.0

_decode_work = msgspec.msgpack.Decoder(Work).decode


class Receiver(Protocol):
    """An origin, as a driver sees it."""

    def receive(self, drawn: Sequence[Drawn], departed: Sequence[Departed]) -> Sequence[tuple[str, int]]:
        """Take one engine step's events; those (ticket, attempt) that nobody waits for any more."""

    def claimed(self, tickets: Sequence[tuple[str, int]]) -> None:
        """These are on their way into an engine."""


class Config(msgspec.Struct, frozen=True):
    """A driver's bounds.  Times in seconds."""

    lease_s: float
    renew_s: float
    choice: chooser.Config
    poll_s: float = 0.1
    """Wake-ups are hints: with room to spare a driver also looks this often."""
    max_messages: int = 50_000
    """Events and controls of one session.  Triton keeps 1 to 2 KB of each until the session ends."""
    idle_silence_s: float = 2.0
    busy_silence_s: float = 5.0


class _Offer:
    """Tickets that have just come, to be run at once or to be put."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.scores: Sequence[float] | None = None
        """Once they are leased."""
        self.answer: asyncio.Future[Sequence[float] | None] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        """Nothing more comes of it."""
        if not self.answer.done():
            self.answer.set_result(self.scores)


class _WornOut(Exception):
    """A session has had its messages; the next one's epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__("the session has had its messages")
        self.epoch = epoch


class Driver:
    """Drives one replica whenever it holds the lease."""

    def __init__(
        self,
        *,
        gateway: str,
        backend: Backend,
        store: Store,
        fleet: Fleet,
        receiver: Callable[[str], Receiver],
        config: Config,
        metrics: Metrics,
        may_drive: Callable[[str], bool] = lambda replica: True,
        roster: Roster | None = None,
    ) -> None:
        """`receiver` gives the origin in a gateway of that name; `may_drive` is asked before each election.
        `roster` None: it counts the events' tokens itself."""
        self.replica = backend.replica
        self._gateway = gateway
        self._backend = backend
        self._store = store
        self._fleet = fleet
        self._receiver = receiver
        self._may_drive = may_drive
        self._config = config
        self._metrics = metrics
        self._roster = Roster() if roster is None else roster
        self._seq = 0
        self._work = asyncio.Event()
        """Something may be dispatched: a ticket was put, memory was freed."""
        self._is_resting = False
        """It waits for work, and nobody has any that it knows of."""
        self._offer: _Offer | None = None
        self._seen: Queue | None = None
        """When it looked last."""
        self._ahead_s = 0.0
        """The store's clock less the event loop's, then."""
        self._cancelled: set[int] = set()
        self._cancels = asyncio.Event()
        self._dispatching = asyncio.Lock()
        """Held from a claim until what was claimed is on its way to the engine."""
        self._doomed: dict[str, int] | None = None
        """While a claim is under way: tickets cancelled meanwhile, up to which attempt."""
        self._leased = False
        self._doubt = asyncio.Event()
        """The store says that the lease is not this driver's: to be renewed at once, if it can be."""
        self._giving = asyncio.Event()
        """Another gateway is to drive."""
        self._worn = asyncio.Event()
        """The session has had its messages."""
        self.failed_s = -inf
        """When it last could not attach, on the event loop's clock."""
        self._is_short = False
        """Something waits, as far as is known, and there was no room for it."""
        self._unsure = False
        """Tickets may be leased to this driver without its knowing: it has just attached, or a claim's answer was
        lost."""
        self._refused_free_bytes: int | None = None
        """The engine refused a row when this much was free: wait until there is more."""
        self._heard_s = 0.0
        self._chooser = Chooser(store, self._roster, config.choice, metrics)
        self._evicting: set[int] = set()
        """Rows that were told to make room and have not left yet."""

    @property
    def num_rows(self) -> int:
        return len(self._roster)

    @property
    def leads(self) -> bool:
        """It drives its replica."""
        return self._leased

    @property
    def has_room(self) -> bool:
        """Nothing waits for want of room there, as far as is known."""
        return self._leased and not self._is_short

    def wake(self) -> None:
        """There may be something to dispatch."""
        self._rise()
        self._work.set()

    async def start(self, entries: Sequence[Entry]) -> Sequence[float] | None:
        """Run a call's new tickets at once, without a place in the queue: their scores.  None if it has other
        things to do, or something waits, or it would not run them all now: they are to be put."""
        if not self._is_resting or len(entries) > MAX_SHOWN:
            return None
        self._is_resting = False
        offer = self._offer = _Offer(entries)
        self._work.set()
        return await offer.answer

    def _rise(self) -> None:
        """It rests no more, and what it was offered goes the usual way."""
        self._is_resting = False
        if self._offer is not None:
            self._offer.settle()
            self._offer = None

    def hand_over(self) -> None:
        """Let another gateway drive; the rows go on."""
        self._giving.set()

    def cancel(self, tickets: Iterable[tuple[str, int]]) -> None:
        """Free the rows of these tickets up to the given attempts, now or when a claim under way brings them."""
        for ticket, attempt in tickets:
            running = self._roster.find(ticket)
            if running is not None and running.ticket.attempt <= attempt:
                self._cancelled.add(running.number)
                self._cancels.set()
            elif self._doomed is not None:
                self._doomed[ticket] = attempt

    # Election and session

    async def run(self) -> NoReturn:
        """Compete for the replica for ever."""
        said = ""
        while True:
            pause_s = self._config.poll_s
            try:
                if self._may_drive(self.replica):
                    epoch = await self._store.elect(self.replica, self._gateway, self._config.lease_s)
                    if epoch is not None:
                        await self._drive(epoch)
            except (StoreLost, BackendLost, LeaseLost, Outranked) as error:
                if said != (said := str(error) or repr(error)):
                    log.warning("driver.interrupted", replica=self.replica, error=said)
                if isinstance(error, Outranked):
                    # By whom this store may know nothing: gateways of another schema have another queue, and as
                    # long a turn.
                    pause_s = self._config.lease_s
            await asyncio.sleep(pause_s)

    async def _drive(self, epoch: int) -> None:
        """One session after the other, until somebody else is to drive."""
        try:
            while True:
                try:
                    await self._drive_once(epoch)
                except _WornOut as worn:
                    epoch = worn.epoch
        finally:
            with contextlib.suppress(StoreLost):
                await self._store.resign(self.replica, epoch)

    async def _drive_once(self, epoch: int) -> NoReturn:
        """One session, from attach to its end."""
        session = await self._attach(epoch)
        try:
            replica = self._fleet.joined(self.replica, session.attached)
            # A driver in between may have given these numbers to other rows.
            self._cancelled.clear()
            self._evicting.clear()
            self._deliver(self._roster.adopt(session.attached.rows))
            self._tell(replica)
            self._unsure = True
            log.info("driver.attached", replica=self.replica, epoch=epoch, rows=len(self._roster))
            await self._serve(session, replica, epoch)
        finally:
            self._leased = False
            self._metrics.replica_left(self.replica)
            await session.aclose()

    async def _attach(self, epoch: int) -> Session:
        """Open a session.  If the engine is gone, so are the rows it had.

        It answers between two of its steps, which may take longer than a lease lasts."""
        known = self._fleet.replicas.get(self.replica)
        try:
            async with self._holding(epoch, standing.encode(known.standing) if known else b""):
                return await self._backend.attach(contract.Attach(epoch, self._gateway))
        except BackendLost:
            self.failed_s = asyncio.get_running_loop().time()
            self._fleet.left(self.replica)
            self._deliver(self._roster.lose())
            # Also what was just being claimed, or by whom nobody heard of it.
            with contextlib.suppress(StoreLost, LeaseLost):
                await self._sweep(epoch)
            await self._revive()
            raise

    async def _revive(self) -> None:
        """One gateway at a time, for as long as it takes: another would restart what was just restarted."""
        epoch = await self._store.elect(self.replica, self._gateway, self._config.lease_s)
        if epoch is None:
            return
        try:
            async with self._holding(epoch, b""):
                await self._backend.revive()
        finally:
            with contextlib.suppress(StoreLost):
                await self._store.resign(self.replica, epoch)

    @contextlib.asynccontextmanager
    async def _holding(self, epoch: int, told: bytes) -> AsyncIterator[None]:
        """Keep the lease without a session, and tell everybody how the replica stands; b"": it does not run."""
        holding = asyncio.create_task(self._hold(epoch, told))
        try:
            yield
        finally:
            holding.cancel()

    async def _hold(self, epoch: int, told: bytes) -> NoReturn:
        while True:
            with contextlib.suppress(StoreLost):
                await self._store.renew(self.replica, epoch, self._config.lease_s, told)
            await asyncio.sleep(self._config.renew_s)

    async def _serve(self, session: Session, replica: Replica, epoch: int) -> NoReturn:
        self._leased = True
        self._giving.clear()
        self._worn.clear()
        tasks = (
            self._renew(replica, epoch),
            self._give(),
            self._replace(),
            self._listen(session, replica),
            self._watch(replica),
            self._dispatch(session, replica, epoch),
            self._poll(),
            self._sweep_again(),
            self._send_cancels(session, epoch),
        )
        try:
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(task)
        except* (BackendLost, LeaseLost, Outranked, StoreLost, _WornOut) as errors:
            error = errors.exceptions[0]
        if isinstance(error, Outranked) or self._giving.is_set():
            self._roster.clear()
        raise error

    async def _give(self) -> NoReturn:
        await self._giving.wait()
        # What was claimed and not sent would have to be found by the next sweep.
        async with self._dispatching:
            raise LeaseLost(f"handed {self.replica} over")

    async def _replace(self) -> NoReturn:
        """When the session has had its messages, have another, as soon as the store gives an epoch for it."""
        await self._worn.wait()
        while True:
            with contextlib.suppress(StoreLost):
                async with self._dispatching:
                    epoch = await self._store.elect(self.replica, self._gateway, self._config.lease_s)
                    raise LeaseLost(f"lost the lease of {self.replica}") if epoch is None else _WornOut(epoch)
            await asyncio.sleep(self._config.poll_s)

    async def _renew(self, replica: Replica, epoch: int) -> NoReturn:
        """Keep the lease, and tell everybody how the replica stands.  Only here is it found to be lost: one that
        ran out while the store did not answer is no other's yet, and is taken up again.  Without the lease nothing
        is claimed any more, but the session goes on until another driver has had the time to take over; then this
        one competes again."""
        while True:
            self._doubt.clear()
            pause_s = self._config.renew_s
            try:
                self._leased = await self._store.renew(
                    self.replica, epoch, self._config.lease_s, standing.encode(replica.standing)
                )
            except StoreLost:
                pause_s = self._config.poll_s
            if not self._leased:
                await asyncio.sleep(self._config.lease_s)
                raise LeaseLost(f"lost the lease of {self.replica}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._doubt.wait()

    async def _watch(self, replica: Replica) -> NoReturn:
        """Declare a silent engine lost.  Twice in a row, since it may be this process that was stopped."""
        strikes = 0
        loop = asyncio.get_running_loop()
        self._heard_s = loop.time()
        while True:
            await asyncio.sleep(self._config.idle_silence_s / 4)
            silence_s = loop.time() - self._heard_s
            busy_s = max(self._config.busy_silence_s, 5 * replica.telemetry.step_s)
            patience_s = busy_s if len(self._roster) else self._config.idle_silence_s
            strikes = strikes + 1 if silence_s > patience_s else 0
            if strikes == 2:
                raise BackendLost(f"no sign of life for {silence_s:.1f} s")

    # From the engine

    async def _listen(self, session: Session, replica: Replica) -> NoReturn:
        loop = asyncio.get_running_loop()
        num_events, first_seq = 0, self._seq
        async for event in session.events():
            self._heard_s = loop.time()
            num_events += 1
            if num_events + self._seq - first_seq >= self._config.max_messages:
                self._worn.set()
            if isinstance(event, contract.Step):
                num_unstarted = len(replica.unstarted)
                replica.heard(event.telemetry, self._heard_s)
                self._metrics.telemetry(self.replica, event.telemetry, replica.safety_factor)
                if event.ended and any(ended.reason is contract.End.REFUSED for ended in event.ended):
                    self._refused_free_bytes = _free_bytes(event.telemetry)
                self._deliver(self._roster.step(event))
                self._tell(replica)
                if self._evicting:
                    self._evicting = {number for number in self._evicting if number in self._roster}
                if self._is_short and (event.ended or len(replica.unstarted) < num_unstarted):
                    self._work.set()
        raise BackendLost("the session ended")

    def _tell(self, replica: Replica) -> None:
        """What the fleet should know of the rows here."""
        replica.rows = len(self._roster)
        replica.unstarted = self._roster.unstarted
        replica.tpot_s = self._roster.tpot_s
        replica.has_room = self.has_room

    def _deliver(self, mails: Mails) -> None:
        for origin, mail in mails.items():
            self.cancel(self._receiver(origin).receive(mail.drawn, mail.departed))

    # Towards the engine

    async def _dispatch(self, session: Session, replica: Replica, epoch: int) -> NoReturn:
        try:
            while True:
                self._is_resting = True
                await self._work.wait()
                self._work.clear()
                offer, self._offer = self._offer, None
                self._rise()
                try:
                    if offer is not None:
                        await self._start(session, replica, epoch, offer)
                        continue
                    if self._leased and self._unsure:
                        await self._sweep(epoch)
                    while await self._dispatch_one(session, replica, epoch):
                        pass
                except (StoreLost, LeaseLost) as error:
                    if isinstance(error, LeaseLost):
                        self._doubt.set()
                    # A queue that cannot be seen says nothing of how fast it is worked off.
                    replica.drain.pause()
                finally:
                    if offer is not None:
                        offer.settle()
        finally:
            self._rise()

    async def _poll(self) -> NoReturn:
        while True:
            self._work.set()
            await asyncio.sleep(self._config.poll_s)

    async def _sweep_again(self) -> NoReturn:
        """Look now and then for what is leased here and has no row: nobody may have heard of its end."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._unsure = True
            self._work.set()

    async def _dispatch_one(self, session: Session, replica: Replica, epoch: int) -> bool:
        """Send one batch, if something waits that fits; whether to look again."""
        self._is_short = True
        if not self._may_take(replica):
            return False
        self._seen = queue = await self._store.queue()
        self._ahead_s = queue.now_s - asyncio.get_running_loop().time()
        self._metrics.queue_seen(queue)
        if not queue.heads:
            self._is_short = False
            self._note_claimed(replica, [], False)
            return False
        chosen, victims = await self._chooser.choose(queue, replica)
        more_waits = queue.tickets > len(chosen)
        if not chosen:
            self._note_claimed(replica, [], more_waits)
            await self._evict(session, epoch, victims)
            return False
        async with self._dispatching:
            served = self._chooser.charge(queue, chosen)
            entries = await self._claim(
                self._store.claim(self.replica, epoch, [(t.id, t.attempt) for t in chosen], served)
            )
            # What came in the meantime has woken somebody.
            self._is_short = more_waits
            self._note_claimed(replica, entries, more_waits)
            await self._send(session, replica, epoch, entries)
        await self._chooser.rebucket(queue, replica)
        return bool(entries) and more_waits

    async def _start(self, session: Session, replica: Replica, epoch: int, offer: _Offer) -> None:
        """Send what was offered, if nothing waits and it is all that starts now."""
        if self._seen is None or self._unsure or self._is_short or not self._may_take(replica):
            return
        now_s = asyncio.get_running_loop().time() + self._ahead_s
        queue = self._seen.holding([entry.ticket for entry in offer.entries], now_s)
        chosen, _ = await self._chooser.choose(queue, replica)
        if len(chosen) < len(offer.entries):
            return
        served = self._chooser.charge(queue, chosen)
        async with self._dispatching:
            entries = await self._claim(self._lease(epoch, offer, served))
            self._note_claimed(replica, entries, False)
            await self._send(session, replica, epoch, entries)
        if entries:
            self._seen = msgspec.structs.replace(self._seen, served=served)
        if offer.answer.cancelled():
            # Its origin may have told the store so before they were leased.
            self._unsure = True
            self._work.set()
        await self._chooser.rebucket(queue, replica)

    async def _lease(self, epoch: int, offer: _Offer, served: Mapping[ServiceClass, float]) -> list[Entry]:
        """The offered tickets, leased; none if something waits."""
        scores = offer.scores = await self._store.start(self.replica, epoch, offer.entries, served)
        if scores is None:
            return []
        return [entry.scored(score) for entry, score in zip(offer.entries, scores, strict=True)]

    def _note_claimed(self, replica: Replica, entries: Sequence[Entry], more_waits: bool) -> None:
        """These are about to be sent."""
        now_s = asyncio.get_running_loop().time()
        replica.drain.note([entry.ticket for entry in entries], more_waits, self._roster.seconds, now_s)

    def _may_take(self, replica: Replica) -> bool:
        """Whether it is worth looking for work."""
        return self._leased and self._chooser.has_room(replica) and not self._is_refused(replica)

    async def _evict(self, session: Session, epoch: int, rows: Sequence[int]) -> None:
        """Have rows make room, unless some are just about to."""
        if rows and not self._evicting:
            self._evicting = set(rows)
            self._seq += 1
            self._metrics.preempted(len(rows))
            await session.send(contract.Evict(epoch, self._seq, list(rows)))

    async def _claim(self, leasing: Awaitable[list[Entry]]) -> list[Entry]:
        """What is leased now, but for what is cancelled meanwhile."""
        doomed = self._doomed = {}
        try:
            entries = await leasing
        except StoreLost:
            self._unsure = True
            raise
        finally:
            self._doomed = None
        self._announce(entries)
        return [entry for entry in entries if doomed.get(entry.ticket.id, -1) < entry.ticket.attempt]

    def _announce(self, entries: Sequence[Entry]) -> None:
        by_origin: dict[str, list[tuple[str, int]]] = {}
        for entry in entries:
            by_origin.setdefault(entry.ticket.origin, []).append((entry.ticket.id, entry.ticket.attempt))
        for origin, tickets in by_origin.items():
            self._receiver(origin).claimed(tickets)

    async def _send(self, session: Session, replica: Replica, epoch: int, entries: Sequence[Entry]) -> None:
        rows = [row for entry in entries if (row := self._new_row(entry)) is not None]
        if rows:
            self._seq += 1
            self._metrics.batch_sent(len(rows), len(rows) * max(len(row.prompt) for row in rows))
            self._tell(replica)
            await session.send(contract.Batch(epoch, self._seq, rows))

    def _new_row(self, entry: Entry) -> contract.NewRow | None:
        """None if the payload is no Work: whoever can write to the store could have put it there."""
        ticket = entry.ticket
        try:
            work = _decode_work(entry.payload)
        except msgspec.MsgspecError as error:
            failed = Departed(ticket.id, ticket.attempt, contract.End.FAILED, f"unreadable payload: {error}")
            self._deliver({ticket.origin: Mail(departed=[failed])})
            return None
        # An attempt whose origin is gone may still run here.
        self.cancel([(ticket.id, ticket.attempt - 1)])
        return contract.NewRow(
            row=self._roster.add(ticket),
            ticket=ticket.id,
            attempt=ticket.attempt,
            origin=ticket.origin,
            prompt=work.prompt,
            index=ticket.index,
            max_tokens=ticket.max_tokens,
            min_tokens=work.min_tokens,
            stop_ids=work.stop_ids,
            sampling=work.sampling,
            rank=ticket.score,
            tpot_s=ticket.tpot_s if self._config.choice.policy.batch.keeps_pace else 0.0,
        )

    async def _send_cancels(self, session: Session, epoch: int) -> NoReturn:
        while True:
            await self._cancels.wait()
            self._cancels.clear()
            rows = [row for row in self._cancelled if row in self._roster]
            self._cancelled.clear()
            if rows:
                self._seq += 1
                await session.send(contract.Cancel(epoch, self._seq, rows))

    async def _sweep(self, epoch: int) -> None:
        """Let the store forget what is leased to this replica and not in its engine."""
        await self._store.sweep(self.replica, epoch, self._roster.tickets)
        self._unsure = False

    def _is_refused(self, replica: Replica) -> bool:
        """The engine refused a row, and its free memory has not risen since."""
        refused_bytes = self._refused_free_bytes
        if refused_bytes is not None and (not len(self._roster) or _free_bytes(replica.telemetry) > refused_bytes):
            self._refused_free_bytes = None
        return self._refused_free_bytes is not None


def roomiest(drivers: Sequence[Driver]) -> Driver | None:
    """Who should look when work was queued, one driver being enough: of those with room the one with the fewest
    rows.  If none has room, of all, since an urgent request may pass others in the engine."""
    best, fewest = None, inf
    for driver in drivers:
        # As has_room and num_rows, without the calls: there may be many drivers, and every request asks.
        if driver._leased and not driver._is_short and (rows := len(driver._roster)) < fewest:
            best, fewest = driver, rows
    if best is None:
        leading = (driver for driver in drivers if driver.leads)
        best = min(leading, key=lambda driver: driver.num_rows, default=None)
    return best


def _free_bytes(telemetry: contract.Telemetry) -> int:
    return batch.kv_bytes(telemetry) - telemetry.pool_used_bytes
