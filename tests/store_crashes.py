"""Gateways that crash, and answers that get lost, on one store.

Each gateway is an origin and drives replicas, as origin.py, outbox.py and driver.py do.  Before or after any verb
the answer may be lost, or the gateway may die and forget everything.  In the end whatever a living gateway was
asked for has been answered exactly once, and nothing of it is left.
"""

import asyncio
from collections import Counter
from enum import Enum, auto
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import LeaseLost, StoreLost
from gateway.ports import Entry, Store
from gateway.request import ServiceClass, slot_of
from tests.store_contract import ROOMY, entry

REPLICAS = ["replica-1", "replica-2"]
SETS = [(bin, service_class) for bin in range(3) for service_class in ServiceClass]
LEASE_S = 1000.0


class Fate(Enum):
    ANSWERED = auto()
    UNASKED = auto()
    """The question got lost."""
    UNHEARD = auto()
    """The answer got lost."""
    FATAL = auto()
    """Whoever asked died before the answer came."""


class Crashed(Exception):
    pass


class Engine:
    """What a replica runs, under the highest epoch that has attached."""

    def __init__(self) -> None:
        self.epoch = 0
        self.rows: dict[str, int] = {}
        """Attempts by ticket."""


class Driver:
    def __init__(self, replica: str, epoch: int) -> None:
        self.replica = replica
        self.epoch = epoch
        self.seen: list[tuple[str, int]] = []
        self.batch: list[tuple[str, int]] = []
        self.is_unsure = False


class Gateway:
    def __init__(self, name: str) -> None:
        self.name = name
        self.live: dict[str, Entry] = {}
        self.back: dict[str, Entry] = {}
        self.finished: dict[str, int] = {}
        self.cancelled: dict[str, int] = {}
        self.drivers: dict[str, Driver] = {}

    def put_back(self, id: str) -> None:
        draft = self.live[id]
        ticket = msgspec.structs.replace(draft.ticket, attempt=draft.ticket.attempt + 1)
        self.back[id] = self.live[id] = Entry(ticket, draft.payload)

    def drop(self, id: str) -> None:
        self.cancelled[id] = self.live.pop(id).ticket.attempt
        self.back.pop(id, None)


fates = st.sampled_from([[Fate.ANSWERED] * n + [fate] for n in range(3) for fate in Fate] + [[]] * 24)
"""Of a rule's first verbs; two in three go well."""
numbers = st.integers(0, 1)
replicas = st.sampled_from(REPLICAS)


