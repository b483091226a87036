"""A replica without a model: the real engine, its planner and its ledger over an executor that makes tokens up,
one step per `STEP_S` of the event loop's time."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from gateway.errors import BackendLost, Outranked
from triton_backend import contract
from triton_backend.engine import Engine, EngineConfig
from triton_backend.memory import Grouped
from triton_backend.plan import Prefill
from triton_backend.sampling import Draws
from triton_backend.sequence import Sequence as Row
from triton_backend.session import SinkClosed
from triton_backend.shortage import OutOfMemory

STEP_S = 0.01
BYTES_PER_TOKEN = 10
VOCABULARY = 1000
EOS = 0


def token_at(prompt: Sequence[int], index: int) -> int:
    """What the made-up model says at `index` after a prompt: never EOS."""
    return 1 + (sum(prompt) * 31 + index * 17) % (VOCABULARY - 1)


def score_at(index: int) -> float:
    """Its log probability, if asked for."""
    return -1.0 / (3 + index)


class _Clock:
    """The event loop's time, and within a step the time that the step takes."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._loop_time = asyncio.get_running_loop().time

    def __call__(self) -> float:
        return self._loop_time() + self.ahead_s


class _Executor:
    """Draws a function of (original prompt, index), as a real model's greedy answer is."""

    def __init__(self, config: EngineConfig, clock: "_Clock", arranged_bytes: list[int]) -> None:
        self._clock = clock
        self._arranged_bytes = arranged_bytes
        self.layout = Grouped((16, 32, 64, 128, 256, 512, 1024), BYTES_PER_TOKEN)
        self.kv_budget_bytes = config.kv_budget_bytes or 1000 * BYTES_PER_TOKEN
        self.context_tokens = config.context_tokens or 1000
        self.vocabulary = VOCABULARY
        self.dtype = "none"
        self.device = "none"
        self.out_of_memory_total = 0
        self.allocated_bytes = 0
        self.short_steps = 0
        """So many steps with running rows will be out of memory."""

    def arrange(self, rooms: Mapping[int, int], running: list[int]) -> None:
        self._arranged_bytes.append(sum(rooms.values()) * BYTES_PER_TOKEN)

    def run(self, prefill: Prefill | None, decode: list[Row]) -> tuple[list[Row], Draws]:
        if decode and self.short_steps:
            self.short_steps -= 1
            self.out_of_memory_total += 1
            raise OutOfMemory("short")
        rows = [*(prefill.finishing if prefill else []), *decode]
        self._clock.ahead_s = STEP_S
        tokens = [token_at(row.new.prompt[: -row.new.index or None], row.index) for row in rows]
        scores = [score_at(row.index) if row.new.sampling.logprobs is not None else 0.0 for row in rows]
        return rows, Draws(tokens, scores, [[(7, 2 * score)] if score else [] for score in scores])


class _Sink:
    def __init__(self) -> None:
        self.events: asyncio.Queue[contract.Event | None] = asyncio.Queue()
        self.closed = False

    def send(self, event: contract.Event) -> None:
        if self.closed:
            raise SinkClosed
        self.events.put_nowait(event)

    def is_closed(self) -> bool:
        return self.closed

    def finish(self) -> None:
        self.events.put_nowait(None)


class FakeSession:
    def __init__(self, backend: "FakeBackend", sink: _Sink, attached: contract.Attached) -> None:
        self.attached = attached
        self._backend = backend
        self._sink = sink

    async def send(self, control: contract.Batch | contract.Cancel | contract.Evict | contract.Detach) -> None:
        await asyncio.sleep(0)
        if self._backend.is_dead:
            raise BackendLost("dead")
        ack = self._backend.engine.submit(control)
        if ack and ack.error:
            self._sink.events.put_nowait(contract.Superseded(ack.epoch))
        self._backend.turn.set()

    async def events(self) -> AsyncIterator[contract.Event]:
        while (event := await self._sink.events.get()) is not None:
            if isinstance(event, contract.Superseded):
                raise Outranked(event.epoch)
            yield event
        raise BackendLost("the stream ended")

    async def aclose(self) -> None:
        self._sink.closed = True


class FakeBackend:
    """Dies by `kill()`, comes back by `revive()`; `hang()` keeps the stream open and says nothing."""

    def __init__(self, replica: str = "fake", **config: int) -> None:
        self.replica = replica
        self.turn = asyncio.Event()
        self.is_dead = False
        self.is_hung = False
        self.sessions = self.revivals = 0
        self.revival_s = 0.0
        """How long a restart takes."""
        self.attach_s = 0.0
        """How long the step takes that runs when a driver attaches."""
        self.arranged_bytes: list[int] = []
        """KV memory in use, step by step."""
        self._config = EngineConfig(model="fake", name="fake", **config)  # type: ignore[arg-type]
        self._sinks: list[_Sink] = []
        self._start()

    def _start(self) -> None:
        self._clock = _Clock()
        self.engine = Engine(self._config, load=self._load, clock=self._clock)
        self._crank = asyncio.create_task(self._run())
        self._crank.add_done_callback(lambda crank: crank.cancelled() or crank.result())

    def _load(self, config: EngineConfig) -> _Executor:
        self.executor = _Executor(config, self._clock, self.arranged_bytes)
        return self.executor

    async def _run(self) -> None:
        while True:
            if not self.is_hung and self.engine.step():
                await asyncio.sleep(STEP_S)
                self._clock.ahead_s = 0.0
            else:
                self.turn.clear()
                try:
                    async with asyncio.timeout(0.1):
                        await self.turn.wait()
                except TimeoutError:
                    pass

    async def attach(self, attach: contract.Attach) -> FakeSession:
        await asyncio.sleep(self.attach_s)
        if self.is_dead:
            raise BackendLost("dead")
        sink = _Sink()
        self._sinks.append(sink)
        self.sessions += 1
        self.engine.attach(attach, sink)
        self.turn.set()
        try:
            async with asyncio.timeout(5.0):
                first = await sink.events.get()
        except TimeoutError:
            raise BackendLost("no snapshot") from None
        if isinstance(first, contract.Superseded):
            raise Outranked(first.epoch)
        if not isinstance(first, contract.Attached):
            raise BackendLost("no snapshot")
        return FakeSession(self, sink, first)

    def kill(self) -> None:
        self.is_dead = True
        self._crank.cancel()
        for sink in self._sinks:
            sink.finish()

    def hang(self) -> None:
        self.is_hung = True

    async def revive(self) -> None:
        if not (self.is_dead or self.is_hung):
            return
        self.revivals += 1
        await asyncio.sleep(self.revival_s)
        self._crank.cancel()
        self.is_dead = self.is_hung = False
        self._start()

    async def aclose(self) -> None:
        self._crank.cancel()
