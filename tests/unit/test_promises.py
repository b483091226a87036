"""Deadlines, priorities and evictions through the whole gateway, on virtual time."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from gateway.chooser import Chooser
from gateway.errors import DeadlineExceeded, QueueFull, TooManyRequests
from gateway.fleet import Replica
from gateway.metrics import Metrics
from gateway.policy import bucket
from gateway.policy.guard import MAX_PASSED
from gateway.policy.preset import BUCKETSERVE, FULL, Policy
from gateway.ports import Entry, Limits
from gateway.request import Backlog, Delta, FinishReason, Profile, Request, ServiceClass, Targets, Ticket
from gateway.roster import Roster
from gateway.store.memory import MemoryStore
from gateway.ticketing import Aim
from tests.unit.fakes import clock
from tests.unit.fakes.engine import STEP_S, FakeBackend, token_at
from tests.unit.fakes.world import DRIVER, ORIGIN, World
from triton_backend import contract
from triton_backend.contract import Attached, ModelInfo, Sampling, Telemetry
from triton_backend.memory import Paged

PRIORITY, DEFAULT, FLEX = ServiceClass


def play(scenario: Callable[[World], Coroutine[Any, Any, None]], config: Any = ORIGIN, **engine: int) -> None:
    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())
        world = World(store, [FakeBackend("r0", **engine)], config)
        async with world.running(), asyncio.timeout(3600):
            await scenario(world)
            await asyncio.sleep(1.0)
            assert await world.is_idle()

    clock.run(main())


def request(tokens: int, service_class: ServiceClass = DEFAULT, prompt: int = 10, **targets: float) -> Request:
    return Request(
        model="fake",
        prompts=[[7] * prompt],
        max_tokens=tokens,
        ignore_eos=True,
        sampling=Sampling(0.0),
        service_class=service_class,
        targets=Targets(**targets),
    )


async def ask(world: World, request: Request, call_id: str) -> tuple[list[int], FinishReason | None, str]:
    """Tokens, finish reason and detail."""
    deltas: list[Delta] = []
    async with world.origin.open(request, call_id, asyncio.get_running_loop().time()) as call:
        await call.read(deltas.extend)
    return [token for delta in deltas for token in delta.tokens], deltas[-1].finish_reason, deltas[-1].detail


def answer(request: Request) -> list[int]:
    (prompt,) = request.prompts
    return [token_at(prompt, index) for index in range(request.max_tokens or 0)]  # type: ignore[arg-type]


# Deadlines


def test_a_deadline_ends_a_running_answer_with_what_it_has() -> None:
    async def scenario(world: World) -> None:
        asked = request(300, deadline_s=1.0)
        begun_s = asyncio.get_running_loop().time()
        tokens, reason, detail = await ask(world, asked, "c")
        assert asyncio.get_running_loop().time() - begun_s == pytest.approx(1.0)
        assert (reason, detail) == (FinishReason.LENGTH, "deadline")
        assert 0.7 / STEP_S < len(tokens) <= 1.0 / STEP_S
        assert tokens == answer(asked)[: len(tokens)]

    play(scenario)


def test_a_deadline_that_is_kept_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        asked = request(20, deadline_s=30.0)
        assert await ask(world, asked, "c") == (answer(asked), FinishReason.LENGTH, "")
        await asyncio.sleep(60)

    play(scenario)


def test_a_queued_request_past_its_deadline_is_told_not_to_come_back() -> None:
    async def scenario(world: World) -> None:
        blocker = asyncio.create_task(ask(world, request(400, prompt=100), "blocker"))
        await asyncio.sleep(0.5)
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded) as caught:
            await ask(world, request(400, prompt=100, deadline_s=2.0), "late")
        assert asyncio.get_running_loop().time() - begun_s == pytest.approx(2.0)
        assert caught.value.should_retry is False
        assert (await world.store.queue()).tickets == 0
        await blocker

    play(scenario)


# Admission


def test_what_cannot_be_kept_is_refused_at_once_with_a_time_to_return() -> None:
    config = msgspec.structs.replace(ORIGIN, policy=FULL)

    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()

        async def one(number: int) -> float | None:
            """When to come back, or None if it was served."""
            try:
                await ask(world, request(300, prompt=200), f"c{number}")
            except TooManyRequests as refused:
                assert loop.time() - begun_s < 30.0
                return refused.retry_after_s
            return None

        warm = [await one(number) for number in range(3)]
        begun_s = loop.time()
        told = await asyncio.gather(*(one(number) for number in range(10, 60)))
        assert warm == [None] * 3
        refused = [at for at in told if at is not None]
        assert 0 < len(refused) < 50
        assert all(1.0 <= at <= 120.0 for at in refused)
        assert len(set(refused)) == len(refused)

    play(scenario, config)


class Asked(MemoryStore):
    """How often what waits was asked for, and puts were refused."""

    def __init__(self) -> None:
        super().__init__(clock.of_store())
        self.num_backlogs = self.num_refused = 0

    async def backlog(self, service_class: ServiceClass, tenant: str) -> Backlog:
        self.num_backlogs += 1
        return await super().backlog(service_class, tenant)

    async def put(self, entries: Sequence[Entry], limits: Limits) -> list[float]:
        try:
            return await super().put(entries, limits)
        except QueueFull:
            self.num_refused += 1
            raise


def test_while_nothing_waits_it_is_asked_once_a_second_and_the_put_tells_when_that_is_over() -> None:
    async def main() -> None:
        store = Asked()
        config = msgspec.structs.replace(ORIGIN, policy=FULL)
        async with World(store, [FakeBackend("r0")], config).running() as world:
            for number in range(3):
                await ask(world, request(2), f"one after the other {number}")
            assert store.num_backlogs == 1
            await asyncio.sleep(2.0)
            await ask(world, request(2), "later")
            assert (store.num_backlogs, store.num_refused) == (2, 0)
            together = [ask(world, request(2), f"together {number}") for number in range(3)]
            assert [len(tokens) for tokens, _, _ in await asyncio.gather(*together)] == [2, 2, 2]
            # One of them was offered to the driver, until others came.
            assert (store.num_backlogs, store.num_refused) == (3, 1)

    clock.run(main())


class FarAway(Asked):
    """What waits is known a little later, when others have come in."""

    async def backlog(self, service_class: ServiceClass, tenant: str) -> Backlog:
        backlog = await super().backlog(service_class, tenant)
        await asyncio.sleep(0.01)
        return backlog


def test_whoever_has_time_to_spare_is_let_in_however_many_come_at_the_same_time() -> None:
    async def main() -> None:
        config = msgspec.structs.replace(ORIGIN, policy=FULL, aims=dict.fromkeys(ServiceClass, Aim(5.0, 5.0)))
        store = FarAway()
        async with World(store, [FakeBackend("r0")], config).running() as world:
            await ask(world, request(20), "warm")
            asked = request(300)
            together = [ask(world, asked, f"together {number}") for number in range(30)]
            assert [tokens for tokens, _, _ in await asyncio.gather(*together)] == 30 * [answer(asked)]
            # But for the one that was put first, and the one that was put when that had been claimed.
            assert store.num_refused == 30 - 2

    clock.run(main())


def test_a_target_that_no_replica_could_keep_is_refused_for_good() -> None:
    async def scenario(world: World) -> None:
        await ask(world, request(20, prompt=300), "warm")
        with pytest.raises(TooManyRequests, match="ask for more time") as caught:
            await ask(world, request(20, prompt=300, ttft_s=0.005), "impossible")
        assert caught.value.should_retry is False
        assert caught.value.retry_after_s is None
        # A class's target is not the client's: the long prompt is let in whatever it takes.
        assert len((await ask(world, request(20, prompt=300), "long"))[0]) == 20

    play(
        scenario,
        msgspec.structs.replace(ORIGIN, policy=FULL, aims=dict.fromkeys(ServiceClass, Aim(0.004, 1.0))),
    )


def test_without_capacity_measured_nobody_is_refused() -> None:
    async def scenario(world: World) -> None:
        asked = request(20, ttft_s=0.001)
        assert (await ask(world, asked, "c"))[0] == answer(asked)

    play(scenario, msgspec.structs.replace(ORIGIN, policy=FULL))


def test_a_replica_that_was_slow_is_found_to_be_fast_again_though_nothing_waits() -> None:
    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        await ask(world, request(20), "warm")
        drain = world.fleet.replicas["r0"].drain
        drain.rate = 1e-3
        begun_s = loop.time()
        while loop.time() - begun_s < 70.0:
            await ask(world, request(200, prompt=200), f"at {loop.time()}")
        assert drain.rate > 0.01

    play(scenario, msgspec.structs.replace(ORIGIN, policy=FULL))


def test_met_targets_are_counted() -> None:
    async def scenario(world: World) -> None:
        await ask(world, request(20), "kept")
        await ask(world, request(20, tpot_s=0.5, ttft_s=0.25), "kept too")
        blocker = asyncio.create_task(ask(world, request(400, prompt=100), "blocker"))
        await asyncio.sleep(0.5)
        await ask(world, request(400, prompt=100), "late")
        await blocker
        lines = world.metrics.render().decode().splitlines()
        assert 'bucketserve_targets_total{met="both",service_class="default"} 3.0' in lines
        assert 'bucketserve_targets_total{met="tpot",service_class="default"} 1.0' in lines

    play(scenario)


# Classes


def test_flex_rows_make_room_at_most_twice_and_lose_nothing() -> None:
    """Each flex row takes the whole memory to its end; urgent calls come in between."""

    async def scenario(world: World) -> None:
        bulk = [request(350, FLEX, prompt=100 + number) for number in range(2)]
        running = [asyncio.create_task(ask(world, asked, f"bulk{at}")) for at, asked in enumerate(bulk)]
        for number in range(6):
            await asyncio.sleep(0.7)
            urgent = request(30, PRIORITY, prompt=400)
            begun_s = asyncio.get_running_loop().time()
            assert (await ask(world, urgent, f"urgent{number}"))[0] == answer(urgent)
            if number < 2:
                assert asyncio.get_running_loop().time() - begun_s < 1.5
        for task, asked in zip(running, bulk, strict=True):
            assert (await task)[0] == answer(asked)
        evicted = world.metrics.render().decode()
        (count,) = [
            float(line.split()[1])
            for line in evicted.splitlines()
            if line.startswith("bucketserve_preempted_rows_total ")
        ]
        assert 1 <= count <= 4

    play(scenario)


def test_default_work_is_not_made_room_of() -> None:
    async def scenario(world: World) -> None:
        first = asyncio.create_task(ask(world, request(300, DEFAULT, prompt=200), "first"))
        await asyncio.sleep(0.5)
        await ask(world, request(30, PRIORITY, prompt=400), "urgent")
        assert first.done()
        await first

    play(scenario)


def telemetry() -> Telemetry:
    return Telemetry(
        pool_capacity_bytes=10**9,
        pool_used_bytes=0,
        pool_growable_bytes=0,
        device_free_bytes=10**9,
        device_total_bytes=10**9,
        process_bytes=0,
        running=0,
        waiting=0,
        step_s=0.01,
        prefill_tokens_per_s=1000.0,
        decode_tokens_per_s=1000.0,
        out_of_memory_total=0,
    )


def entry(number: int, service_class: ServiceClass, slack_s: float) -> Entry:
    ticket = Ticket(
        id=f"{service_class}{number}/0",
        origin="g",
        service_class=service_class,
        prompt_tokens=100 + number % 50,
        max_tokens=10,
        profile=Profile(10, 10),
        bin=bucket.bin_of(100 + number % 50),
        slack_s=slack_s,
        cost_s=0.0,
        seconds=0.1,
        size_bytes=4,
    )
    return Entry(ticket, b"work")


@pytest.mark.timeout(60)
def test_a_hundred_thousand_bulk_requests_delay_others_by_their_share_only() -> None:
    """Whatever waits in flex, a default request is among the next batches; and flex goes on with its tenth."""

    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())
        limits = Limits(10**6, 10**9, 10**9)
        for start in range(0, 100_000, 1000):
            await store.put([entry(start + number, FLEX, 60.0) for number in range(1000)], limits)
        model = ModelInfo("m", 4096, 100, "none", "none")
        replica = Replica(Attached(1, 2, model, Paged(16, 1), [], telemetry()), 0.9)
        chooser = Chooser(store, Roster(), DRIVER.choice, Metrics(CollectorRegistry(), "m"))
        epoch = await store.elect("r", "g", 1e9)
        assert epoch is not None

        async def batch() -> list[ServiceClass]:
            queue = await store.queue()
            chosen, _ = await chooser.choose(queue, replica)
            claimed = await store.claim("r", epoch, [(t.id, 0) for t in chosen], chooser.charge(queue, chosen))
            return [entry.ticket.service_class for entry in claimed]

        for _ in range(20):
            assert set(await batch()) == {FLEX}
        # One client asks for a 1 ms target and sends a lot; it cannot keep the others of its class out.
        await store.put([entry(number, DEFAULT, 0.5) for number in range(300)], limits)
        assert set(await batch()) | set(await batch()) >= {DEFAULT}
        counts = {DEFAULT: 0, FLEX: 0}
        for _ in range(40):
            for service_class in await batch():
                counts[service_class] += 1
        # Shares 0.3 to 0.1 while both have work.
        assert 0.2 < counts[FLEX] / (counts[FLEX] + counts[DEFAULT]) < 0.3

    clock.run(main())


def test_room_is_held_for_nobody_who_has_started_elsewhere_however_many_like_it_wait() -> None:
    """Ten large ones were passed until they were held for; another replica takes them all."""

    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())

        def sized(number: int, tokens: int) -> Entry:
            ticket = entry(number, DEFAULT, 5.0 if tokens > 300 else 1.0).ticket
            bin, id = bucket.bin_of(tokens), f"{tokens}-{number}/0"
            return Entry(msgspec.structs.replace(ticket, id=id, prompt_tokens=tokens, bin=bin), b"work")

        await store.put([sized(number, 800) for number in range(10)], Limits(10**6, 10**9, 10**9))
        large = (await store.queue()).shown
        await asyncio.sleep(0.1)
        await store.put([sized(number, 800) for number in range(10, 300)], Limits(10**6, 10**9, 10**9))
        await store.put([sized(number, 300) for number in range(9)], Limits(10**6, 10**9, 10**9))
        model = ModelInfo("m", 4096, 100, "none", "none")
        tight = msgspec.structs.replace(telemetry(), pool_capacity_bytes=1200)
        replica = Replica(Attached(1, 2, model, Paged(16, 1), [], tight), 0.9)
        roster = Roster()
        running = msgspec.structs.replace(sized(999, 500).ticket, profile=Profile(100, 100), max_tokens=100)
        roster.add(running)
        roster.step(contract.Step(0, tight, rows=[1], indexes=[0], tokens=[7]))
        chooser = Chooser(store, roster, DRIVER.choice, Metrics(CollectorRegistry(), "m"))
        for _ in range(MAX_PASSED):
            chooser._guard.note(large, [], 0.0)
        assert await chooser.choose(await store.queue(), replica) == ([], [])
        epoch = await store.elect("another", "h", 1e9)
        assert epoch is not None
        await store.claim("another", epoch, [(ticket.id, 0) for ticket in large], {})
        chosen, _ = await chooser.choose(await store.queue(), replica)
        assert {ticket.prompt_tokens for ticket in chosen} == {300}

    clock.run(main())


@pytest.mark.parametrize("policy", [FULL, BUCKETSERVE], ids=["full", "bucketserve"])
def test_buckets_are_thought_over_though_the_stores_clock_was_set_back(policy: Policy) -> None:
    async def main() -> None:
        ahead_s = 40_000.0
        store = MemoryStore(clock=lambda: ahead_s + asyncio.get_running_loop().time())
        model = ModelInfo("m", 4096, 100, "none", "none")
        replica = Replica(Attached(1, 2, model, Paged(16, 1), [], telemetry()), 0.9)
        config = msgspec.structs.replace(DRIVER.choice, policy=policy)
        chooser = Chooser(store, Roster(), config, Metrics(CollectorRegistry(), "m"))
        tables = []
        for factor in (1, 20):
            short = [entry(number, DEFAULT, 5.0).ticket for number in range(200)]
            tickets = [msgspec.structs.replace(t, bin=bucket.bin_of(factor * t.prompt_tokens)) for t in short]
            await store.put([Entry(ticket, b"work") for ticket in tickets], Limits(10**6, 10**9, 10**9))
            queue = await store.queue()
            chooser.charge(queue, tickets)
            await chooser.rebucket(queue, replica)
            tables.append((await store.queue()).bounds)
            ahead_s = 0.0
            await asyncio.sleep(2.0)
        assert tables[0] != tables[1] or policy is BUCKETSERVE

    clock.run(main())


def test_the_wait_of_a_request_is_bounded_by_its_slack_and_the_earlier_work() -> None:
    """Tight targets of later requests do not push an earlier one back beyond slack + earlier work / rate."""

    async def main() -> None:
        now = asyncio.get_running_loop().time
        store = MemoryStore(clock=now)
        limits = Limits(10**6, 10**9, 10**9)
        await store.put([entry(0, DEFAULT, 5.0)], limits)
        served_at = None
        for second in range(20):
            # Work for one second comes every second, all of it with a tight target.
            await store.put([entry(1 + 10 * second + n, DEFAULT, 0.5) for n in range(10)], limits)
            epoch = await store.elect("r", "g", 1e9)
            assert epoch is not None
            queue = await store.queue()
            heads = [(head.bin, DEFAULT) for head in queue.heads]
            first = await store.peek(heads, 10)
            claimed = await store.claim("r", epoch, [(t.id, 0) for t in first], {})
            if any(c.ticket.id == "default0/0" for c in claimed):
                served_at = now()
                break
            await asyncio.sleep(1.0)
        assert served_at is not None and served_at <= 5.0 + 1.0

    clock.run(main())
