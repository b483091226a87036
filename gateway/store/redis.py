"""The queue in Redis or Valkey: one script a verb, one round trip a call (two if a ticket is broken)."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from gateway.errors import LeaseLost, QueueFull, StoreLost
from gateway.ports import (
    INBOX_TTL_S,
    MAX_LETTERS,
    MAX_SAMPLES,
    MAX_SHOWN,
    Adopted,
    Assembly,
    Entry,
    Limits,
    LogWrite,
    Peer,
    Record,
    Written,
)
from gateway.request import Backlog, Queue, ServiceClass, Ticket
from gateway.store import wire
from gateway.store.home import Home
from gateway.store.keys import queue_keys
from gateway.store.scripts import Changed, Observe, Scripts, source

T = TypeVar("T")

VERBS = (
    *("put", "start", "put_back", "queue", "peek", "claim", "finish", "cancel", "audit", "reap", "sweep"),
    *("elect", "renew", "resign", "assemble", "rebucket", "backlog", "ping"),
    *("post", "keep", "log", "adopt", "append_samples", "samples", "publish", "snapshot"),
)
MAX_PER_SCRIPT = 512
"""A script holds the whole server; what need not be atomic goes in parts."""
_ANY_ATTEMPT = 2**53
"""Lua's integers end here."""

log = logging.getLogger(__name__)


