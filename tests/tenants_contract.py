"""What every adapter of `ports.Tenants` must do, once.  `tests/unit/test_tenants_memory.py` runs it on an injected
clock, `tests/stack/test_tenants_redis.py` on a real Valkey.  What a minute brings back is tested on the injected
clock alone."""

import asyncio
import itertools

import pytest

from gateway.ports import Denied, Granted, Tenants
from gateway.quota import UNLIMITED, Level, Quota
from tests.store_contract import LEASE_S, Tick, eventually

TTL_S = 60.0
_ids = itertools.count()


async def reserve(
    tenants: Tenants,
    quota: Quota,
    *,
    tokens: int = 1,
    tenant: str = "acme",
    id: str | None = None,
    ttl_s: float = TTL_S,
    former: str = "",
) -> Granted | Denied:
    return await tenants.reserve(tenant, id or f"call-{next(_ids)}", tokens, quota, ttl_s, former)


async def used(tenants: Tenants, tenant: str = "acme") -> tuple[int, int]:
    """Requests and tokens that count now: what is missing of a quota that denies a stream."""
    answer = await reserve(tenants, Quota(10**6, 10**6, max_streams=0), tenant=tenant)
    assert isinstance(answer, Denied)
    requests, tokens = answer.allowance.requests, answer.allowance.tokens
    assert requests and tokens
    return requests.limit - requests.remaining, tokens.limit - tokens.remaining


def bound(answer: Granted | Denied) -> str | None:
    return answer.bound if isinstance(answer, Denied) else None


