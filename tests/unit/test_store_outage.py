"""A store that does not answer for a while, and the gateway on it, on virtual time."""

import asyncio
from collections.abc import Sequence

from gateway.errors import StoreLost
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.world import World


class FreezingStore(MemoryStore):
    """Fails at once, as behind an open breaker, after `freeze`; notes what it was asked."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        super().__init__(self._now)
        self.thaws_s = 0.0
        self.renewed: list[tuple[float, bool]] = []
        self.audited_s: list[float] = []

    def freeze(self, seconds: float) -> None:
        self.thaws_s = self._now() + seconds

    def _check_answers(self) -> None:
        if self._now() < self.thaws_s:
            raise StoreLost("frozen")

    async def renew(self, replica: str, epoch: int, lease_s: float, standing: bytes) -> bool:
        self._check_answers()
        is_kept = await super().renew(replica, epoch, lease_s, standing)
        self.renewed.append((self._now(), is_kept))
        return is_kept

    async def audit(self, gateway: str, live: Sequence[tuple[str, int]], lease_s: float) -> list[str]:
        self._check_answers()
        self.audited_s.append(self._now())
        return await super().audit(gateway, live, lease_s)


def test_a_thaw_shortly_before_a_lease_ends_keeps_it() -> None:
    async def main() -> None:
        store = FreezingStore()
        async with World(store, [FakeBackend("r0")]).running():
            await asyncio.sleep(1.5)
            store.freeze(2.3)  # the lease was renewed after 1 s, for 3 s
            await asyncio.sleep(5.0)
            renewed_s, is_kept = zip(*store.renewed, strict=True)
            assert all(is_kept)
            assert any(store.thaws_s <= moment_s <= store.thaws_s + 0.1 for moment_s in renewed_s)

    clock.run(main())


def test_after_a_thaw_the_audit_is_not_far() -> None:
    async def main() -> None:
        store = FreezingStore()
        async with World(store, [FakeBackend("r0")]).running():
            await asyncio.sleep(1.5)
            store.freeze(10.0)
            await asyncio.sleep(10.5)
            assert store.thaws_s <= store.audited_s[-1] <= store.thaws_s + 0.2

    clock.run(main())
