"""Reservations on virtual time: what is taken before a call is queued comes back or is paid for in the end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import pytest

from gateway.chooser import Chooser
from gateway.errors import ApiError, OverQuota, StoreLost, TooManyRequests, Unavailable
from gateway.policy.preset import FULL
from gateway.ports import Denied, Granted, Limits
from gateway.quota import Quota
from gateway.request import Delta, Request, ServiceClass, Tenant, Ticket
from gateway.reservations import TTL_S
from gateway.roster import Roster
from gateway.store.memory import MemoryStore
from gateway.store.memory_tenants import MemoryTenants
from gateway.ticketing import Aim
from tests.tenants_contract import used
from tests.unit.fakes import clock
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.reader import Left
from tests.unit.fakes.world import DRIVER, ORIGIN, World
from triton_backend.contract import Sampling

ACME = Tenant("acme", quota=Quota(100, 1000, 10))
BEGUN_S = 100.0
"""Away from second 0 of a clock that begins there."""
Scenario = Callable[[World, "FlakyTenants"], Awaitable[None]]


class FlakyTenants(MemoryTenants):
    """Loses the answers of the verbs in `lost`, after or before they happened."""

    def __init__(self) -> None:
        super().__init__(lambda: BEGUN_S + asyncio.get_running_loop().time())
        self.lost: set[str] = set()
        self.happens = True
        self.slow_s = 0.0
        self.prolonged: list[list[str]] = []

    async def reserve(
        self, tenant: str, id: str, tokens: int, quota: Quota, ttl_s: float, former: str = ""
    ) -> Granted | Denied:
        if self.happens:
            answer = await super().reserve(tenant, id, tokens, quota, ttl_s, former)
        await asyncio.sleep(self.slow_s)
        self._answer("reserve")
        return answer

    async def prolong(self, tenant: str, ids: Sequence[str], ttl_s: float) -> None:
        self._answer("prolong")
        self.prolonged.append(list(ids))
        await super().prolong(tenant, ids, ttl_s)

    async def settle(self, tenant: str, used: Mapping[str, int | None]) -> None:
        if self.happens:
            await super().settle(tenant, used)
        self._answer("settle")

    def _answer(self, verb: str) -> None:
        if verb in self.lost:
            raise StoreLost("no answer in time")


def play(scenario: Scenario, limits: Limits = ORIGIN.limits) -> None:
    async def main() -> None:
        tenants = FlakyTenants()
        store = MemoryStore(clock=clock.of_store())
        config = msgspec.structs.replace(ORIGIN, limits=limits)
        world = World(store, [FakeBackend("r")], config, tenants=tenants)
        async with world.running():
            await scenario(world, tenants)
            await world.origin.idle()
            await asyncio.sleep(1.0)
            assert await world.is_idle()
            assert not await streams(tenants)

    clock.run(main())


async def streams(tenants: MemoryTenants) -> int:
    """How many count: as many as leave no room for one more."""
    for most in range(50):
        answer = await MemoryTenants.reserve(tenants, "acme", "probe", 0, Quota(max_streams=most), 1.0)
        if isinstance(answer, Granted):
            await MemoryTenants.settle(tenants, "acme", {"probe": None})
            return most - 1
    raise AssertionError


def asking(prompt_tokens: int = 10, max_tokens: int = 20, tenant: Tenant = ACME, **fields: object) -> Request:
    prompts: list[str | list[int]] = [[7] * prompt_tokens]
    request = Request(model="fake", prompts=prompts, max_tokens=max_tokens, ignore_eos=True, tenant=tenant)
    return msgspec.structs.replace(request, sampling=Sampling(0.0), **fields)


async def run(world: World, request: Request, call_id: str = "call", leave_after: int | None = None) -> None:
    """To its end, or until so many tokens have come."""
    tokens = 0

    def take(deltas: list[Delta]) -> None:
        nonlocal tokens
        tokens += sum(len(delta.tokens) for delta in deltas)
        if leave_after is not None and tokens >= leave_after:
            raise Left

    with contextlib.suppress(Left):
        async with world.origin.open(request, call_id, asyncio.get_running_loop().time()) as call:
            await call.read(take)


async def refused(world: World, request: Request, kind: type[ApiError]) -> None:
    with pytest.raises(kind) as refusal:
        await run(world, request)
    assert type(refusal.value) is kind


async def settled(tenants: MemoryTenants, world: World) -> tuple[int, int]:
    await world.origin.idle()
    return await used(tenants)


def test_an_answer_is_paid_for_as_it_was() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        await run(world, asking(10, 20))
        assert await settled(tenants, world) == (1, 30)
        await run(world, asking(10, 20, num_choices=3))
        assert await settled(tenants, world) == (2, 30 + 10 + 60)

    play(scenario)


def test_a_client_that_leaves_pays_for_what_it_got() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        await run(world, asking(10, 500), leave_after=7)
        assert await settled(tenants, world) == (1, 17)
        task = asyncio.create_task(run(world, asking(10, 500)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        requests, tokens = await settled(tenants, world)
        assert requests in (1, 2) and tokens == 17 + 10 * (requests - 1)

    play(scenario)


@pytest.mark.parametrize("turns", range(12))
def test_a_cancelled_call_leaves_no_stream(turns: int) -> None:
    """At every await there is, the reservation's among them."""

    async def scenario(world: World, tenants: FlakyTenants) -> None:
        task = asyncio.create_task(run(world, asking()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await world.origin.idle()
        assert await streams(tenants) == 0

    play(scenario)


def test_a_call_cancelled_while_it_reserves_is_given_back() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        tenants.slow_s = 5.0
        task = asyncio.create_task(run(world, asking()))
        await asyncio.sleep(1.0)
        assert await streams(tenants) == 1
        task.cancel()
        await asyncio.wait([task])
        assert await settled(tenants, world) == (0, 0)

    play(scenario)


def test_a_full_queue_gives_the_reservation_back() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        await refused(world, asking(num_choices=4), TooManyRequests)
        assert await settled(tenants, world) == (0, 0)
        await run(world, asking())
        assert await settled(tenants, world) == (1, 30)

    play(scenario, Limits(3, 10**6, 10**8))


@pytest.mark.parametrize("happens", [True, False])
def test_a_reservation_without_an_answer_is_given_back_and_refused(happens: bool) -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        tenants.lost, tenants.happens = {"reserve"}, happens
        await refused(world, asking(), Unavailable)
        tenants.lost, tenants.happens = set(), True
        assert await settled(tenants, world) == (0, 0)

    play(scenario)


@pytest.mark.parametrize("happens", [True, False])
def test_a_store_that_is_down_is_told_when_it_is_back(happens: bool) -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        tenants.lost, tenants.happens = {"settle", "prolong"}, happens
        tenants.happens = True
        task = asyncio.create_task(run(world, asking(10, 20)))
        await asyncio.sleep(0.05)
        tenants.happens = happens
        await task
        await run(world, asking(tenant=Tenant("free")), "free")
        await asyncio.sleep(5.0)
        tenants.lost, tenants.happens = set(), True
        assert await settled(tenants, world) == (1, 30)

    play(scenario)


def test_a_long_stream_counts_for_as_long_as_it_runs_and_a_dead_gateways_ends() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        gone = asyncio.Event()

        async def hold() -> None:
            async with world.origin.open(asking(), "long", asyncio.get_running_loop().time()):
                await gone.wait()

        task = asyncio.create_task(hold())
        await asyncio.sleep(5 * TTL_S)
        assert await streams(tenants) == 1
        assert len(tenants.prolonged) >= 10
        tenants.lost = {"prolong"}
        await asyncio.sleep(TTL_S)
        assert await streams(tenants) == 0, "as if its gateway were dead"
        tenants.lost = set()
        await asyncio.sleep(1.0)
        assert await streams(tenants) == 1, "and it is back"
        gone.set()
        await task

    play(scenario)


def test_who_has_no_quota_asks_nobody() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        tenants.lost = {"reserve", "settle", "prolong"}
        await run(world, asking(tenant=Tenant("free")))
        await run(world, msgspec.structs.replace(asking(), tenant=Request(model="x").tenant))

    play(scenario)


def test_what_no_minute_could_pay_for_is_refused_for_good_and_a_long_answer_has_its_turn() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        tenant = Tenant("acme", quota=Quota(tokens_per_minute=100))
        with pytest.raises(OverQuota, match="prompts have 101 tokens, and this key has 100") as refusal:
            await run(world, asking(101, 5, tenant=tenant))
        assert (refusal.value.should_retry, refusal.value.retry_after_s) == (False, None)
        assert await settled(tenants, world) == (0, 0)
        await run(world, asking(100, 300, tenant=tenant))
        assert await settled(tenants, world) == (1, 400)

    play(scenario)


def test_a_refusal_tells_when_there_is_room_and_there_is() -> None:
    async def scenario(world: World, tenants: FlakyTenants) -> None:
        tenant = Tenant("acme", quota=Quota(2))
        await run(world, asking(tenant=tenant))
        await asyncio.sleep(20.3)
        await run(world, asking(tenant=tenant))
        for pause_s in (0.0, 30.0):
            await asyncio.sleep(pause_s)
            with pytest.raises(OverQuota) as refusal:
                await run(world, asking(tenant=tenant))
        assert refusal.value.retry_after_s is not None and 8 < refusal.value.retry_after_s < 11
        # A client is told whole milliseconds, rounded up.
        await asyncio.sleep(refusal.value.retry_after_s + 0.001)
        await run(world, asking(tenant=tenant))
        await refused(world, asking(tenant=tenant), OverQuota)

    play(scenario)


# The fair share


async def queue_up(world: World, store: MemoryStore, tenant: Tenant, calls: int, each: int, prompt: int) -> None:
    """So many calls of so many choices, past admission."""
    now_s, intake = asyncio.get_running_loop().time, world.origin._intake
    for number in range(calls):
        request = msgspec.structs.replace(asking(tenant=tenant, num_choices=each), prompts=[[1] * prompt])
        call = await intake.call(request, f"{tenant.name}{number}", now_s())
        await store.put([live.entry for live in call.live.values()], Limits(10**6, 10**9, 10**12))


@pytest.mark.parametrize(("weight", "large_prompt"), [(1.0, 10), (2.0, 160), (0.5, 40)])
def test_a_tenant_with_10_waits_for_little_of_another_with_10_000(weight: float, large_prompt: int) -> None:
    """Before the tenth of the small tenant starts, the large one, who came first, has been given at most the small
    one's work over its weight and one request more, whatever their lengths and buckets."""

    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())
        world = World(store, [FakeBackend("r")])
        async with world.running():
            await world.answer([1, 2, 3])
            world.backends[0].hang()
            await queue_up(world, store, Tenant("large"), 100, 100, large_prompt)
            await queue_up(world, store, Tenant("small", weight=weight), 10, 1, 40)
            replica = world.fleet.replicas["r"]
            one_by_one = msgspec.structs.replace(DRIVER.choice, max_batch_rows=1)
            chooser = Chooser(store, Roster(), one_by_one, world.metrics)
            epoch = await store.elect("another", "g", 1e9)
            assert epoch is not None
            given = {"large": 0.0, "small": 0.0}
            started: list[Ticket] = []
            while (tenants := [ticket.tenant for ticket in started]).count("small") < 10:
                queue = await store.queue()
                chosen, _ = await chooser.choose(queue, replica)
                charge = chooser.charge(queue, chosen)
                entries = await store.claim("another", epoch, [(t.id, t.attempt) for t in chosen], charge)
                started += [entry.ticket for entry in entries]
                await chooser.rebucket(queue, replica)
            for ticket in started[: len(tenants) - tenants[::-1].index("small")]:
                given[ticket.tenant] += ticket.seconds
            largest_s = max((ticket.seconds for ticket in started if ticket.tenant == "large"), default=0.0)
            assert (await store.queue()).tickets > 9_900
            assert given["large"] <= given["small"] / weight + largest_s

    clock.run(main())


def test_the_choices_of_one_call_stand_one_behind_the_other() -> None:
    """Or whoever asks for many choices at once would have them all before another tenant's one."""

    async def main() -> None:
        store = MemoryStore(clock=clock.of_store())
        config = msgspec.structs.replace(ORIGIN, policy=FULL, aims=dict.fromkeys(ServiceClass, Aim(100.0, 1.0)))
        world = World(store, [FakeBackend("r")], config)
        async with world.running():
            await world.answer([1, 2, 3])
            world.backends[0].hang()
            scores: dict[str, list[float]] = {}
            for tenant, num_choices in (("large", 50), ("small", 1)):
                request = asking(tenant=Tenant(tenant), num_choices=num_choices)
                call = await world.origin._intake.call(request, tenant, asyncio.get_running_loop().time())
                limits = await world.origin.gatekeeper.limits(call, request)
                scores[tenant] = await store.put(call.entries, limits)
            assert sum(score <= scores["small"][0] for score in scores["large"]) <= 1

    clock.run(main())
