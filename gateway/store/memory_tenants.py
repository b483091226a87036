"""Tenants in one process, on any clock: the rules of `lua/`."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from gateway.ports import Denied, Granted
from gateway.quota import Quota
from gateway.store import minute
from gateway.store.minute import Minute


class _Tenant:
    def __init__(self) -> None:
        self.requests = Minute()
        self.tokens = Minute()
        self.streams: dict[str, float] = {}
        """id -> until when it counts."""
        self.held: dict[str, tuple[int, int]] = {}
        """id -> second, tokens."""

    def forget_dead(self, now_s: float) -> None:
        for id in [id for id, expiry_s in self.streams.items() if expiry_s <= now_s]:
            del self.streams[id]
            self.held.pop(id, None)


class MemoryTenants:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._of: defaultdict[str, _Tenant] = defaultdict(_Tenant)
        self._records: dict[str, bytes] = {}
        self._version = 0

    async def reserve(
        self, tenant: str, id: str, tokens: int, quota: Quota, ttl_s: float, former: str = ""
    ) -> Granted | Denied:
        now_s, state = self._clock(), self._of[tenant]
        second = int(now_s)
        state.forget_dead(now_s)
        if former in state.held:
            state.held[id], state.streams[id] = state.held.pop(former), now_s + ttl_s
            state.streams.pop(former, None)
            return minute.answer(
                "", now_s, state.requests.look(second, 0, None), state.tokens.look(second, 0, None), quota
            )
        requests = state.requests.look(second, 1, quota.requests_per_minute)
        used = state.tokens.look(second, tokens, quota.tokens_per_minute)
        if requests.full or used.full:
            bound = "requests" if requests.full >= used.full else "tokens"
            return minute.answer(bound, now_s, requests, used, quota)
        if quota.max_streams is not None and len(state.streams) >= quota.max_streams:
            return minute.answer("streams", now_s, requests, used, quota)
        state.requests.add(second, 1)
        state.tokens.add(second, tokens)
        state.held[id], state.streams[id] = (second, tokens), now_s + ttl_s
        requests, used = state.requests.look(second, 0, None), state.tokens.look(second, 0, None)
        return minute.answer("", now_s, requests, used, quota)

    async def prolong(self, tenant: str, ids: Sequence[str], ttl_s: float) -> None:
        now_s, state = self._clock(), self._of[tenant]
        state.forget_dead(now_s)
        state.streams.update(dict.fromkeys(ids, now_s + ttl_s))

    async def settle(self, tenant: str, used: Mapping[str, int | None]) -> None:
        state = self._of[tenant]
        for id, tokens in used.items():
            state.streams.pop(id, None)
            if id in state.held:
                second, reserved = state.held.pop(id)
                state.tokens.give_back(second, reserved - (tokens or 0))
                if tokens is None:
                    state.requests.give_back(second, 1)
                elif tokens > reserved:
                    state.tokens.add(int(self._clock()), tokens - reserved)

    async def keys(self, version: int) -> tuple[int, dict[str, bytes]] | None:
        return None if version == self._version else (self._version, dict(self._records))

    async def set_key(self, name: str, record: bytes) -> None:
        self._records[name] = record
        self._version = max(self._version + 1, int(self._clock() * 1e6))

    async def drop_key(self, name: str) -> bool:
        found = self._records.pop(name, None) is not None
        self._version += found
        return found

    async def aclose(self) -> None:
        pass
