"""The Redis store on a real Cluster and under a real Sentinel: the contract, and the queue changing its server."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio
from redis.crc import key_slot

from gateway.errors import StoreLost
from gateway.store.home import connect
from gateway.store.keys import queue_keys
from gateway.store.redis import RedisStore
from tests.stack import valkeys
from tests.stack.valkeys import SERVICE, Server, Valkeys
from tests.store_contract import DEFAULT, LEASE_S, StoreContract, Tick, entry, lead, peek_ids, put

PATIENT_S = 10.0
SLOT = key_slot(queue_keys("model").heads.encode())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Valkeys]:
    with valkeys.cluster() as running:
        yield running


@pytest.fixture(scope="session")
def sentinel() -> Iterator[Valkeys]:
    with valkeys.sentinel() as running:
        yield running


@pytest.fixture(params=["cluster", "sentinel"])
def place(request: pytest.FixtureRequest) -> Valkeys:
    place: Valkeys = request.getfixturevalue(request.param)
    place.empty()
    return place


@pytest_asyncio.fixture
async def store(place: Valkeys) -> AsyncIterator[RedisStore]:
    store = RedisStore(connect(place.url), "model", timeout_s=PATIENT_S)
    yield store
    await store.aclose()


@pytest.fixture
def tick() -> Tick:
    async def tick() -> None:
        await asyncio.sleep(LEASE_S / 5)

    return tick


class TestRedisStore(StoreContract):
    pass


async def soon(verb: Callable[[], Awaitable[object]]) -> int:
    """Repeat until it is answered; how often it was not."""
    for failures in range(1000):
        try:
            await verb()
        except StoreLost:
            await asyncio.sleep(0.02)
        else:
            return failures
    raise AssertionError("it was never answered")


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_what_a_failover_loses_comes_back_by_the_audit() -> None:
    with valkeys.sentinel() as place:
        primary, replica, _ = place.servers
        store = RedisStore(connect(place.url), "model", timeout_s=0.5)
        await put(store, *(entry(f"a/{i}") for i in range(3)))
        epoch = await lead(store)
        await asyncio.to_thread(_copied, primary)
        cut_off(primary)
        kept, lost = [[(f"{name}/{i}", 0) for i in range(3)] for name in ("a", "b")]
        scores = await put(store, *(entry(id) for id, _ in lost))
        assert len(await store.claim("replica", epoch, kept[:1], {})) == 1
        primary.kill()
        with pytest.raises(StoreLost):
            await store.ping()
        assert await soon(lambda: store.audit("gateway-1", [], 60)) > 0
        assert await replica_role(replica) == "master"
        unknown = await store.audit("gateway-1", kept + lost, 60)
        assert unknown == [id for id, _ in lost]
        back = [entry(id, attempt=1, score=score) for id, score in zip(unknown, scores, strict=True)]
        await store.put_back(back)
        assert sorted(await peek_ids(store)) == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
        assert await store.sweep("replica", epoch, kept[:1]) == [], "its claim was lost too: it is queued"
        await store.aclose()


def _copied(primary: Server) -> None:
    primary.until(lambda: primary.ask("WAIT", 1, 100))


def cut_off(primary: Server) -> None:
    """The replica gets nothing more."""
    primary.ask("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
    primary.ask("CLIENT", "KILL", "TYPE", "replica")


async def replica_role(server: Server) -> str:
    return str(server.ask("ROLE")[0], "utf-8")


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_a_primary_that_is_replaced_while_it_lives_costs_nothing_but_time() -> None:
    with valkeys.sentinel() as place:
        store = RedisStore(connect(place.url), "model", timeout_s=0.5)
        await put(store, entry("a/0"))
        await asyncio.to_thread(_copied, place.servers[0])
        place.servers[2].ask("SENTINEL", "FAILOVER", SERVICE)
        for i in range(1, 100):
            await soon(lambda i=i: store.put_back([entry(f"a/{i}", score=float(i))]))  # type: ignore[misc]
            await asyncio.sleep(0.02)
        assert place.servers[1].ask("ROLE")[0] == b"master"
        ids = [(f"a/{i}", 0) for i in range(100)]
        for id in await store.audit("gateway-1", ids, 60):
            await store.put_back([entry(id, attempt=1)])
        assert (await store.queue()).tickets == 100
        await store.aclose()


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_a_frozen_primary_costs_little_and_is_found_again(sentinel: Valkeys) -> None:
    sentinel.empty()
    heard: list[bool] = []
    watcher = sentinel.servers[2]
    watcher.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 60_000)
    store = RedisStore(connect(sentinel.url), "model", timeout_s=0.1, changed=heard.append)
    await put(store, entry("a/0"))
    primary = next(server for server in sentinel.servers if server.ask("ROLE")[0] == b"master")
    primary.signal(signal.SIGSTOP)
    try:
        results = await asyncio.gather(*(store.ping() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, StoreLost) for result in results)
        assert heard == [True]
        with pytest.raises(StoreLost, match="does not answer"):
            await store.ping()
    finally:
        primary.signal(signal.SIGCONT)
        watcher.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 300)
    await soon(store.ping)
    assert heard == [True, False]
    assert (await store.queue()).tickets == 1
    await store.aclose()


def owner(cluster: Valkeys, slot: int) -> Server:
    for first, last, (_, port, *_), *_ in cluster.servers[0].ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(server for server in cluster.servers if server.port == port)
    raise AssertionError("nobody has it")


def node_id(server: Server) -> str:
    return str(server.ask("CLUSTER", "MYID"), "utf-8")


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_a_slot_that_moves_at_once_takes_the_queue_along(cluster: Valkeys) -> None:
    cluster.empty()
    source = owner(cluster, SLOT)
    target = next(server for server in cluster.servers if server is not source)
    store = RedisStore(connect(cluster.url), "model", timeout_s=PATIENT_S)
    epoch, claimed, moved = await lead(store), list[str](), False

    async def work() -> None:
        for i in range(10**6):
            await soon(lambda i=i: put(store, entry(f"a/{i}")))  # type: ignore[misc]
            tickets = [(ticket.id, 0) for ticket in await store.peek([(2, DEFAULT)], 1)]
            claimed.extend(e.ticket.id for e in await store.claim("replica", epoch, tickets, {}))
            if moved and len(claimed) > 10:
                break

    working = asyncio.create_task(work())
    source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", SLOT, SLOT, "NODE", node_id(target))
    await asyncio.to_thread(target.until, lambda: owner(cluster, SLOT) is target)
    await asyncio.sleep(0.1)
    moved = True
    await working
    assert claimed == [f"a/{i}" for i in range(len(claimed))]
    assert (await store.queue()).tickets == 0
    assert await store.sweep("replica", epoch, [(id, 0) for id in claimed]) == []
    await store.aclose()


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_while_a_slot_moves_key_by_key_nothing_happens_by_halves(cluster: Valkeys) -> None:
    cluster.empty()
    source = owner(cluster, SLOT)
    target = next(server for server in cluster.servers if server is not source)
    store = RedisStore(connect(cluster.url), "model", timeout_s=PATIENT_S)
    await put(store, *(entry(f"a/{i}") for i in range(4)))
    target.ask("CLUSTER", "SETSLOT", SLOT, "IMPORTING", node_id(source))
    source.ask("CLUSTER", "SETSLOT", SLOT, "MIGRATING", node_id(target))
    keys = source.ask("CLUSTER", "GETKEYSINSLOT", SLOT, 99)
    for part in (keys[::2], keys[1::2]):
        for verb in (lambda: put(store, entry("b/0")), lambda: store.cancel([("a/0", 0)]), store.queue):
            with pytest.raises(StoreLost):
                await verb()
        source.ask(
            "MIGRATE",
            target.client.connection_pool.connection_kwargs["host"],
            target.port,
            "",
            0,
            5000,
            "KEYS",
            *part,
        )
    with contextlib.suppress(StoreLost):
        await store.ping()
    for server in (target, source):
        server.ask("CLUSTER", "SETSLOT", SLOT, "NODE", node_id(target))
    assert await soon(store.ping) < 100
    queue = await store.queue()
    assert (queue.tickets, [head.count for head in queue.heads]) == (4, [4])
    assert await peek_ids(store) == [f"a/{i}" for i in range(4)]
    await store.aclose()
