"""One run: a workload, a policy and simulated replicas put together, and what came of it."""

import asyncio
import gc
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from gateway import chooser
from gateway import driver as driving
from gateway.driver import Driver
from gateway.load.record import Records
from gateway.load.workload import TrafficClass, Workload
from gateway.policy.preset import PRESETS, Policy
from gateway.ports import Limits
from gateway.request import ServiceClass
from gateway.settings import Settings
from gateway.simulator import clock
from gateway.simulator.backend import SimBackend, SimRoster
from gateway.simulator.cost import COSTS, Cost
from gateway.simulator.disaggregated import DecodeEngine, PrefillEngine, PrefillRoster
from gateway.simulator.engine import Engine, Report
from gateway.simulator.fleet import SimFleet
from gateway.simulator.front import NAME, Front
from gateway.simulator.job import Padding, Style
from gateway.simulator.lengths import LENGTHS, LengthsName
from gateway.simulator.quiet import Quiet
from gateway.store.memory import MemoryStore
from gateway.ticketing import Aim

STYLES = {
    "full": Style.OURS,
    "bucketserve": Style.OURS,
    "continuous": Style.MIXED,
    "uellm": Style.WHOLE,
    "static": Style.WHOLE,
}
"""The engine that each preset's authors had.  DistServe's has replicas for each phase instead."""
DISAGGREGATED = "distserve"
_DISTSERVE_PREFILL_TOKENS = 8192
_PREFILL_TOKENS = 2048
_SETTINGS = Settings()
_SHARES = {name: class_.share for name, class_ in _SETTINGS.classes.targets().items()}
_AIMS = {name: Aim(class_.ttft_s, class_.tpot_s) for name, class_ in _SETTINGS.classes.targets().items()}
_FOREVER_S = 1e9
_GC_OBJECTS = 500_000
"""New objects between collections: nearly everything is freed by its count, and looking takes time."""
_POLL_S = 30.0
"""Wake-ups reach every driver with room here, so that drivers hardly ever have to look by themselves."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    rules: Policy | None = None
    """In the place of the preset's own; the engine stays that of `policy`."""
    cost: Cost = COSTS["distserve-opt13b-tp1"]
    replicas: int = 1
    prefill_replicas: int | None = None
    """Of a policy with replicas for each phase; None: half of them."""
    style: Style | None = None
    """None: the preset's own."""
    padding: Padding = Padding.PADDED
    lengths: LengthsName = LengthsName.HISTORY
    max_tokens: int | None = None
    """What clients allow an answer; None: the longest one of the workload."""
    max_rows: int = _SETTINGS.scheduling.max_rows
    max_batch_rows: int = _SETTINGS.scheduling.max_batch_rows
    max_prefill_tokens: int | None = None
    """Of one step; None: as the cost's engine, else 2,048, or 8,192 for DistServe's prefill replicas."""
    max_sent_tokens: int | None = None
    """Of prompts sent to an engine and not yet run there; None: `max_prefill_tokens`, so that the queue can still
    reorder, or else as many as a step has without any cost's engine."""
    safety_factor: float = _SETTINGS.scheduling.safety_factor
    max_queued: int = 10**9
    max_returns: int = 0
    seed: int = 1

    @property
    def choices(self) -> Policy:
        return self.rules or PRESETS[self.policy]

    @property
    def is_disaggregated(self) -> bool:
        return self.policy == DISAGGREGATED and self.style is None

    @property
    def step_tokens(self) -> int:
        return self.max_prefill_tokens or self.cost.chunk_tokens or self._own_tokens

    @property
    def sent_tokens(self) -> int:
        return self.max_sent_tokens or self.max_prefill_tokens or self._own_tokens

    @property
    def _own_tokens(self) -> int:
        return _DISTSERVE_PREFILL_TOKENS if self.is_disaggregated else _PREFILL_TOKENS

    @property
    def num_driven(self) -> int:
        """Replicas that a driver sees."""
        if not self.is_disaggregated:
            return self.replicas
        return self.prefill_replicas or self.replicas // 2


class Result(NamedTuple):
    records: Records
    padded_tokens: int
    useful_tokens: int
    gpus: int
    put_backs: Mapping[str, int]
    """Tickets queued again, by reason."""
    returns: int
    """Refused clients that came back when told."""
    returns_admitted: int
    preempted: int
    buckets: int
    """The most there were."""


def simulate(workload: Workload, config: Config, progress: Callable[[], object] = int) -> Result:
    """`progress` is called at each request's end."""
    # Admission spreads returns by this generator.
    random.seed(config.seed)
    thresholds = gc.get_threshold()
    gc.set_threshold(_GC_OBJECTS)
    try:
        result: Result = clock.run(_World(workload, config, progress).run())
    finally:
        gc.set_threshold(*thresholds)
    return result