@pytest.mark.asyncio
class TenantsContract:
    """Subclasses give two fixtures: `tenants`, empty, and `tick`, which lets a little time pass."""

    async def test_requests_are_counted_to_the_last(self, tenants: Tenants) -> None:
        quota = Quota(requests_per_minute=3)
        answers = [await reserve(tenants, quota) for _ in range(5)]
        assert [bound(answer) for answer in answers] == [None, None, None, "requests", "requests"]
        levels = [answer.allowance.requests for answer in answers if answer.allowance.requests]
        assert [(level.limit, level.remaining) for level in levels] == [(3, 2), (3, 1), (3, 0), (3, 0), (3, 0)]
        assert all(59 < level.reset_s <= 61 for level in levels)
        assert all(answer.allowance.tokens is None for answer in answers)
        refusal = answers[-1]
        assert isinstance(refusal, Denied) and refusal.wait_s and 57 < refusal.wait_s <= 61

    async def test_tokens_are_counted_to_the_last(self, tenants: Tenants) -> None:
        quota = Quota(tokens_per_minute=100)
        assert [bound(await reserve(tenants, quota, tokens=n)) for n in (60, 41, 40, 1)] == [
            *(None, "tokens"),
            *(None, "tokens"),
        ]
        assert await used(tenants) == (2, 100), "what is denied takes nothing"

    async def test_a_reservation_of_the_whole_quota_fits_when_nothing_is_used(self, tenants: Tenants) -> None:
        quota = Quota(tokens_per_minute=100)
        assert bound(await reserve(tenants, quota, tokens=100, id="all")) is None
        assert bound(await reserve(tenants, quota, tokens=100)) == "tokens"
        await tenants.settle("acme", {"all": None})
        assert bound(await reserve(tenants, quota, tokens=100)) is None

    async def test_streams_are_counted_until_they_are_settled(self, tenants: Tenants) -> None:
        quota = Quota(max_streams=2)
        answers = [await reserve(tenants, quota, id=f"s{i}") for i in range(3)]
        assert [bound(answer) for answer in answers] == [None, None, "streams"]
        refusal = answers[-1]
        assert isinstance(refusal, Denied) and refusal.wait_s is None
        await tenants.settle("acme", {"s0": 1, "s2": 1, "never": 1})
        assert [bound(await reserve(tenants, quota)) for _ in range(2)] == [None, "streams"]

    async def test_no_bound_is_none(self, tenants: Tenants) -> None:
        for _ in range(20):
            answer = await reserve(tenants, UNLIMITED, tokens=10**9)
            assert isinstance(answer, Granted)
            assert (answer.allowance.requests, answer.allowance.tokens) == (None, None)

    async def test_tenants_do_not_meet(self, tenants: Tenants) -> None:
        quota = Quota(1, 10, 1)
        names = ["acme", "Acme", "acme:used", "a}c{me", "ac/me", "*", "é"]
        assert [bound(await reserve(tenants, quota, tenant=name, id="same")) for name in names] == [None] * 7
        await tenants.settle("acme", {"same": None})
        assert bound(await reserve(tenants, quota, tenant="Acme")) == "requests"

    async def test_what_was_not_used_comes_back(self, tenants: Tenants) -> None:
        await reserve(tenants, UNLIMITED, tokens=100, id="a")
        await reserve(tenants, UNLIMITED, tokens=50, id="b")
        await reserve(tenants, UNLIMITED, tokens=7, id="c")
        await tenants.settle("acme", {"a": 30, "b": None})
        assert await used(tenants) == (2, 37), "what never ran was no request"

    async def test_what_was_used_beyond_counts(self, tenants: Tenants) -> None:
        await reserve(tenants, UNLIMITED, tokens=100, id="a")
        await tenants.settle("acme", {"a": 350})
        assert await used(tenants) == (1, 350)
        answer = await reserve(tenants, Quota(tokens_per_minute=300), tokens=1)
        assert answer.allowance.tokens and answer.allowance.tokens.remaining == 0

    async def test_a_reservation_is_settled_once(self, tenants: Tenants) -> None:
        await reserve(tenants, UNLIMITED, tokens=100, id="a")
        await reserve(tenants, UNLIMITED, tokens=100, id="b")
        for _ in range(3):
            await tenants.settle("acme", {"a": None, "b": 20, "never": None})
        assert await used(tenants) == (1, 20)

    async def test_a_stream_that_nobody_prolongs_ends(self, tenants: Tenants, tick: Tick) -> None:
        quota = Quota(max_streams=1)
        await reserve(tenants, quota, tokens=5, id="a", ttl_s=LEASE_S)
        assert bound(await reserve(tenants, quota)) == "streams"

        async def granted() -> bool:
            return isinstance(await reserve(tenants, quota), Granted)

        await eventually(granted, tick)
        await tenants.settle("acme", {"a": None})
        assert await used(tenants) == (2, 6), "what is over cannot come back"

    async def test_a_prolonged_stream_goes_on(self, tenants: Tenants, tick: Tick) -> None:
        await reserve(tenants, UNLIMITED, tokens=5, id="a", ttl_s=LEASE_S)
        await reserve(tenants, UNLIMITED, tokens=5, id="b", ttl_s=LEASE_S)
        await tenants.prolong("acme", ["a", "forgotten"], TTL_S)

        async def b_is_over() -> bool:
            return bound(await reserve(tenants, Quota(max_streams=3), id="c", ttl_s=TTL_S)) is None

        await eventually(b_is_over, tick)
        assert bound(await reserve(tenants, Quota(max_streams=3))) == "streams", "a, forgotten and c"
        await tenants.settle("acme", {"a": 1, "forgotten": 3, "c": 1})
        assert await used(tenants) == (3, 7)

    async def test_a_reservation_goes_on_under_another_id(self, tenants: Tenants) -> None:
        quota = Quota(1, 10, 1)
        await reserve(tenants, quota, tokens=10, id="a")
        answer = await reserve(tenants, quota, tokens=9, id="b", former="a")
        assert isinstance(answer, Granted)
        assert answer.allowance.requests and answer.allowance.requests.remaining == 0
        await tenants.settle("acme", {"a": None})
        assert await used(tenants) == (1, 10), "a is nobody's"
        assert bound(await reserve(tenants, Quota(max_streams=1))) == "streams", "b is"
        await tenants.settle("acme", {"b": 4})
        assert await used(tenants) == (1, 4)

    async def test_one_that_has_ended_does_not_go_on(self, tenants: Tenants, tick: Tick) -> None:
        quota = Quota(max_streams=1)
        await reserve(tenants, quota, tokens=10, id="settled")
        await tenants.settle("acme", {"settled": 4})
        await reserve(tenants, quota, tokens=10, id="over", ttl_s=LEASE_S)

        async def goes_on_without() -> bool:
            return isinstance(await reserve(tenants, quota, tokens=7, id="a", former="settled"), Granted)

        assert not await goes_on_without()
        await eventually(goes_on_without, tick)
        await tenants.settle("acme", {"a": 7})
        await reserve(tenants, quota, tokens=1, id="b", former="over")
        assert await used(tenants) == (4, 22), "each took its own"

    async def test_a_race_goes_over_no_bound(self, tenants: Tenants) -> None:
        for quota, granted in ((Quota(7), 7), (Quota(None, 70), 7), (Quota(None, None, 7), 7)):
            name = str(quota)
            answers = await asyncio.gather(*(reserve(tenants, quota, tokens=10, tenant=name) for _ in range(50)))
            assert sum(isinstance(answer, Granted) for answer in answers) == granted

    async def test_reset_is_of_the_last_use(self, tenants: Tenants) -> None:
        quota = Quota(10, 1000)
        answer = await reserve(tenants, quota, tokens=0)
        assert answer.allowance.tokens == Level(1000, 1000, 0.0)
        assert answer.allowance.requests and 60 <= answer.allowance.requests.reset_s <= 61

    async def test_records_of_keys(self, tenants: Tenants) -> None:
        assert await tenants.keys(0) is None
        assert await tenants.keys(7) == (0, {})
        assert not await tenants.drop_key("a")
        await tenants.set_key("a", b"\x00 record")
        await tenants.set_key("b", b"another")
        found = await tenants.keys(0)
        assert found is not None and found[1] == {"a": b"\x00 record", "b": b"another"}
        version = found[0]
        assert await tenants.keys(version) is None
        await tenants.set_key("a", b"changed")
        assert await tenants.drop_key("b")
        assert not await tenants.drop_key("b")
        found = await tenants.keys(version)
        assert found is not None and found[0] > version and found[1] == {"a": b"changed"}
        await tenants.drop_key("a")
        found = await tenants.keys(found[0])
        assert found is not None and found[0] > 0 and found[1] == {}, "empty, and not unknown"
