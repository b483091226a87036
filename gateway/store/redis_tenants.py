"""Tenants in Redis or Valkey: one script a verb, one round trip a call."""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.ports import Denied, Granted
from gateway.quota import Quota
from gateway.store import minute, wire
from gateway.store.home import Home
from gateway.store.keys import record_keys, tenant_keys
from gateway.store.minute import Use
from gateway.store.scripts import Observe, Scripts, source

QUOTA_VERBS = ("reserve", "prolong", "settle")
KEY_VERBS = ("keys", "set_key", "drop_key")


class RedisTenants:
    """`home` comes from `home.connect`, and is this adapter's own: it closes it."""

    def __init__(
        self,
        home: Home,
        *,
        timeout_s: float = 0.5,
        observe: Observe = lambda verb, seconds, ok: None,
    ) -> None:
        sources = {verb: source("tenant") + source(verb) for verb in QUOTA_VERBS}
        sources |= {verb: source(verb) for verb in KEY_VERBS}
        self._scripts = Scripts(home, sources, ("keys", record_keys(), [0]), timeout_s, observe)

    async def reserve(
        self, tenant: str, id: str, tokens: int, quota: Quota, ttl_s: float, former: str = ""
    ) -> Granted | Denied:
        bounds = (quota.requests_per_minute, quota.tokens_per_minute, quota.max_streams)
        args = [id, tokens, ttl_s, *("" if bound is None else bound for bound in bounds), former]
        return await self._scripts.run("reserve", tenant_keys(tenant), args, lambda reply: _reserved(reply, quota))

    async def prolong(self, tenant: str, ids: Sequence[str], ttl_s: float) -> None:
        await self._scripts.run("prolong", tenant_keys(tenant), [ttl_s, *ids], bool)

    async def settle(self, tenant: str, used: Mapping[str, int | None]) -> None:
        args = wire.flat((id, "" if tokens is None else tokens) for id, tokens in used.items())
        await self._scripts.run("settle", tenant_keys(tenant), args, bool)

    async def keys(self, version: int) -> tuple[int, dict[str, bytes]] | None:
        return await self._scripts.run("keys", record_keys(), [version], _records)

    async def set_key(self, name: str, record: bytes) -> None:
        await self._scripts.run("set_key", record_keys(), [name, record], bool)

    async def drop_key(self, name: str) -> bool:
        return await self._scripts.run("drop_key", record_keys(), [name], bool)

    async def aclose(self) -> None:
        await self._scripts.aclose()


def _reserved(reply: Sequence[bytes], quota: Quota) -> Granted | Denied:
    denied, *figures = reply
    now_us, *uses = map(int, figures)
    return minute.answer(wire.text(denied), now_us / 1e6, Use(*uses[:3]), Use(*uses[3:]), quota)


def _records(reply: Sequence[Any] | None) -> tuple[int, dict[str, bytes]] | None:
    if reply is None:
        return None
    version, records = reply
    return int(version), {wire.text(name): record for name, record in wire.pairs(records)}