class _World:
    def __init__(self, workload: Workload, config: Config, progress: Callable[[], object]) -> None:
        self._workload = workload
        self._config = config
        self._progress = progress
        self._metrics = Quiet()
        self._drivers: list[Driver] = []

    async def run(self) -> Result:
        config, workload = self._config, self._workload
        self._store = MemoryStore(clock=asyncio.get_running_loop().time)
        self._fleet = SimFleet(config.safety_factor)
        self._front = Front(
            workload=workload,
            store=self._store,
            fleet=self._fleet,
            policy=config.choices,
            aims=aims(workload.classes),
            shares=_SHARES,
            limits=Limits(config.max_queued, 2**60, 2**60),
            lengths=LENGTHS[config.lengths](workload, config.seed),
            max_tokens=config.max_tokens or int(workload.output_tokens.max()),
            max_returns=config.max_returns,
            wake=self._wake,
            cancel=self._cancel,
            progress=self._progress,
        )
        self._decoders = [
            DecodeEngine(config.cost, config.padding, self._front.lengths)
            for _ in range(config.replicas - config.num_driven)
        ]
        backends = [SimBackend(f"r{number}", self._engine) for number in range(config.num_driven)]
        self._drivers = [self._driver(backend, _roster(backend.engine)) for backend in backends]
        running = [asyncio.create_task(driver.run()) for driver in self._drivers]
        try:
            while len(self._fleet.replicas) < len(backends):
                await asyncio.sleep(0)
            await self._front.run()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return self._result([*(backend.engine for backend in backends), *self._decoders])

    def _engine(self, report: Report) -> Engine:
        config, lengths = self._config, self._front.lengths
        if config.is_disaggregated:
            return PrefillEngine(config.cost, config.padding, config.step_tokens, lengths, report, self._decoders)
        style = config.style or STYLES.get(config.policy, Style.OURS)
        return Engine(config.cost, style, config.padding, config.step_tokens, lengths, report)

    def _driver(self, backend: SimBackend, roster: SimRoster) -> Driver:
        config = self._config
        return Driver(
            gateway=NAME,
            backend=backend,
            store=self._store,
            fleet=self._fleet,
            receiver=lambda origin: self._front,
            metrics=self._metrics,
            roster=roster,
            config=driving.Config(
                lease_s=2 * _FOREVER_S,
                renew_s=_FOREVER_S,
                poll_s=_POLL_S,
                idle_silence_s=_FOREVER_S,
                busy_silence_s=_FOREVER_S,
                choice=chooser.Config(
                    policy=config.choices,
                    max_rows=config.max_rows,
                    max_batch_rows=config.max_batch_rows,
                    max_prefill_tokens=config.sent_tokens,
                    shares=_SHARES,
                ),
            ),
        )

    def _wake(self) -> None:
        if driver := driving.roomiest(self._drivers):
            driver.wake()

    def _cancel(self, tickets: Iterable[tuple[str, int]]) -> None:
        tickets = list(tickets)
        if tickets:
            for driver in self._drivers:
                driver.cancel(tickets)

    def _result(self, engines: list[Engine]) -> Result:
        return Result(
            records=self._front.records(),
            padded_tokens=sum(engine.tally.padded_tokens for engine in engines),
            useful_tokens=sum(engine.tally.useful_tokens for engine in engines),
            gpus=sum(engine.cost.gpus for engine in engines),
            put_backs=self._front.put_backs,
            returns=self._front.num_returns,
            returns_admitted=self._front.num_returns_admitted,
            preempted=self._metrics.num_preempted,
            buckets=self._metrics.max_buckets,
        )


def _roster(engine: Engine) -> SimRoster:
    return PrefillRoster(engine) if isinstance(engine, PrefillEngine) else SimRoster(engine)


def aims(classes: Sequence[TrafficClass]) -> dict[ServiceClass, Aim]:
    """Each service class's tightest targets in a workload, as whoever runs a gateway for it would set them."""
    tightest: dict[ServiceClass, Aim] = {}
    for name, usual in _AIMS.items():
        of_class = [traffic for traffic in classes if traffic.service_class is name]
        ttfts = [traffic.ttft_slo_s for traffic in of_class if traffic.ttft_slo_s is not None]
        tpots = [traffic.tpot_slo_s for traffic in of_class if traffic.tpot_slo_s is not None]
        tightest[name] = Aim(min(ttfts, default=usual.ttft_s), min(tpots, default=usual.tpot_s))
    return tightest
