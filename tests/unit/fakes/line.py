"""A store at the end of a line that can be cut, for gateways that die without a word or lose the store."""

import asyncio
from typing import Any

from gateway.errors import StoreLost
from gateway.store.memory import MemoryStore
from gateway.store.memory_tenants import MemoryTenants


class Line:
    """A gateway's view of the store (ports.Store, ports.Tenants)."""

    def __init__(self, store: MemoryStore | MemoryTenants) -> None:
        self._store = store
        self.is_cut = False
        self.delays_s: dict[str, float] = {}
        """By verb, of the way there."""
        self.answer_delays_s: dict[str, float] = {}
        """And of the way back."""

    def __getattr__(self, verb: str) -> Any:
        async def ask(*args: Any, **options: Any) -> Any:
            if self.is_cut:
                raise StoreLost("cut")
            if verb in self.delays_s:
                await asyncio.sleep(self.delays_s[verb])
            answer = await getattr(self._store, verb)(*args, **options)
            if verb in self.answer_delays_s:
                await asyncio.sleep(self.answer_delays_s[verb])
            return answer

        return ask
