"""Tenants in memory on an injected clock, where a minute costs nothing."""

from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ports import Denied, Granted
from gateway.quota import Quota
from gateway.store.memory_tenants import MemoryTenants
from gateway.store.minute import SECONDS, Minute
from tests.store_contract import LEASE_S
from tests.tenants_contract import TenantsContract, bound, reserve, used


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.25

    def __call__(self) -> float:
        return self.now_s

    async def tick(self) -> None:
        self.now_s += LEASE_S / 4


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tenants(clock: Clock) -> MemoryTenants:
    return MemoryTenants(clock)


@pytest.fixture
def tick(clock: Clock) -> Callable[[], Awaitable[None]]:
    return clock.tick


class TestMemoryTenants(TenantsContract):
    pass


@pytest.mark.asyncio
async def test_whoever_waits_as_told_gets_in_and_not_before(clock: Clock, tenants: MemoryTenants) -> None:
    quota = Quota(requests_per_minute=2, tokens_per_minute=100)
    await reserve(tenants, quota, tokens=10)
    clock.now_s += 20
    await reserve(tenants, quota, tokens=50)
    answer = await reserve(tenants, quota, tokens=60)
    assert isinstance(answer, Denied)
    assert (answer.bound, answer.wait_s) == ("tokens", 60.75), "the later of the two must go"
    answer = await reserve(tenants, quota, tokens=40)
    assert isinstance(answer, Denied)
    assert (answer.bound, answer.wait_s) == ("requests", 40.75), "the earlier is enough"
    clock.now_s += 40.5
    assert bound(await reserve(tenants, quota, tokens=40)) == "requests"
    clock.now_s += 0.25
    answer = await reserve(tenants, quota, tokens=40)
    assert isinstance(answer, Granted)
    assert answer.allowance.requests and answer.allowance.requests.reset_s == 61.0


@pytest.mark.asyncio
async def test_what_a_long_answer_used_beyond_counts_when_it_is_settled(
    clock: Clock, tenants: MemoryTenants
) -> None:
    await reserve(tenants, Quota(), tokens=100, id="more", ttl_s=1000)
    await reserve(tenants, Quota(), tokens=100, id="less", ttl_s=1000)
    clock.now_s += 300
    await tenants.settle("acme", {"more": 150, "less": 10})
    assert await used(tenants) == (0, 50)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40), st.booleans()), max_size=80),
    st.integers(1, 6),
    st.integers(40, 90),
)
def test_no_sixty_seconds_pass_a_bound(steps: list[tuple[float, int, bool]], requests: int, tokens: int) -> None:
    """And whatever is denied would have passed one, counted to a second."""
    minutes, now_s = (Minute(), Minute()), 1000.0
    granted: list[tuple[float, int]] = []
    for pause_s, more, _ in steps:
        now_s += pause_s
        second = int(now_s)
        uses = minutes[0].look(second, 1, requests), minutes[1].look(second, more, tokens)
        counted = [(at, size) for at, size in granted if int(at) > second - SECONDS]
        fits = len(counted) < requests and sum(size for _, size in counted) + more <= tokens
        assert fits == (not any(use.full for use in uses))
        if fits:
            minutes[0].add(second, 1)
            minutes[1].add(second, more)
            granted.append((now_s, more))
    for end, _ in granted:
        minute = [size for at, size in granted if end - 60 < at <= end]
        assert len(minute) <= requests
        assert sum(minute) <= tokens
