"""Requests that meet an idle gateway run at once, without a place in the queue; and what may happen meanwhile."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from gateway.errors import StoreLost, Unavailable
from gateway.policy.preset import FULL
from gateway.ports import Entry, Limits
from gateway.request import Queue, ServiceClass
from gateway.store.memory import MemoryStore
from tests.unit.fakes import clock
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.world import ORIGIN, World
from tests.unit.test_serving import expected

CONFIG = msgspec.structs.replace(ORIGIN, policy=FULL)
FATES = [*["answered"] * 6, "unasked", "unheard"]


class FarAway(MemoryStore):
    """What is asked for takes its time, and some of it is lost on the way there or back."""

    def __init__(self, seed: int = 0, delay_s: float = 0.0, fates: Sequence[str] = ("answered",)) -> None:
        super().__init__(clock.of_store())
        self.asked: Counter[str] = Counter()
        self.started = 0
        self._rng = random.Random(seed)
        self._delay_s = delay_s
        self._fates = fates

    async def start(
        self, replica: str, epoch: int, entries: Sequence[Entry], served: Mapping[ServiceClass, float]
    ) -> list[float] | None:
        self.asked["start"] += 1
        fate = self._rng.choice(self._fates)
        await self._pass()
        if fate == "unasked":
            raise StoreLost
        scores = await super().start(replica, epoch, entries, served)
        self.started += scores is not None
        # As the port says, a verb has ended when its cancellation is heard of.
        with contextlib.suppress(asyncio.CancelledError):
            await self._pass()
        if fate == "unheard":
            raise StoreLost
        return scores

    async def put(self, entries: Sequence[Entry], limits: Limits) -> list[float]:
        self.asked["put"] += 1
        return await super().put(entries, limits)

    async def queue(self) -> Queue:
        self.asked["queue"] += 1
        return await super().queue()

    async def _pass(self) -> None:
        if self._delay_s:
            await asyncio.sleep(self._rng.random() * self._delay_s)


def test_a_lone_request_is_neither_put_nor_looked_for() -> None:
    async def main() -> None:
        store = FarAway()
        async with World(store, [FakeBackend("r0")], CONFIG).running() as world:
            await world.answer([1], 2, "warm")
            for number in range(5):
                # Between two of the looks that a driver takes now and then.
                before = store.asked["queue"]
                while store.asked["queue"] == before:
                    await asyncio.sleep(0.001)
                asked = Counter(store.asked)
                assert await world.answer([number, 7], 3, f"call{number}") == expected([number, 7], 3)
                assert store.asked - asked == Counter(start=1)
            assert (await store.queue()).served[ServiceClass.DEFAULT] > 0
            assert b"put_backs_total{" not in world.metrics.render()

    clock.run(main())


def test_those_who_come_together_are_queued_together() -> None:
    async def main() -> None:
        store = FarAway()
        async with World(store, [FakeBackend("r0")], CONFIG).running() as world:
            await world.answer([1], 2, "warm")
            before = store.started
            together = [world.answer([number, 7], 3, f"call{number}") for number in range(4)]
            assert await asyncio.gather(*together) == [expected([number, 7], 3) for number in range(4)]
            assert store.started == before

    clock.run(main())


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(6))
def test_clients_that_leave_and_answers_that_are_lost_leave_nothing_behind(seed: int, delay_s: float) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        store = FarAway(seed, delay_s, FATES)
        ids = [f"call{number}" for number in range(150)]
        async with World(store, [FakeBackend("r0"), FakeBackend("r1")], CONFIG).running() as world:
            answered = 0
            for number, id in enumerate(ids):
                prompt, most = [number, 7], rng.randrange(1, 9)
                task = asyncio.create_task(world.answer(prompt, most, id))
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.choice([0, 0, 0.001, 0.005, 0.02]))
                    task.cancel()
                    await asyncio.wait([task])
                    continue
                if rng.random() < 0.8:
                    await asyncio.wait([task])
                    assert await task == expected(prompt, most)
                    answered += 1
                await asyncio.sleep(rng.choice([0, 0.01, 0.1]))
            assert answered > 40
            assert 20 < store.started < store.asked["start"]
            await asyncio.sleep(10)
            assert await world.is_idle()
            assert await store.cancel([(f"{id}/0", 2**40) for id in ids]) == [], "leased for ever"

    clock.run(main())


def test_a_request_offered_to_a_driver_that_leaves_is_answered_by_another() -> None:
    async def main() -> None:
        store = FarAway(delay_s=0.05)
        backends = [FakeBackend("r0")]
        async with World(store, backends, CONFIG).running() as world:
            await world.answer([1], 2, "warm")
            for number in range(10):
                asking = asyncio.create_task(world.answer([number, 7], 3, f"call{number}"))
                await asyncio.sleep(0.002 * number)
                world.drivers[0].hand_over()
                assert await asking == expected([number, 7], 3)
                while not world.drivers[0].leads:
                    await asyncio.sleep(0.01)

    clock.run(main())


def test_an_engine_that_dies_of_what_was_started_costs_a_pause() -> None:
    async def main() -> None:
        store = FarAway(delay_s=0.01)
        backend = FakeBackend("r0")
        async with World(store, [backend], CONFIG).running() as world:
            await world.answer([1], 2, "warm")
            for number in range(6):
                asking = asyncio.create_task(world.answer([number, 7], 3, f"call{number}"))
                await asyncio.sleep(0.003 * number)
                backend.kill()
                assert await asking == expected([number, 7], 3)
                await asyncio.sleep(1.0)

    clock.run(main())


def test_a_store_that_is_lost_refuses_as_before() -> None:
    async def main() -> None:
        store = FarAway(fates=["unasked"])
        async with World(store, [FakeBackend("r0")], CONFIG).running() as world:
            await world.answer([1], 2, "warm")
            # It is put instead.
            assert await world.answer([2], 2, "call") == expected([2], 2)
            assert store.asked["start"] == 1

            async def lost(entries: Sequence[Entry], limits: Limits) -> list[float]:
                raise StoreLost

            store.put = lost  # type: ignore[method-assign]
            with pytest.raises(Unavailable):
                await world.answer([3], 2, "another")

    clock.run(main())
