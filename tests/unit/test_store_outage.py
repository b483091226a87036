"""A store that does not answer for a while, and the gateway on it, on virtual time."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from gateway.errors import StoreLost
from gateway.ports import Entry
from gateway.request import Queue, ServiceClass
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.world import DRIVER, World


class FreezingStore(MemoryStore):
    """Fails at once, as behind an open breaker, after `freeze`; notes what it was asked."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        super().__init__(self._now)
        self.thaws_s = 0.0
        self.frozen = {"renew", "audit"}
        """Verbs that fail."""
        self.renewed: list[tuple[float, bool]] = []
        self.audited_s: list[float] = []
        self.mutes_claim = False
        """The next claim's answer is lost."""

    def freeze(self, seconds: float) -> None:
        self.thaws_s = self._now() + seconds

    def _check_answers(self, verb: str) -> None:
        if verb in self.frozen and self._now() < self.thaws_s:
            raise StoreLost("frozen")

    async def renew(self, replica: str, epoch: int, lease_s: float, standing: bytes) -> bool:
        self._check_answers("renew")
        is_kept = await super().renew(replica, epoch, lease_s, standing)
        self.renewed.append((self._now(), is_kept))
        return is_kept

    async def claim(
        self,
        replica: str,
        epoch: int,
        tickets: Sequence[tuple[str, int]],
        served: Mapping[ServiceClass, float],
    ) -> list[Entry]:
        self._check_answers("claim")
        entries = await super().claim(replica, epoch, tickets, served)
        if self.mutes_claim:
            self.mutes_claim = False
            raise StoreLost("frozen")
        return entries

    async def queue(self) -> Queue:
        self._check_answers("queue")
        return await super().queue()

    async def sweep(self, replica: str, epoch: int, live: Sequence[tuple[str, int]]) -> list[str]:
        self._check_answers("sweep")
        return await super().sweep(replica, epoch, live)

    async def audit(self, gateway: str, live: Sequence[tuple[str, int]], lease_s: float) -> list[str]:
        self._check_answers("audit")
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


@pytest.mark.parametrize("offset_s", [number / 50 for number in range(6)])
@pytest.mark.parametrize("first", ["claim", "sweep"])
def test_a_lease_that_ran_out_in_a_freeze_is_taken_up_again(first: str, offset_s: float) -> None:
    """Whoever asks first: claims, sweeps and renewals are each tried again ten times a second."""

    async def main() -> None:
        store = FreezingStore()
        backend = FakeBackend("r0")
        driver = msgspec.structs.replace(DRIVER, renew_s=1.03)  # Not just when the queue is looked at.
        async with World(store, [backend], driver=driver).running() as world:
            await asyncio.sleep(1.5)
            # A claim that was tried in vain is swept up first.
            store.frozen |= {"claim", "sweep"} if first == "sweep" else {"queue"}
            store.freeze(10.0 + offset_s)
            await asyncio.sleep(0.03)
            answer = asyncio.create_task(world.answer([1, 2, 3], max_tokens=4))
            await asyncio.sleep(store.thaws_s - asyncio.get_running_loop().time() + 0.5)
            assert answer.done()
            assert backend.sessions == 1

    clock.run(main())


def test_after_a_thaw_the_audit_is_not_far() -> None:
    async def main() -> None:
        store = FreezingStore()
        async with World(store, [FakeBackend("r0")]).running():
            await asyncio.sleep(1.5)
            store.freeze(10.0)
            await asyncio.sleep(10.5)
            assert any(store.thaws_s <= moment_s <= store.thaws_s + 0.2 for moment_s in store.audited_s)

    clock.run(main())


def test_a_claim_whose_answer_the_freeze_took_is_made_good_within_a_second() -> None:
    async def main() -> None:
        store = FreezingStore()
        async with World(store, [FakeBackend("r0")]).running() as world:
            await asyncio.sleep(1.5)
            store.freeze(10.0)
            await asyncio.sleep(10.3)  # An audit has just been: in calm the next one is 2 s away.
            store.mutes_claim = True
            begun_s = asyncio.get_running_loop().time()
            assert len(await world.answer([1, 2, 3], max_tokens=4)) == 4
            assert not store.mutes_claim
            assert asyncio.get_running_loop().time() - begun_s < 1.0

    clock.run(main())
