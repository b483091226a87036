"""Gateways, drivers and origins, over the memory store and model-less replicas, on virtual time."""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Sequence

from prometheus_client import CollectorRegistry

from gateway import chooser
from gateway import driver as driving
from gateway import origin as origins
from gateway.driver import Driver
from gateway.fleet import Fleet
from gateway.metrics import Metrics
from gateway.origin import Origin
from gateway.policy.admission import Everybody
from gateway.policy.history import Sample
from gateway.policy.preset import FULL
from gateway.policy.snapshot import Snapshot
from gateway.ports import Limits, Tenants
from gateway.profiler import Profiler
from gateway.request import Request, ServiceClass
from gateway.reservations import Reservations
from gateway.store.memory import MemoryStore
from gateway.store.memory_tenants import MemoryTenants
from gateway.switchboard import Switchboard
from gateway.ticketing import Aim
from gateway.training import train
from tests.unit.fakes import clock
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.tokenizer import CharTokenizer
from triton_backend.contract import Sampling

SHARES = {ServiceClass.PRIORITY: 0.6, ServiceClass.DEFAULT: 0.3, ServiceClass.FLEX: 0.1}
DRIVER = driving.Config(
    lease_s=3.0,
    renew_s=1.0,
    choice=chooser.Config(policy=FULL, max_rows=64, max_batch_rows=16, max_prefill_tokens=512, shares=SHARES),
)
ORIGIN = origins.Config(
    limits=Limits(1000, 10**6, 10**8),
    policy=dataclasses.replace(FULL, admission=Everybody()),
    aims=dict.fromkeys(ServiceClass, Aim(1.0, 1.0)),
    shares=SHARES,
)


async def train_in_place(samples: Sequence[Sample]) -> Snapshot | None:
    """No thread: virtual time would not wait for it."""
    return train(samples)


class World:
    """One gateway."""

    def __init__(
        self,
        store: MemoryStore,
        backends: list[FakeBackend],
        config: origins.Config = ORIGIN,
        profiler: Profiler | None = None,
        name: str = "g",
        tenants: Tenants | None = None,
        driver: driving.Config = DRIVER,
    ) -> None:
        self.name = name
        self.store = store
        self.tenants = tenants or MemoryTenants(clock.of_store())
        self.backends = backends
        self.fleet = Fleet(safety_factor=0.9)
        self.metrics = Metrics(CollectorRegistry(), "fake")
        self.profiler = profiler or Profiler(name, store, train_in_place)
        self.switchboard = Switchboard(name, store, self.fleet, self.metrics)
        self.origin = Origin(
            gateway=name,
            model="fake",
            store=store,
            tokenizer=CharTokenizer(),
            fleet=self.fleet,
            profiler=self.profiler,
            reservations=Reservations(self.tenants),
            config=config,
            metrics=self.metrics,
            start=self.switchboard.start,
            wake=self.switchboard.wake,
            cancel=self.switchboard.cancel,
            recall=self.switchboard.recall,
        )
        self.switchboard.origin = self.origin
        self.drivers = self.switchboard.drivers
        self.drivers += [
            Driver(
                gateway=name,
                backend=backend,
                store=store,
                fleet=self.fleet,
                receiver=self.switchboard.receiver,
                may_drive=self.switchboard.board.may_drive,
                config=driver,
                metrics=self.metrics,
            )
            for backend in backends
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Alone: the replicas end with it."""
        try:
            async with self.joined():
                yield self
        finally:
            for backend in self.backends:
                await backend.aclose()

    @contextlib.asynccontextmanager
    async def joined(self) -> AsyncIterator["World"]:
        """Until it dies, without a word to anybody."""
        tasks = [asyncio.create_task(driver.run()) for driver in self.drivers]
        tasks.append(asyncio.create_task(self.origin.run()))
        tasks.append(asyncio.create_task(self.switchboard.run()))
        tasks.append(asyncio.create_task(self.profiler.run()))
        try:
            while len(self.fleet.replicas) < len(self.backends):
                await asyncio.sleep(0.01)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if end is not None and not isinstance(end, asyncio.CancelledError):
                    raise end

    async def answer(self, prompt: list[int], max_tokens: int = 8, call_id: str = "call") -> list[int]:
        """All tokens of a greedy answer of exactly `max_tokens`."""
        request = Request(
            model="fake", prompts=[prompt], max_tokens=max_tokens, ignore_eos=True, sampling=Sampling(0.0)
        )
        now_s = asyncio.get_running_loop().time()
        tokens: list[int] = []
        async with self.origin.open(request, call_id, now_s) as call:
            await call.read(lambda deltas: tokens.extend(token for delta in deltas for token in delta.tokens))
        return tokens

    async def is_idle(self) -> bool:
        """Nothing queued, leased, running or held, anywhere."""
        queue = await self.store.queue()
        rows = sum(
            replica.telemetry.running + replica.telemetry.waiting for replica in self.fleet.replicas.values()
        )
        held = sum(replica.telemetry.pool_used_bytes for replica in self.fleet.replicas.values())
        return not (queue.tickets or queue.tokens or queue.bytes or rows or held or self.origin.num_live)

    def told(self) -> set[str]:
        """The replicas that its metrics are of."""
        return set(re.findall(r'^bucketserve_running_rows{replica="(.*)"}', self.metrics.render().decode(), re.M))