class RedisStore:
    """`home` comes from `home.connect`; the store closes it.  `grace_s` is how long an origin that has put but
    not yet audited counts as alive.  `observe` and `changed` are those of Scripts."""

    def __init__(
        self,
        home: Home,
        model: str,
        *,
        shard: int = 0,
        grace_s: float = 10.0,
        timeout_s: float = 0.5,
        observe: Observe = lambda verb, seconds, ok: None,
        changed: Changed = lambda is_lost: None,
    ) -> None:
        self._keys = queue_keys(model, shard)
        self._grace_s = grace_s
        common = source("common")
        sources = {verb: common + source(verb) for verb in VERBS}
        sources |= {verb: common + source("best") + source(verb) for verb in ("queue", "peek")}
        self._scripts = Scripts(home, sources, ("ping", self._keys, [b""]), timeout_s, observe, changed)
        self.num_broken = 0
        """Tickets forgotten because they did not decode."""

    async def put(self, entries: Sequence[Entry], limits: Limits) -> list[float]:
        max_us = wire.microseconds(min(limits.max_seconds, wire.MAX_TIME_S))
        max_lead_s = min(limits.max_lead_s, wire.MAX_TIME_S)
        bounds = (limits.max_tickets, limits.max_tokens, limits.max_bytes, max_us, max_lead_s)
        args = [*bounds, self._grace_s, *_entries_args(entries)]
        result = await self._run("put", args, _scores_or_reason)
        if isinstance(result, str):
            raise QueueFull(result)
        return result

    async def start(
        self, replica: str, epoch: int, entries: Sequence[Entry], served: Mapping[ServiceClass, float]
    ) -> list[float] | None:
        args = [replica, epoch, self._grace_s, *_served_args(served), *_entries_args(entries)]
        return await self._run("start", args, _unless_lost(wire.started(len(entries))))

    async def put_back(self, entries: Sequence[Entry]) -> None:
        for part in _parts(entries):
            await self._run("put_back", [self._grace_s, *_entries_args(part)], bool)

    async def queue(self) -> Queue:
        queue, shown = await self._run("queue", [MAX_SHOWN], wire.queue)
        return msgspec.structs.replace(queue, shown=await self._sound(shown))

    async def peek(self, sets: Sequence[tuple[int, ServiceClass]], limit: int) -> list[Ticket]:
        names = [f"{bin}:{service_class.value}" for bin, service_class in dict.fromkeys(sets)]
        return await self._sound(await self._run("peek", [limit, *names], wire.peeked))

    async def claim(
        self,
        replica: str,
        epoch: int,
        tickets: Sequence[tuple[str, int]],
        served: Mapping[ServiceClass, float],
    ) -> list[Entry]:
        args = [replica, epoch, *_served_args(served), *wire.flat(tickets)]
        return await self._sound(await self._run("claim", args, _unless_lost(wire.claimed)))

    async def finish(self, tickets: Sequence[tuple[str, int]]) -> None:
        for part in _parts(tickets):
            await self._run("finish", wire.flat(part), bool)

    async def cancel(self, tickets: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        leased = [await self._run("cancel", wire.flat(part), wire.text_pairs) for part in _parts(tickets)]
        return [pair for part in leased for pair in part]

    async def audit(self, gateway: str, live: Sequence[tuple[str, int]], lease_s: float) -> list[str]:
        unknown = []
        for part in _parts(live) or [live]:
            unknown += await self._run("audit", [gateway, lease_s, *wire.flat(part)], wire.texts)
        return unknown

    async def reap(self, limit: int) -> list[tuple[str, str]]:
        return await self._run("reap", [limit], wire.text_pairs)

    async def sweep(self, replica: str, epoch: int, live: Sequence[tuple[str, int]]) -> list[str]:
        return await self._run("sweep", [replica, epoch, *wire.flat(live)], _unless_lost(wire.texts))

    async def elect(self, replica: str, gateway: str, lease_s: float) -> int | None:
        return await self._run("elect", [replica, gateway, lease_s], _epoch)

    async def renew(self, replica: str, epoch: int, lease_s: float, standing: bytes) -> bool:
        return await self._run("renew", [replica, epoch, lease_s, standing], bool)

    async def resign(self, replica: str, epoch: int) -> None:
        await self._run("resign", [replica, epoch], bool)

    async def assemble(self, gateway: str, peer: Peer, life_s: float) -> Assembly:
        return await self._run("assemble", [gateway, int(peer.drives), peer.card, life_s], wire.assembly)

    async def post(self, letters: Mapping[str, bytes]) -> None:
        await self._run("post", [MAX_LETTERS, _ms(INBOX_TTL_S), *wire.flat(letters.items())], bool)

    async def collect(self, gateway: str, after: str, limit: int, wait_s: float) -> list[tuple[str, bytes]]:
        streams: Any = {f"{self._keys.inbox}:{gateway}": after or "0"}
        # No script: those cannot wait.
        block_ms = round(wait_s * 1000)
        return await self._scripts.wait(
            lambda client: client.xread(streams, count=limit, block=block_ms), wait_s, wire.letters
        )

    async def keep(self, records: Sequence[Record], ttl_s: float) -> list[Written]:
        written = []
        for part in _parts(records):
            args = [arg for record in part for arg in wire.record_args(record)]
            written += await self._run("keep", [_ms(ttl_s), *args], wire.written(len(part)))
        return written

    async def log(self, writes: Sequence[LogWrite], ttl_s: float) -> list[Written]:
        written = []
        for part in _parts(writes):
            written += await self._run("log", [_ms(ttl_s), *wire.log_args(part)], wire.written(len(part)))
        return written

    async def adopt(self, call: str, owner: str, ttl_s: float) -> Adopted | None:
        return await self._run("adopt", [call, owner, _ms(ttl_s)], wire.adopted)

    async def rebucket(self, bounds: tuple[int, ...], version: int) -> bool:
        return await self._run("rebucket", [version, " ".join(map(str, bounds))], bool)

    async def backlog(self, service_class: ServiceClass, tenant: str) -> Backlog:
        return await self._run("backlog", [service_class.value, tenant], wire.backlog)

    async def append_samples(self, samples: Sequence[bytes]) -> None:
        for part in _parts(samples):
            await self._run("append_samples", [MAX_SAMPLES, *part], bool)

    async def samples(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        return await self._run("samples", [after, limit], wire.samples)

    async def publish(self, snapshot: bytes, version: int) -> bool:
        wire.check_snapshot(snapshot)
        return await self._run("publish", [version, snapshot], bool)

    async def snapshot(self, version: int) -> tuple[int, bytes] | None:
        return await self._run("snapshot", [version], wire.snapshot)

    async def ping(self) -> None:
        # A nonce, so that only the answer to this question will do.
        nonce = os.urandom(8)
        if await self._run("ping", [nonce], lambda reply: reply) != nonce:
            raise StoreLost("the store answered something else")

    async def aclose(self) -> None:
        await self._scripts.aclose()

    async def _run(self, verb: str, args: Sequence[wire.Arg], parse: Callable[[Any], T]) -> T:
        return await self._scripts.run(verb, self._keys, args, parse)

    async def _sound(self, found: Sequence[tuple[bytes, T | None]]) -> list[T]:
        """What did decode; the rest is forgotten."""
        if ids := [id for id, item in found if item is None]:
            await self._forget_broken(ids)
        return [item for _, item in found if item is not None]

    async def _forget_broken(self, ids: Sequence[bytes]) -> None:
        self.num_broken += len(ids)
        log.error("forgetting %d tickets that do not decode", len(ids))
        # If this fails they are met again; the sound ones beside them must not be lost over it.
        with contextlib.suppress(StoreLost):
            await self._run("cancel", wire.flat((id, _ANY_ATTEMPT) for id in ids), bool)


def _entries_args(entries: Sequence[Entry]) -> list[wire.Arg]:
    wire.check_times(entries)
    return [arg for entry in entries for arg in wire.entry_args(entry)]


def _served_args(served: Mapping[ServiceClass, float]) -> list[wire.Arg]:
    return [len(served), *wire.flat((service_class.value, figure) for service_class, figure in served.items())]


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + MAX_PER_SCRIPT] for start in range(0, len(items), MAX_PER_SCRIPT)]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _scores_or_reason(reply: Any) -> list[float] | str:
    return wire.text(reply) if isinstance(reply, bytes) else [float(score) for score in reply]


def _unless_lost(parse: Callable[[Any], T]) -> Callable[[Any], T]:
    def parse_or_raise(reply: Any) -> T:
        if reply is None:
            raise LeaseLost
        return parse(reply)

    return parse_or_raise


def _epoch(reply: Any) -> int | None:
    return None if reply is None else int(reply)
