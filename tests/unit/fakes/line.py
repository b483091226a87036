"""A store at the end of a line that can be cut, for gateways that die without a word or lose the store."""

from typing import Any

from gateway.errors import StoreLost
from gateway.store.memory import MemoryStore


class Line:
    """A gateway's view of the store (ports.Store)."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.is_cut = False

    def __getattr__(self, verb: str) -> Any:
        async def ask(*args: Any, **options: Any) -> Any:
            if self.is_cut:
                raise StoreLost("cut")
            return await getattr(self._store, verb)(*args, **options)

        return ask
