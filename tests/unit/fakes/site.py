"""Several gateways over the same replicas and the same store, on virtual time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gateway import origin as origins
from gateway.store.memory import MemoryStore
from gateway.store.memory_tenants import MemoryTenants
from tests.unit.fakes import clock
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.line import Line
from tests.unit.fakes.world import ORIGIN, World

SETTLE_S = 15.0


class Site:
    """Gateways that come and go, over replicas that stay."""

    def __init__(self, replicas: int, config: origins.Config) -> None:
        self.store = MemoryStore(clock=clock.of_store())
        self.tenants = MemoryTenants(clock=clock.of_store())
        self.backends = [FakeBackend(f"r{number}") for number in range(replicas)]
        self.gateways: dict[str, World] = {}
        self._config = config
        self._stacks: dict[str, contextlib.AsyncExitStack] = {}

    async def join(self, name: str) -> World:
        line: Any = Line(self.store)
        tenants: Any = Line(self.tenants)
        world = World(line, self.backends, self._config, name=name, tenants=tenants)
        self._stacks[name] = contextlib.AsyncExitStack()
        self.gateways[name] = await self._stacks[name].enter_async_context(world.joined())
        return world

    async def leave(self, name: str) -> None:
        """In order: others drive before it goes."""
        world = self.gateways[name]
        world.origin.is_draining = world.switchboard.board.is_leaving = True
        await world.origin.idle()
        await asyncio.sleep(1.0)
        assert not any(driver.leads for driver in world.drivers) or len(self.gateways) == 1
        await self._end(name)

    async def die(self, name: str) -> None:
        """Without a word to anybody."""
        self.gateways[name].store.is_cut = True  # type: ignore[attr-defined]
        await self._end(name)

    async def _end(self, name: str) -> None:
        del self.gateways[name]
        await self._stacks.pop(name).aclose()

    def led(self) -> dict[str, list[str]]:
        return {
            name: [driver.replica for driver in world.drivers if driver.leads]
            for name, world in self.gateways.items()
        }

    async def is_settled(self) -> bool:
        """Nothing is left of any request, and each gateway tells of the replicas that it leads."""
        for name, led in self.led().items():
            world = self.gateways[name]
            if not await world.is_idle() or world.told() != set(led):
                return False
        return True

    async def aclose(self) -> None:
        for name in list(self.gateways):
            await self._end(name)
        for backend in self.backends:
            await backend.aclose()


@contextlib.asynccontextmanager
async def site(replicas: int, *names: str, config: origins.Config = ORIGIN) -> AsyncIterator[Site]:
    """At its end nothing may be left of any request."""
    made = Site(replicas, config)
    try:
        for name in names:
            await made.join(name)
        await asyncio.sleep(3.0)
        async with asyncio.timeout(600):
            yield made
        async with asyncio.timeout(SETTLE_S):
            while not await made.is_settled():
                await asyncio.sleep(1.0)
    finally:
        await made.aclose()