class CrashMachine(RuleBasedStateMachine):
    async def open(self) -> Store:
        raise NotImplementedError

    async def pass_time(self, seconds: float) -> None:
        """On the store's clock."""
        raise NotImplementedError

    async def check_clean(self) -> None:
        """When nothing is queued or leased any more."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.runner.run(self.open())
        self.gateways = [Gateway("gateway-1"), Gateway("gateway-2")]
        self.engines = {replica: Engine() for replica in REPLICAS}
        self.fates: list[Fate] = []
        self.num_gateways = len(self.gateways)
        self.num_calls = 0
        self.now_s = 0.0
        self.leases: dict[str, tuple[str, int, float]] = {}
        """Gateway, epoch and end of each replica's last one."""
        self.leased: set[tuple[str, int]] = set()
        self.answered: set[str] = set()
        for gateway, replica in zip(self.gateways, REPLICAS, strict=True):
            self.run(gateway, self.lead(gateway, replica), [])

    @property
    def drivers(self) -> list[tuple[Gateway, Driver]]:
        return [(gateway, driver) for gateway in self.gateways for driver in gateway.drivers.values()]

    @property
    def waited_for(self) -> list[tuple[Gateway, str]]:
        return [(gateway, id) for gateway in self.gateways for id in gateway.live]

    def run(self, gateway: Gateway, work: Any, fates: list[Fate]) -> None:
        self.fates = list(fates)
        try:
            self.runner.run(work)
        except StoreLost:
            pass
        except Crashed:
            self.gateways.remove(gateway)
            self.num_gateways += 1
            self.gateways.append(Gateway(f"gateway-{self.num_gateways}"))
        self.fates = []

    async def ask(self, verb: str, *args: Any) -> Any:
        fate = self.fates.pop(0) if self.fates else Fate.ANSWERED
        if fate is Fate.UNASKED:
            raise StoreLost
        try:
            answer = await getattr(self.store, verb)(*args)
        except LeaseLost:
            assert not self.holds(*args[:2])
            answer = LeaseLost()
        self.check(verb, args, answer)
        if fate is Fate.UNHEARD:
            raise StoreLost
        if fate is Fate.FATAL:
            raise Crashed
        if isinstance(answer, LeaseLost):
            raise answer
        return answer

    # What must hold of an answer, whether or not it was heard

    def holds(self, replica: str, epoch: int) -> bool:
        _, last, end_s = self.leases.get(replica, ("", 0, 0.0))
        return last == epoch and end_s > self.now_s

    def may_renew(self, replica: str, epoch: int) -> bool:
        """Also if the lease has run out: nobody was elected since."""
        gateway, last, _ = self.leases.get(replica, ("", 0, 0.0))
        return last == epoch and gateway != ""

    def check(self, verb: str, args: tuple[Any, ...], answer: Any) -> None:
        if verb == "elect":
            self.check_elected(*(*args, answer))
        elif verb == "renew":
            assert answer == self.may_renew(*args[:2])
        if verb in ("renew", "resign") and self.may_renew(*args[:2]):
            replica, epoch = args[:2]
            kept = (self.leases[replica][0], epoch, self.now_s + LEASE_S)
            self.leases[replica] = kept if verb == "renew" else ("", epoch, self.now_s)
        if verb in ("claim", "sweep", "start") and not isinstance(answer, LeaseLost):
            assert self.holds(*args[:2]), "only who leads may"
        if verb in ("claim", "start") and answer and not isinstance(answer, LeaseLost):
            drafts = answer if verb == "claim" else args[2]
            leased = {(draft.ticket.id, draft.ticket.attempt) for draft in drafts}
            assert not leased & self.leased, "leased twice under one attempt"
            self.leased |= leased

    def check_elected(self, replica: str, gateway: str, lease_s: float, epoch: int | None) -> None:
        holder, last, end_s = self.leases.get(replica, ("", 0, 0.0))
        is_free = end_s <= self.now_s or holder == gateway
        assert (epoch is not None) == is_free, "one holder at a time"
        if epoch is not None:
            assert epoch > last
            self.leases[replica] = (gateway, epoch, self.now_s + lease_s)

    # What an origin does

    async def arrive(self, gateway: Gateway, drafts: list[Entry]) -> None:
        gateway.live |= {draft.ticket.id: draft for draft in drafts}
        try:
            scores = await self.ask("put", drafts, ROOMY)
        except StoreLost:
            for draft in drafts:
                gateway.drop(draft.ticket.id)
            return
        for draft, score in zip(drafts, scores, strict=True):
            ticket = msgspec.structs.replace(draft.ticket, score=score)
            gateway.live[ticket.id] = Entry(ticket, draft.payload)

    async def start(self, gateway: Gateway, driver: Driver, drafts: list[Entry]) -> None:
        """At once, if nothing waits; as driver.py does, what it is not sure of is put."""
        gateway.live |= {draft.ticket.id: draft for draft in drafts}
        try:
            scores = await self.ask("start", driver.replica, driver.epoch, drafts, {})
        except StoreLost:
            driver.is_unsure = True
            scores = None
        except LeaseLost:
            await self.arrive(gateway, drafts)
            raise
        if scores is None:
            await self.arrive(gateway, drafts)
        else:
            driver.batch += [(draft.ticket.id, draft.ticket.attempt) for draft in drafts]

    async def settle(self, gateway: Gateway) -> None:
        if gateway.back:
            await self.ask("put_back", list(gateway.back.values()))
            gateway.back.clear()
        if gateway.finished:
            await self.ask("finish", list(gateway.finished.items()))
            gateway.finished.clear()
        if gateway.cancelled:
            self.stop(gateway.cancelled)
            leased = await self.ask("cancel", list(gateway.cancelled.items()))
            self.stop({id: gateway.cancelled[id] for id, _ in leased})
            gateway.cancelled.clear()

    async def audit(self, gateway: Gateway) -> None:
        asked = [(id, draft.ticket.attempt) for id, draft in gateway.live.items() if id not in gateway.back]
        for id in await self.ask("audit", gateway.name, asked, LEASE_S):
            gateway.put_back(id)

    async def reap(self, limit: int) -> None:
        self.stop({id: 99 for id, _ in await self.ask("reap", limit)})

    def stop(self, attempts: dict[str, int]) -> None:
        """Rows up to these attempts are freed, those under way included."""
        for engine in self.engines.values():
            engine.rows = {id: n for id, n in engine.rows.items() if n > attempts.get(id, -1)}
        for _, driver in self.drivers:
            driver.batch = [(id, n) for id, n in driver.batch if n > attempts.get(id, -1)]

    # What a driver does

    async def lead(self, gateway: Gateway, replica: str) -> None:
        epoch = await self.ask("elect", replica, gateway.name, LEASE_S)
        engine = self.engines[replica]
        if epoch is None or epoch < engine.epoch:
            return
        engine.epoch = epoch
        await self.sweep(driver := Driver(replica, epoch))
        gateway.drivers[replica] = driver

    async def sweep(self, driver: Driver) -> None:
        live = [*self.engines[driver.replica].rows.items(), *driver.batch]
        await self.ask("sweep", driver.replica, driver.epoch, live)
        driver.is_unsure = False

    async def look(self, driver: Driver) -> None:
        driver.seen = [(ticket.id, ticket.attempt) for ticket in await self.ask("peek", SETS, 3)]

    async def claim(self, driver: Driver) -> None:
        if driver.is_unsure:
            await self.sweep(driver)
        if not driver.seen:
            await self.look(driver)
        try:
            claimed = await self.ask("claim", driver.replica, driver.epoch, driver.seen, {})
        except StoreLost:
            driver.is_unsure = True
            raise
        driver.batch += [(draft.ticket.id, draft.ticket.attempt) for draft in claimed]
        driver.seen = []

    def send(self, driver: Driver) -> None:
        engine = self.engines[driver.replica]
        if engine.epoch == driver.epoch:
            engine.rows |= dict(driver.batch)
            driver.batch = []

    def end(self, replica: str, id: str) -> None:
        """A row is complete; whoever still waits for this attempt hears of it."""
        attempt = self.engines[replica].rows.pop(id)
        for gateway in self.gateways:
            if id in gateway.live and gateway.live[id].ticket.attempt == attempt:
                assert id not in self.answered
                self.answered.add(id)
                del gateway.live[id]
                gateway.back.pop(id, None)
                gateway.finished[id] = attempt

    # Rules

    @rule(
        number=numbers,
        count=st.integers(1, 3),
        bin=st.integers(0, 2),
        service_class=st.sampled_from(ServiceClass),
        tokens=st.integers(0, 99),
        seconds=st.floats(0, 9),
        starts=st.booleans(),
        fates=fates,
    )
    def a_call_arrives(
        self, number: int, count: int, fates: list[Fate], tokens: int, starts: bool, **fields: Any
    ) -> None:
        gateway = self.gateways[number]
        self.num_calls += 1
        drafts = [
            entry(f"{self.num_calls}/{i}", origin=gateway.name, prompt_tokens=tokens, **fields)
            for i in range(count)
        ]
        driver = next(iter(gateway.drivers.values()), None)
        if starts and driver is not None and not driver.is_unsure:
            starting = self.start(gateway, driver, drafts)
            self.run(gateway, self.unless_lost(gateway, driver, starting), fates)
        else:
            self.run(gateway, self.arrive(gateway, drafts), fates)

    @rule(number=numbers, what=st.sampled_from(["settle", "settle", "audit", "reap"]), fates=fates)
    def an_origin_works(self, number: int, what: str, fates: list[Fate]) -> None:
        gateway = self.gateways[number]
        self.run(gateway, self.reap(3) if what == "reap" else getattr(self, what)(gateway), fates)

    @precondition(lambda self: self.waited_for)
    @rule(index=st.integers(0, 9), is_silent=st.booleans())
    def a_client_leaves_or_a_ticket_is_silent(self, index: int, is_silent: bool) -> None:
        gateway, id = self.waited_for[index % len(self.waited_for)]
        gateway.put_back(id) if is_silent else gateway.drop(id)

    @rule(number=numbers, replica=replicas, fates=fates)
    def a_gateway_wants_to_drive(self, number: int, replica: str, fates: list[Fate]) -> None:
        self.run(self.gateways[number], self.lead(self.gateways[number], replica), fates)

    @precondition(lambda self: self.drivers)
    @rule(index=st.integers(0, 9), sends=st.booleans(), fates=fates)
    def a_driver_claims(self, index: int, sends: bool, fates: list[Fate]) -> None:
        gateway, driver = self.drivers[index % len(self.drivers)]
        self.run(gateway, self.unless_lost(gateway, driver, self.claim(driver)), fates)
        if sends and (gateway, driver) in self.drivers:
            self.send(driver)

    @precondition(lambda self: self.drivers)
    @rule(index=st.integers(0, 9), what=st.sampled_from(["look", "send", "send", "renew", "resign"]), fates=fates)
    def a_driver_works(self, index: int, what: str, fates: list[Fate]) -> None:
        gateway, driver = self.drivers[index % len(self.drivers)]
        if what == "send":
            self.send(driver)
        elif what == "look":
            self.run(gateway, self.look(driver), fates)
        else:
            lease = (LEASE_S, b"") if what == "renew" else ()
            self.run(gateway, self.ask(what, driver.replica, driver.epoch, *lease), fates)

    async def unless_lost(self, gateway: Gateway, driver: Driver, work: Any) -> None:
        try:
            await work
        except LeaseLost:
            del gateway.drivers[driver.replica]

    @precondition(lambda self: any(engine.rows for engine in self.engines.values()))
    @rule(index=st.integers(0, 9), dies=st.sampled_from([False, False, True]))
    def a_row_is_complete_or_its_engine_dies(self, index: int, dies: bool) -> None:
        rows = [(replica, id) for replica, engine in self.engines.items() for id in engine.rows]
        replica, id = rows[index % len(rows)]
        if dies:
            self.engines[replica].rows.clear()
        else:
            self.end(replica, id)

    @rule(renewed=st.sampled_from([REPLICAS, REPLICAS, REPLICAS[:1], []]))
    def time_passes(self, renewed: list[str]) -> None:
        """Longer than a lease; who lives gives signs of it in between."""
        self.runner.run(self.half_a_lease())
        for gateway in list(self.gateways):
            self.run(gateway, self.audit(gateway), [])
            for replica in set(renewed) & set(gateway.drivers):
                epoch = gateway.drivers[replica].epoch
                self.run(gateway, self.ask("renew", replica, epoch, LEASE_S, b""), [])
        self.runner.run(self.half_a_lease())

    async def half_a_lease(self) -> None:
        self.now_s += 0.6 * LEASE_S
        await self.pass_time(0.6 * LEASE_S)

    @invariant()
    def what_is_counted_is_what_is_queued(self) -> None:
        self.runner.run(self.balance())

    async def balance(self) -> None:
        tickets = await self.store.peek(SETS, 9999)
        queue = await self.store.queue()
        assert (queue.tickets, queue.tokens, queue.bytes) == (
            len(tickets),
            sum(ticket.prompt_tokens for ticket in tickets),
            sum(ticket.size_bytes for ticket in tickets),
        )
        counts = Counter((ticket.bin, ticket.service_class) for ticket in tickets)
        assert {(head.bin, head.service_class): head.count for head in queue.heads} == counts
        sums: Counter[tuple[ServiceClass, int, str]] = Counter()
        for ticket in tickets:
            slot = ticket.service_class, slot_of(ticket.score, ticket.slack_s)
            sums[*slot, "tokens"] += ticket.prompt_tokens
            sums[*slot, "us"] += round(ticket.seconds * 1e6)
        backlog: Counter[tuple[ServiceClass, int, str]] = Counter()
        for (service_class, number), sum_ in (await self.store.backlog(ServiceClass.DEFAULT, "")).slots.items():
            backlog[service_class, number, "tokens"] = sum_.tokens
            backlog[service_class, number, "us"] = round(sum_.seconds * 1e6)
        assert backlog == sums

    # The end

    def teardown(self) -> None:
        try:
            self.runner.run(self.drain())
        finally:
            self.runner.run(self.store.aclose())
            self.runner.close()

    async def drain(self) -> None:
        """Nothing is lost any more: all that living gateways still wait for is answered within a few rounds."""
        self.fates = []
        for _ in range(2):
            await self.half_a_lease()
            for gateway in self.gateways:
                await self.audit(gateway)
        await self.reap(9999)
        leader = self.gateways[0]
        for replica in REPLICAS:
            await self.lead(leader, replica)
        for _ in range(3):
            for gateway in self.gateways:
                await self.settle(gateway)
                await self.audit(gateway)
                await self.settle(gateway)
            for replica, engine in self.engines.items():
                driver = leader.drivers[replica]
                driver.seen = [(ticket.id, ticket.attempt) for ticket in await self.ask("peek", SETS, 9999)]
                await self.claim(driver)
                self.send(driver)
                for id in list(engine.rows):
                    self.end(replica, id)
        assert [gateway.live for gateway in self.gateways] == [{}, {}], "lost"
        for gateway in self.gateways:
            await self.settle(gateway)
        for driver in leader.drivers.values():
            assert await self.ask("sweep", driver.replica, driver.epoch, []) == [], "leased for ever"
        queue = await self.store.queue()
        assert (queue.tickets, queue.tokens, queue.bytes, queue.heads) == (0, 0, 0, [])
        await self.balance()
        await self.check_clean()
