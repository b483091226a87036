"""What every store must do, once, for both adapters.  `tests/unit/test_store_memory.py` runs it on an
injected clock, `tests/stack/test_store_redis.py` on a real Valkey.  Nothing here assumes what it says."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from gateway.errors import LeaseLost, QueueFull
from gateway.ports import (
    MAX_LETTERS,
    MAX_SAMPLES,
    MAX_SHOWN,
    MAX_SNAPSHOT_BYTES,
    Adopted,
    Entry,
    Limits,
    LogWrite,
    Peer,
    Record,
    Seat,
    Store,
    Written,
)
from gateway.request import Profile, ServiceClass, Ticket

PRIORITY, DEFAULT, FLEX = ServiceClass
ROOMY = Limits(max_tickets=10_000, max_tokens=10**9, max_bytes=10**12)
LEASE_S = 0.05
"""Short: a real clock has to pass it."""
ONLOOKER = Peer(False, b"")

Tick = Callable[[], Awaitable[None]]


def entry(id: str, *, payload: bytes = b"work", **overrides: Any) -> Entry:
    fields: dict[str, Any] = {
        "id": id,
        "origin": "gateway-1",
        "tenant": "tenant",
        "prompt_tokens": 10,
        "max_tokens": 5,
        "profile": Profile(3, 5),
        "bin": 2,
        "slack_s": 1.0,
        "cost_s": 0.25,
        "seconds": 0.1,
        "size_bytes": len(payload),
    }
    return Entry(Ticket(**fields | overrides), payload)


def record(call: str, epoch: int = 0, owner: str = "key", age_s: float = 0.0) -> Record:
    return Record(call, epoch, owner, age_s, b"content")


async def adopt(store: Store, call: str = "a") -> Adopted:
    adopted = await store.adopt(call, "key", 60)
    assert adopted is not None
    return adopted


async def put(store: Store, *entries: Entry, limits: Limits = ROOMY) -> list[float]:
    return await store.put(entries, limits)


async def slots(store: Store) -> dict[tuple[ServiceClass, int], tuple[int, float]]:
    """Tokens and seconds of the backlog."""
    backlog = await store.backlog(DEFAULT, "tenant")
    return {key: (slot.tokens, slot.seconds) for key, slot in backlog.slots.items()}


async def lead(store: Store, replica: str = "replica", gateway: str = "gateway-1") -> int:
    epoch = await store.elect(replica, gateway, 60)
    assert epoch is not None
    return epoch


async def drivers(store: Store) -> dict[str, str]:
    """The gateway that drives, by replica."""
    seats = (await store.assemble("onlooker", ONLOOKER, 0)).seats
    return {replica: seat.gateway for replica, seat in seats.items()}


async def claim_all(store: Store, *ids: str) -> int:
    epoch = await lead(store)
    assert len(await store.claim("replica", epoch, [(id, 0) for id in ids], {})) == len(ids)
    return epoch


async def peek_ids(store: Store, *sets: tuple[int, ServiceClass], limit: int = 100) -> list[str]:
    return [ticket.id for ticket in await store.peek(sets or [(2, DEFAULT)], limit)]


async def eventually(check: Callable[[], Awaitable[Any]], tick: Tick) -> None:
    for _ in range(500):
        if await check():
            return
        await tick()
    raise AssertionError("it never came true")


@pytest.mark.asyncio
class StoreContract:
    """Subclasses give two fixtures: `store`, empty, and `tick`, which lets a little time pass."""

    async def test_an_empty_store_has_nothing(self, store: Store) -> None:
        await store.ping()
        queue = await store.queue()
        assert (queue.heads, queue.served, queue.tickets, queue.tokens, queue.bytes) == ([], {}, 0, 0, 0)
        assert (queue.bounds, queue.bounds_version) == ((0,), 0)
        assert await slots(store) == {}
        assert await drivers(store) == {}
        assert await peek_ids(store) == []
        assert await store.peek([], 5) == []

    async def test_a_tenants_tickets_queue_behind_each_other(self, store: Store) -> None:
        (one,) = await put(store, entry("a/0", slack_s=7, cost_s=100))
        two, three = await put(store, entry("a/1", slack_s=7, cost_s=100), entry("a/2", slack_s=7))
        assert (two - one, three - two) == pytest.approx((100, 100), abs=1e-5)

    async def test_another_tenant_or_class_starts_now(self, store: Store) -> None:
        before = (await store.queue()).now_s
        scores = await put(
            store,
            entry("a/0", cost_s=1000),
            entry("a/1", tenant="other"),
            entry("a/2", service_class=FLEX),
        )
        assert all(before + 1 <= score <= before + 31 for score in scores)

    async def test_a_put_again_changes_nothing(self, store: Store) -> None:
        group = [entry("a/0", cost_s=100), entry("a/1", cost_s=100)]
        first = await put(store, *group)
        before = await store.queue()
        assert await put(store, *group, limits=Limits(0, 0, 0)) == first
        assert (await store.queue()).heads == before.heads
        (third,) = await put(store, entry("a/2"))
        assert third - first[1] == pytest.approx(100, abs=1e-5)

    async def test_one_id_twice_in_a_group_is_one_ticket(self, store: Store) -> None:
        first, second = await put(store, entry("a/0"), entry("a/0"), limits=Limits(1, 10, 4))
        assert first == second
        assert (await store.queue()).tickets == 1

    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (Limits(2, 30, 12), "tickets"),
            (Limits(3, 29, 12), "tokens"),
            (Limits(3, 30, 11), "bytes"),
            (Limits(3, 30, 12, max_seconds=0.29), "seconds"),
        ],
    )
    async def test_a_group_past_a_bound_is_refused_whole(self, store: Store, limits: Limits, reason: str) -> None:
        (first,) = await put(store, entry("a/0", cost_s=100))
        with pytest.raises(QueueFull) as refusal:
            await put(store, entry("b/0", cost_s=100), entry("b/1"), limits=limits)
        assert refusal.value.reason == reason
        assert await peek_ids(store) == ["a/0"]
        assert (await store.queue()).tickets == 1
        second, third = await put(store, entry("b/0", cost_s=1), entry("b/1"), limits=Limits(3, 30, 12, 0.3))
        assert second - first == pytest.approx(100, abs=1e-5), "a refusal must not advance the tag"
        assert third - second == pytest.approx(1, abs=1e-5)

    async def test_bounds_count_what_is_queued_and_new(self, store: Store) -> None:
        await put(store, entry("a/0"), entry("a/1"))
        await claim_all(store, "a/0")
        await put(store, entry("a/1"), entry("a/2"), limits=Limits(2, 20, 8))
        assert await peek_ids(store) == ["a/1", "a/2"]

    @pytest.mark.parametrize("bad", [float("inf"), float("nan"), -1e11])
    async def test_a_time_that_is_no_number_is_refused(self, store: Store, bad: float) -> None:
        with pytest.raises(ValueError, match="finite"):
            await put(store, entry("a/0"), entry("a/1", slack_s=bad))
        with pytest.raises(ValueError, match="finite"):
            await store.put_back([entry("a/0", attempt=1, score=bad)])
        assert (await store.queue()).tickets == 0

    async def test_peek_merges_sets_by_score(self, store: Store) -> None:
        for place, (bin, service_class) in enumerate([(1, FLEX), (2, DEFAULT), (1, FLEX), (3, PRIORITY)]):
            ids = [f"{id:02}" for id in range(place, 80, 4)]
            await store.put_back([entry(id, bin=bin, service_class=service_class, score=float(id)) for id in ids])
        sets = [(1, FLEX), (2, DEFAULT), (3, PRIORITY), (9, FLEX)]
        everything = [f"{id:02}" for id in range(80)]
        assert await peek_ids(store, *sets) == everything
        assert await peek_ids(store, *sets, limit=37) == everything[:37]
        assert await peek_ids(store, *sets, limit=0) == []
        assert await peek_ids(store, (2, DEFAULT), (2, DEFAULT)) == everything[1::4]

    async def test_a_short_queue_is_shown_whole(self, store: Store) -> None:
        sets = [(1, FLEX), (2, DEFAULT), (3, PRIORITY)]
        for number in range(MAX_SHOWN):
            assert [ticket.id for ticket in (await store.queue()).shown] == [f"{i:02}" for i in range(number)]
            bin, service_class = sets[number % 3]
            await store.put_back(
                [entry(f"{number:02}", bin=bin, service_class=service_class, score=float(number))]
            )
        assert list((await store.queue()).shown) == await store.peek(sets, 99)
        await put(store, entry("one more"))
        assert not (await store.queue()).shown

    async def test_what_starts_at_once_is_leased_and_never_queued(self, store: Store) -> None:
        epoch = await lead(store)
        given = [entry("a/0", slack_s=5.0, index=4), entry("a/1", cost_s=100.0, payload=b"\x00\xff")]
        before = (await store.queue()).now_s
        scores = await store.start("replica", epoch, given, {DEFAULT: 7.0})
        after = await store.queue()
        assert scores is not None
        for draft, score in zip(given, scores, strict=True):
            assert before <= score - draft.ticket.slack_s <= after.now_s
        assert (list(after.heads), after.tickets, dict(after.served)) == ([], 0, {DEFAULT: 7.0})
        assert await slots(store) == {}
        ids = [("a/0", 0), ("a/1", 0)]
        assert await store.audit("gateway-1", ids, 60) == []
        assert await store.claim("replica", epoch, ids, {}) == []
        (behind,) = await put(store, entry("a/2", slack_s=0.0))
        assert behind > after.now_s + 90, "its tenant's clock went on"
        assert await store.cancel([("a/0", 0)]) == [("a/0", "replica")]
        assert await store.sweep("replica", epoch, []) == ["a/1"]

    async def test_nothing_starts_before_what_waits_or_twice(self, store: Store) -> None:
        epoch = await lead(store)
        assert await store.start("replica", epoch, [entry("a/0")], {}) is not None
        assert await store.start("replica", epoch, [entry("a/1"), entry("a/0")], {DEFAULT: 1.0}) is None
        await put(store, entry("b/0"))
        assert await store.start("replica", epoch, [entry("a/1")], {DEFAULT: 1.0}) is None
        assert await store.audit("gateway-1", [("a/1", 0)], 60) == ["a/1"]
        assert (await store.queue()).served == {}
        await store.cancel([("b/0", 0)])
        assert await store.start("replica", epoch, [entry("a/1")], {}) is not None

    async def test_only_the_driver_starts_anything(self, store: Store) -> None:
        epoch = await lead(store)
        for replica, wrong in (("replica", epoch - 1), ("another", epoch)):
            with pytest.raises(LeaseLost):
                await store.start(replica, wrong, [entry("a/0")], {})
        for bad in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="times"):
                await store.start("replica", epoch, [entry("a/0"), entry("a/1", slack_s=bad)], {})
        assert await store.audit("gateway-1", [("a/0", 0)], 60) == ["a/0"]

    async def test_equal_scores_are_first_in_first_out(self, store: Store) -> None:
        ids = [f"a/{i}" for i in range(12)]
        await put(store, *(entry(id, cost_s=0.0) for id in ids))
        assert await peek_ids(store) == ids
        await put(store, *(entry(f"b/{i}", tenant=str(i), slack_s=-(10**6)) for i in range(12)))
        assert await peek_ids(store, limit=12) == [f"b/{i}" for i in range(12)]

    async def test_a_peeked_ticket_is_the_one_put_with_its_score(self, store: Store) -> None:
        given = entry("a/0", index=4, deaths=1)
        (score,) = await put(store, given)
        (ticket,) = await store.peek([(2, DEFAULT)], 1)
        assert ticket == Ticket(
            **{f: getattr(given.ticket, f) for f in Ticket.__struct_fields__} | {"score": score}
        )

    async def test_heads_tell_each_sets_best(self, store: Store) -> None:
        await put(store, entry("a/0", slack_s=5), entry("a/1", slack_s=1), entry("a/2", bin=7))
        heads = {head.bin: (head.ticket, head.count) for head in (await store.queue()).heads}
        assert heads == {2: ("a/1", 2), 7: ("a/2", 1)}
        await store.cancel([("a/1", 0), ("a/2", 0)])
        (head,) = (await store.queue()).heads
        (ticket,) = await store.peek([(2, DEFAULT)], 9)
        assert (head.ticket, head.count, head.score) == ("a/0", 1, ticket.score)

    async def test_a_claim_leases_what_is_queued_in_the_given_order(self, store: Store) -> None:
        await put(store, entry("a/0"), entry("a/1", payload=b"\x00\xff"), entry("a/2"))
        epoch = await lead(store)
        claimed = await store.claim("replica", epoch, [("a/1", 0), ("x", 0), ("a/2", 1), ("a/0", 0)], {})
        assert [(e.ticket.id, e.payload) for e in claimed] == [("a/1", b"\x00\xff"), ("a/0", b"work")]
        assert await peek_ids(store) == ["a/2"]
        assert await store.claim("replica", epoch, [("a/1", 0), ("a/0", 0)], {}) == []
        queue = await store.queue()
        assert (queue.tickets, queue.tokens, queue.bytes) == (1, 10, 4)

    async def test_served_is_stored_with_a_claim_that_got_something(self, store: Store) -> None:
        await put(store, entry("a/0"), entry("a/1"))
        epoch = await lead(store)
        await store.claim("replica", epoch, [("x", 0)], {FLEX: 1.0})
        assert (await store.queue()).served == {}
        await store.claim("replica", epoch, [("a/0", 0)], {FLEX: 1.0, DEFAULT: 2.0})
        await store.claim("replica", epoch, [("a/1", 0)], {DEFAULT: 0.1 + 0.2})
        assert (await store.queue()).served == {FLEX: 1.0, DEFAULT: 0.1 + 0.2}

    async def test_only_the_replicas_epoch_claims_and_sweeps(self, store: Store) -> None:
        await put(store, entry("a/0"))
        old = await lead(store)
        new = await lead(store)
        for replica, epoch in [("replica", old), ("replica", new + 1), ("nobody", new)]:
            with pytest.raises(LeaseLost):
                await store.claim(replica, epoch, [("a/0", 0)], {})
            with pytest.raises(LeaseLost):
                await store.sweep(replica, epoch, [])
        await store.resign("replica", old)
        assert len(await store.claim("replica", new, [("a/0", 0)], {})) == 1
        await store.resign("replica", new)
        with pytest.raises(LeaseLost):
            await store.sweep("replica", new, [])

    async def test_put_back_keeps_the_score_and_the_place(self, store: Store) -> None:
        first, second = await put(store, entry("a/0", cost_s=0.0), entry("a/1", cost_s=0.0))
        epoch = await claim_all(store, "a/0")
        await store.put_back([entry("a/0", attempt=1, score=first, prompt_tokens=12)])
        one, two = await store.peek([(2, DEFAULT)], 9)
        assert (one.id, one.attempt, one.score) == ("a/0", 1, first)
        assert (two.id, two.score) == (
            "a/1",
            second,
        )
        assert (await store.queue()).tokens == 22
        assert await store.sweep("replica", epoch, []) == [], "it is not leased any more"

    async def test_put_back_leaves_what_is_known_at_or_above(self, store: Store) -> None:
        await store.put_back([entry("a/0", attempt=2, score=5.0)])
        await store.put_back([entry("a/0", attempt=2, score=6.0), entry("a/0", attempt=1, score=7.0)])
        (ticket,) = await store.peek([(2, DEFAULT)], 9)
        assert (ticket.attempt, ticket.score) == (2, 5.0)
        await store.put_back([entry("a/0", attempt=10, score=6.0, bin=3, service_class=FLEX)])
        assert await peek_ids(store) == []
        assert await peek_ids(store, (3, FLEX)) == ["a/0"]
        assert (await store.queue()).tickets == 1

    async def test_finish_forgets_that_attempt_only(self, store: Store) -> None:
        await put(store, entry("a/0"), entry("a/1"), entry("a/2"))
        await claim_all(store, "a/0")
        for _ in range(2):
            await store.finish([("a/0", 0), ("a/1", 0), ("a/2", 1), ("x", 0)])
        live = [("a/0", 0), ("a/1", 0), ("a/2", 0)]
        assert await store.audit("gateway-1", live, 60) == ["a/0", "a/1"]

    async def test_cancel_forgets_and_tells_what_was_leased(self, store: Store) -> None:
        await put(store, entry("a/0"), entry("a/1"))
        await store.put_back([entry("a/2", attempt=3)])
        await claim_all(store, "a/0")
        ids = ["a/0", "a/1", "a/2", "x", "a/0"]
        assert await store.cancel([(id, 3) for id in ids]) == [("a/0", "replica")]
        assert await store.cancel([("a/0", 3), ("a/1", 3)]) == []
        assert (await store.queue()).tickets == 0

    async def test_cancel_leaves_higher_attempts(self, store: Store) -> None:
        await store.put_back([entry("a/0", attempt=9), entry("a/1", attempt=10)])
        assert await store.cancel([("a/0", 9), ("a/1", 9)]) == []
        assert await peek_ids(store) == ["a/1"]

    async def test_audit_names_what_is_neither_queued_nor_leased(self, store: Store) -> None:
        await put(store, entry("a/0"), entry("a/1"))
        await claim_all(store, "a/1")
        live = [("a/0", 0), ("a/1", 0), ("a/1", 1), ("x", 0)]
        assert await store.audit("gateway-1", live, 60) == ["a/1", "x"]
        assert await store.audit("gateway-1", [], 60) == []

    async def test_reap_forgets_the_tickets_of_dead_origins(self, store: Store, tick: Tick) -> None:
        await put(store, entry("a/0"), entry("a/1"), entry("b/0", origin="gateway-2"))
        await claim_all(store, "a/0")
        await store.audit("gateway-1", [], LEASE_S)
        assert await store.reap(100) == []
        leased: list[tuple[str, str]] = []

        async def reaped() -> bool:
            leased.extend(await store.reap(1))
            return await store.audit("somebody", [("a/0", 0), ("a/1", 0)], 60) == ["a/0", "a/1"]

        await eventually(reaped, tick)
        assert leased == [("a/0", "replica")]
        assert await peek_ids(store) == ["b/0"]
        assert await store.reap(100) == []

    async def test_reap_takes_no_more_than_its_limit(self, store: Store, tick: Tick) -> None:
        await put(store, *(entry(f"a/{i}") for i in range(5)))
        await store.audit("gateway-1", [], LEASE_S)

        async def some_reaped() -> bool:
            await store.reap(2)
            return (await store.queue()).tickets < 5

        await eventually(some_reaped, tick)
        assert (await store.queue()).tickets == 3

    async def test_sweep_forgets_what_the_engine_does_not_have(self, store: Store) -> None:
        await put(store, *(entry(f"a/{i}") for i in range(4)))
        await claim_all(store, "a/0", "a/1", "a/2")
        epoch = await lead(store)
        assert sorted(await store.sweep("replica", epoch, [("a/0", 0), ("a/0", 1), ("a/1", 1), ("a/3", 0)])) == [
            "a/1",
            "a/2",
        ]
        assert await store.sweep("replica", epoch, [("a/0", 0)]) == []
        live = [(f"a/{i}", 0) for i in range(4)]
        assert await store.audit("gateway-1", live, 60) == ["a/1", "a/2"]

    async def test_one_gateway_drives_until_its_lease_ends(self, store: Store, tick: Tick) -> None:
        now_s = (await store.queue()).now_s
        first = await store.elect("replica", "gateway-1", LEASE_S)
        assert first is not None
        assert first >= now_s * 1e6
        epochs: list[int] = []

        async def elected() -> bool:
            epoch = await store.elect("replica", "gateway-2", 60)
            epochs.extend([epoch] if epoch else [])
            return bool(epochs)

        await eventually(elected, tick)
        assert epochs[0] > first
        assert await drivers(store) == {"replica": "gateway-2"}
        assert not await store.renew("replica", first, 60, b"")
        assert await store.renew("replica", epochs[0], 60, b"")

    async def test_a_lease_is_refused_to_others_only(self, store: Store) -> None:
        first = await lead(store)
        assert await store.elect("replica", "gateway-2", 60) is None
        assert await lead(store) > first, "who lost the reply to its election asks again"
        assert await lead(store, "other", "gateway-2")
        assert await drivers(store) == {"replica": "gateway-1", "other": "gateway-2"}

    async def test_a_renewed_lease_lasts(self, store: Store, tick: Tick) -> None:
        epoch = await store.elect("replica", "gateway-1", 30)
        assert epoch is not None
        assert await store.renew("replica", epoch, LEASE_S, b"")

        async def lapsed() -> bool:
            return not await drivers(store)

        await eventually(lapsed, tick)
        with pytest.raises(LeaseLost):
            await store.claim("replica", epoch, [], {})

    async def test_a_lease_that_ran_out_is_taken_up_again_unless_it_is_another_s(
        self, store: Store, tick: Tick
    ) -> None:
        epoch = await store.elect("replica", "gateway-1", LEASE_S)
        assert epoch is not None

        async def lapsed() -> bool:
            return not await drivers(store)

        await eventually(lapsed, tick)
        assert await store.renew("replica", epoch, LEASE_S, b"")
        assert await drivers(store) == {"replica": "gateway-1"}
        assert await store.claim("replica", epoch, [], {}) == []
        await eventually(lapsed, tick)
        assert await lead(store, gateway="gateway-2") > epoch
        assert not await store.renew("replica", epoch, 60, b"")

    async def test_a_lease_that_was_given_up_is_not_taken_up_again(self, store: Store) -> None:
        epoch = await lead(store)
        await store.resign("replica", epoch)
        assert not await store.renew("replica", epoch, 60, b"")
        assert await drivers(store) == {}

    async def test_what_a_driver_says_of_its_replica_is_seen_by_all(self, store: Store) -> None:
        epoch = await lead(store)
        assert await store.renew("replica", epoch, 60, b"\x00 fine\xff\n")
        assert not await store.renew("replica", epoch + 1, 60, b"forged")
        assert not await store.renew("other", epoch, 60, b"forged")
        seats = (await store.assemble("onlooker", ONLOOKER, 0)).seats
        assert seats == {"replica": Seat("gateway-1", b"\x00 fine\xff\n")}

    async def test_gateways_are_seen_while_they_say_so(self, store: Store, tick: Tick) -> None:
        a, b = Peer(False, b""), Peer(True, b"1 2\x00\n")
        assert (await store.assemble("onlooker", ONLOOKER, 0)).gateways == {}
        assert (await store.assemble("b", b, 60)).gateways == {"b": b}
        assert (await store.assemble("a", a, LEASE_S)).gateways == {"a": a, "b": b}
        assert (await store.assemble("b", Peer(False, b"new"), 60)).gateways["b"] == Peer(False, b"new")

        async def lapsed() -> bool:
            return "a" not in (await store.assemble("onlooker", ONLOOKER, 0)).gateways

        await eventually(lapsed, tick)
        assert (await store.assemble("b", b, 0)).gateways == {}

    async def test_letters_are_collected_in_order_and_from_where_the_reader_was(self, store: Store) -> None:
        assert await store.collect("a", "", 99, 0.01) == []
        await store.post({"a": b"1", "b": b"other"})
        await store.post({"a": b"\x002\xff"})
        (first, one), (second, two) = await store.collect("a", "", 99, 0.01)
        assert (one, two) == (b"1", b"\x002\xff")
        assert await store.collect("a", "", 1, 0.01) == [(first, one)]
        assert await store.collect("a", first, 99, 0.01) == [(second, two)]
        assert await store.collect("a", second, 99, 0.01) == []
        assert [letter for _, letter in await store.collect("b", "", 99, 0.01)] == [b"other"]
        await store.post({})

    async def test_a_letter_wakes_who_waits_for_it(self, store: Store) -> None:
        waiting = asyncio.create_task(store.collect("a", "", 99, 30))
        await asyncio.sleep(0.01)
        await store.post({"b": b"no"})
        await store.post({"a": b"yes"})
        assert [letter for _, letter in await waiting] == [b"yes"]

    async def test_an_inbox_keeps_the_latest_letters(self, store: Store) -> None:
        for number in range(MAX_LETTERS + 300):
            await store.post({"a": b"%d" % number})
        kept: list[tuple[str, bytes]] = []
        while letters := await store.collect("a", kept[-1][0] if kept else "", 99, 0.01):
            kept += letters
        assert MAX_LETTERS <= len(kept) < MAX_LETTERS + 200, "give or take"
        assert [int(letter) for _, letter in kept] == [*range(MAX_LETTERS + 300)][-len(kept) :]

    async def test_a_resigned_lease_is_free_at_once(self, store: Store) -> None:
        first = await lead(store)
        await store.resign("replica", first + 1)
        assert await drivers(store) == {"replica": "gateway-1"}
        for _ in range(2):
            await store.resign("replica", first)
        assert await drivers(store) == {}
        assert await lead(store, gateway="gateway-2") > first

    async def test_the_bucket_table_changes_from_its_version_on(self, store: Store) -> None:
        assert not await store.rebucket((0, 9), 3)
        assert await store.rebucket((0, 4, 9), 0)
        assert not await store.rebucket((0, 5), 0)
        assert await store.rebucket((0,), 1)
        queue = await store.queue()
        assert (queue.bounds, queue.bounds_version) == ((0,), 2)

    async def test_the_backlog_is_what_is_queued(self, store: Store) -> None:
        await store.put_back([entry("a/0", score=-0.0, seconds=0.1), entry("a/1", score=0.49, seconds=0.2)])
        await store.put_back([entry("a/2", score=0.5), entry("a/3", score=-1.0, service_class=FLEX)])
        assert await slots(store) == {
            (DEFAULT, 0): (20, 0.3),
            (DEFAULT, 4): (10, 0.1),
            (FLEX, -8): (10, 0.1),
        }
        await claim_all(store, "a/0", "a/2")
        await store.cancel([("a/3", 0)])
        assert await slots(store) == {(DEFAULT, 0): (10, 0.2)}
        await store.finish([("a/1", 0)])
        assert await slots(store) == {}

    async def test_a_tenants_clock_is_ahead_by_so_much_at_most(self, store: Store) -> None:
        (first,) = await put(store, entry("a/0", slack_s=1.0, cost_s=100.0))
        near, far = [msgspec.structs.replace(ROOMY, max_lead_s=lead_s) for lead_s in (5.0, 500.0)]
        (second,) = await put(store, entry("a/1", slack_s=1.0, cost_s=100.0), limits=near)
        (third,) = await put(store, entry("a/2", slack_s=1.0, cost_s=100.0), limits=far)
        assert second - first == pytest.approx(5.0, abs=2.0)
        assert third - second == pytest.approx(100.0, abs=2.0)

    async def test_the_backlog_tells_where_a_tenant_stands(self, store: Store) -> None:
        (score,) = await put(store, entry("a/0", slack_s=1.0, cost_s=100.0))
        busy, other, elsewhere = [
            await store.backlog(service_class, tenant)
            for service_class, tenant in ((DEFAULT, "tenant"), (DEFAULT, "another"), (FLEX, "tenant"))
        ]
        assert busy.start_s == pytest.approx(score - 1.0 + 100.0)
        assert other.start_s == other.now_s >= score - 1.0
        assert elsewhere.start_s == elsewhere.now_s

    async def test_an_adopter_gets_the_record_its_age_and_its_log(self, store: Store) -> None:
        assert await store.adopt("a", "key", 60) is None
        kept = [record("a", age_s=7.0), record("b", age_s=0.0)]
        assert await store.keep(kept, 60) == [Written.DONE, Written.DONE]
        await store.log([LogWrite("a", 0, 0, b"\x00one"), LogWrite("b", 0, 0, b"other")], 60)
        await store.log([LogWrite("a", 0, 4, b"two\xff")], 60)
        now_us = (await store.queue()).now_s * 1e6
        adopted = await adopt(store)
        assert (adopted.content, adopted.log) == (b"content", b"\x00onetwo\xff")
        assert adopted.epoch >= now_us - 1
        assert adopted.age_s == pytest.approx(7.0, abs=2.0)
        again = await adopt(store)
        assert again.epoch > adopted.epoch
        assert (adopted.former_epoch, again.former_epoch) == (0, adopted.epoch)
        assert again.log == adopted.log

    async def test_only_its_owner_adopts_a_call_and_others_do_not_disturb_it(self, store: Store) -> None:
        await store.keep([record("a")], 60)
        for owner in ("", "another", "key "):
            assert await store.adopt("a", owner, 60) is None
        assert await store.log([LogWrite("a", 0, 0, b"one")], 60) == [Written.DONE]

    async def test_who_was_superseded_writes_no_more(self, store: Store) -> None:
        await store.keep([record("a"), record("b")], 60)
        await store.log([LogWrite("a", 0, 0, b"one")], 60)
        adopted = await adopt(store)
        writes = [LogWrite("a", 0, 3, b"two"), LogWrite("b", 0, 0, b"b"), LogWrite("a", 0, 9, b"")]
        assert await store.log(writes, 60) == [Written.FENCED, Written.DONE, Written.FENCED]
        assert await store.keep([record("a"), record("a", adopted.epoch - 1)], 60) == [Written.FENCED] * 2
        assert await store.log([LogWrite("a", adopted.epoch, 3, b"three")], 60) == [Written.DONE]
        assert (await adopt(store)).log == b"onethree"

    async def test_a_log_is_written_again_from_anywhere_and_never_with_a_gap(self, store: Store) -> None:
        assert await store.log([LogWrite("a", 0, 0, b"")], 60) == [Written.MISSING]
        await store.keep([record("a")], 60)
        assert await store.log([LogWrite("a", 0, 1, b"x")], 60) == [Written.MISSING]
        for offset, data in ((0, b"one"), (0, b"onetwo"), (3, b"two"), (6, b""), (6, b"three")):
            assert await store.log([LogWrite("a", 0, offset, data)], 60) == [Written.DONE]
        beyond = [LogWrite("a", 0, 12, b"x"), LogWrite("a", 0, 12, b"")]
        assert await store.log(beyond, 60) == [Written.MISSING] * 2
        assert await store.log([LogWrite("a", 0, 2, b"ET")], 60) == [Written.DONE]
        assert (await adopt(store)).log == b"onETwothree"

    async def test_a_record_comes_with_the_beginning_of_its_log(self, store: Store) -> None:
        await store.keep([msgspec.structs.replace(record("a"), log=b"\x00one"), record("b")], 60)
        writes = [LogWrite("a", 0, 4, b"two"), LogWrite("b", 0, 1, b"x")]
        assert await store.log(writes, 60) == [Written.DONE, Written.MISSING]
        assert (await adopt(store)).log == b"\x00onetwo"
        assert (await adopt(store, "b")).log == b""

    async def test_a_record_kept_again_begins_its_log_again(self, store: Store) -> None:
        await store.keep([record("a")], 60)
        await store.log([LogWrite("a", 0, 0, b"long")], 60)
        assert await store.keep([record("a", epoch=3)], 60) == [Written.DONE]
        assert await store.log([LogWrite("a", 0, 0, b"x"), LogWrite("a", 3, 4, b"x")], 60) == [
            Written.FENCED,
            Written.MISSING,
        ]
        assert (await adopt(store)).log == b""

    async def test_records_go_when_nobody_has_prolonged_them_for_their_time(
        self, store: Store, tick: Tick
    ) -> None:
        short = msgspec.structs.replace(record("a"), log=b"one")
        await store.keep([short, record("b"), record("c")], LEASE_S)
        await store.log([LogWrite("b", 0, 0, b"x")], 60)
        await store.log([LogWrite("c", 0, 0, b"x", prolongs=False)], 60)

        async def gone() -> bool:
            return await store.log([LogWrite("a", 0, 3, b"two", prolongs=False)], 60) == [Written.MISSING]

        await eventually(gone, tick)
        assert (await adopt(store, "c")).log == b"x", "a log that begins is kept as long as others"
        assert (await adopt(store, "b")).log == b"x"
        await store.log([LogWrite("b", 9, 0, b"")], 60)
        assert await store.adopt("a", "key", 60) is None

    async def test_samples_come_in_the_order_of_their_arrival(self, store: Store) -> None:
        assert await store.samples("", 9) == []
        await store.append_samples([b"one", b"\x00\xff", b""])
        await store.append_samples([])
        await store.append_samples([b"four"])
        everything = await store.samples("", 9)
        assert [sample for _, sample in everything] == [b"one", b"\x00\xff", b"", b"four"]
        ids = [id for id, _ in everything]
        assert len(set(ids)) == 4
        assert await store.samples("", 2) == everything[:2]
        assert await store.samples(ids[1], 9) == everything[2:]
        assert await store.samples(ids[3], 9) == []

    async def test_the_latest_samples_are_kept(self, store: Store) -> None:
        for start in range(0, MAX_SAMPLES + 700, 700):
            await store.append_samples([b"%d" % number for number in range(start, start + 700)])
        found = await store.samples("", 10**6)
        assert len(found) == MAX_SAMPLES
        assert [sample for _, sample in found[-2:]] == [b"%d" % (start + 698), b"%d" % (start + 699)]

    async def test_a_published_model_is_replaced_by_whoever_knew_it(self, store: Store) -> None:
        assert await store.snapshot(0) is None
        now_us = (await store.queue()).now_s * 1e6
        assert await store.publish(b"first", 0)
        first = await store.snapshot(0)
        assert first is not None
        assert first[0] >= now_us - 1
        assert first[1] == b"first"
        assert not await store.publish(b"late", 0)
        assert not await store.publish(b"late", first[0] - 1)
        assert await store.snapshot(first[0]) is None
        assert await store.publish(b"\x00\xff", first[0])
        second = await store.snapshot(first[0])
        assert second is not None
        assert second[0] > first[0]
        assert second[1] == b"\x00\xff"
        assert await store.publish(b"third", second[0] + 10**15), "a store that came back empty is behind"

    async def test_a_model_too_large_is_refused(self, store: Store) -> None:
        assert await store.publish(bytes(MAX_SNAPSHOT_BYTES), 0)
        with pytest.raises(ValueError, match="at most"):
            await store.publish(bytes(MAX_SNAPSHOT_BYTES + 1), 10**18)

    async def test_thousands_at_once(self, store: Store) -> None:
        ids = [f"a/{i}" for i in range(1300)]
        await store.put_back([entry(id, attempt=1) for id in ids])
        assert (await store.queue()).tickets == 1300
        assert len(await peek_ids(store, limit=2000)) == 1300
        assert await store.audit("gateway-1", [(id, 1) for id in ids] + [("x", 0)], 60) == ["x"]
        await store.finish([(id, 1) for id in ids[:700]])
        assert await store.cancel([(id, 1) for id in ids]) == []
        assert (await store.queue()).tickets == 0

    @pytest.mark.parametrize("odd", ["a b:c/0", "{}", "ünï 🦊", "x\n\r\x00y", "5 5 5", ""])
    async def test_names_may_be_anything(self, store: Store, odd: str) -> None:
        await put(store, entry(odd, origin=odd, tenant=odd))
        (head,) = (await store.queue()).heads
        assert head.ticket == odd
        assert await peek_ids(store) == [odd]
        epoch = await lead(store, odd, odd)
        assert await drivers(store) == {odd: odd}
        assert len(await store.claim(odd, epoch, [(odd, 0)], {})) == 1
        assert await store.sweep(odd, epoch, [(odd, 0)]) == []
        assert await store.renew(odd, epoch, 60, b"")
        assert (await store.assemble(odd, ONLOOKER, 60)).gateways == {odd: ONLOOKER}
        await store.post({odd: b"letter"})
        assert len(await store.collect(odd, "", 99, 0.01)) == 1
        assert await store.cancel([(odd, 0)]) == [(odd, odd)]
        assert await store.keep([record(odd, owner=odd)], 60) == [Written.DONE]
        assert await store.log([LogWrite(odd, 0, 0, b"x")], 60) == [Written.DONE]
        assert await store.adopt(odd, odd + "x", 60) is None
        adopted = await store.adopt(odd, odd, 60)
        assert adopted is not None
        assert (adopted.content, adopted.log) == (b"content", b"x")
        assert await store.audit(odd, [(odd, 0)], 60) == [odd]
