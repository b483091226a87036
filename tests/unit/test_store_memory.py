"""The memory store on an injected clock: nothing here waits."""

from collections.abc import Awaitable, Callable

import pytest

from gateway.store.memory import MemoryStore
from tests.store_contract import FLEX, LEASE_S, StoreContract, entry, put, record
from tests.store_crashes import CrashMachine
from tests.store_machine import MACHINE_TIMEOUT_S, StoreMachine, run_machine


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def tick(self) -> None:
        self.now_s += LEASE_S / 4


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def tick(clock: Clock) -> Callable[[], Awaitable[None]]:
    return clock.tick


class TestMemoryStore(StoreContract):
    pass


@pytest.mark.asyncio
async def test_scores_are_exact(clock: Clock, store: MemoryStore) -> None:
    assert await put(store, entry("a/0"), entry("a/1"), entry("a/2", tenant="b")) == [1001.0, 1001.25, 1001.0]
    clock.now_s = 1000.375
    assert await put(store, entry("a/3")) == [1001.5]
    clock.now_s = 2000.0
    assert await put(store, entry("a/4", service_class=FLEX), entry("a/5")) == [2001.0, 2001.0]


@pytest.mark.asyncio
async def test_an_origin_counts_as_alive_for_its_grace(clock: Clock) -> None:
    store = MemoryStore(clock, grace_s=10)
    await put(store, entry("a/0"))
    clock.now_s += 9.9
    await store.reap(9)
    assert (await store.queue()).tickets == 1
    clock.now_s += 0.1
    await store.reap(9)
    assert (await store.queue()).tickets == 0


@pytest.mark.asyncio
async def test_tags_of_the_past_do_not_pile_up(clock: Clock, store: MemoryStore) -> None:
    for i in range(2000):
        await put(store, entry(f"a/{i}", tenant=f"tenant {i}"))
        clock.now_s += 1
    assert len(store._tags) < 100


@pytest.mark.asyncio
async def test_expired_records_do_not_pile_up(clock: Clock, store: MemoryStore) -> None:
    for i in range(2000):
        await store.keep([record(f"{i}")], 10)
        clock.now_s += 1
    assert len(store._records._kept) < 100


class MemoryMachine(StoreMachine):
    async def open(self) -> MemoryStore:
        return MemoryStore(Clock())


@pytest.mark.timeout(MACHINE_TIMEOUT_S)
def test_it_agrees_with_the_model() -> None:
    run_machine(MemoryMachine, max_examples=60, stateful_step_count=40)


class CrashingMachine(CrashMachine):
    async def open(self) -> MemoryStore:
        self.clock = Clock()
        return MemoryStore(self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.now_s += seconds


@pytest.mark.timeout(MACHINE_TIMEOUT_S)
def test_nothing_is_lost_or_doubled_when_gateways_crash() -> None:
    run_machine(CrashingMachine, max_examples=60, stateful_step_count=40)
