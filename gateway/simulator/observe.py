"""Steps of the real engine, in this process, under a load that covers what it can do.

The only file here that needs the engine's libraries.
"""

import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.simulator.fit import StepRecord
from triton_backend.contract import Attach, Batch, Event, NewRow, Sampling
from triton_backend.engine import Engine, EngineConfig, load_runner
from triton_backend.sequence import Sequence

_WARM_UP_STEPS = 30
_PHASE_STEPS = 60
"""For so long the number of running rows is kept about the same."""
_MAX_ANSWER = 64


class Observed(NamedTuple):
    records: list[StepRecord]
    kv_tokens: int
    kv_token_bytes: int


class _Watched:
    """An executor, and what it was last asked to run."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.last_step = (0, 0, 0, 0)
        """Rows, context tokens, prompt tokens and squares, as a StepRecord has them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def prefill(self, rows: list[Sequence], start: int, length: int) -> Any:
        self.last_step = 0, 0, len(rows) * length, len(rows) * ((start + length) ** 2 - start**2)
        return self._runner.prefill(rows, start, length)

    def decode(self, rows: list[Sequence]) -> Any:
        self.last_step = len(rows), sum(row.held_tokens for row in rows), 0, 0
        return self._runner.decode(rows)


class _Nobody:
    """A driver that listens to nothing."""

    def send(self, event: Event) -> None:
        pass

    def is_closed(self) -> bool:
        return False

    def finish(self) -> None:
        pass


def observe(
    config: EngineConfig,
    seconds: float,
    max_rows: int,
    seed: int,
    progress: Callable[[float], object],
    load: Callable[[EngineConfig], Any] = load_runner,
    clock: Callable[[], float] = time.perf_counter,
) -> Observed:
    """Run the engine for so long; `progress` gets the seconds that have passed since it was last called."""
    watched = _Watched(load(config))
    engine = Engine(config, lambda _: watched, clock)
    engine.attach(Attach(1, "fit"), _Nobody())
    engine.step()
    feeder = _Feeder(engine, watched, max_rows, random.Random(seed))
    records: list[StepRecord] = []
    began_s = last_s = clock()
    while last_s - began_s < seconds:
        feeder.feed()
        started_s = clock()
        ran = engine.step()
        ended_s = clock()
        progress(ended_s - last_s)
        last_s = ended_s
        if ran:
            records.append(StepRecord(ended_s - started_s, *watched.last_step))
    engine.stop(0.0)
    layout = watched.layout
    return Observed(
        records[_WARM_UP_STEPS:], watched.kv_budget_bytes // layout.bytes_per_token, layout.bytes_per_token
    )


class _Feeder:
    """Batches of like prompts, as the gateway sends them, with now few and now many rows running."""

    def __init__(self, engine: Engine, limits: Any, max_rows: int, rng: random.Random) -> None:
        self._engine = engine
        self._context_tokens = min(limits.context_tokens, limits.kv_budget_bytes // limits.layout.bytes_per_token)
        self._vocabulary = limits.vocabulary
        self._max_rows = max_rows
        self._rng = rng
        self._sent = 0
        self._steps = 0
        self._target = 1
        self._ends: list[int] = []
        """About when the rows sent will have ended, in steps."""

    def feed(self) -> None:
        rng = self._rng
        if self._steps % _PHASE_STEPS == 0:
            self._target = round(self._max_rows ** rng.random())
        self._steps += 1
        self._ends = [end for end in self._ends if end > self._steps]
        if len(self._ends) < self._target:
            self._send(min(rng.randint(1, 4), self._target - len(self._ends)))

    def _send(self, num_rows: int) -> None:
        rng = self._rng
        longest = max(8, self._context_tokens // (2 * self._max_rows) + self._context_tokens // 4)
        length = round(longest ** rng.uniform(0.3, 1.0))
        rows = [self._row(max(1, round(length * rng.uniform(0.8, 1.0)))) for _ in range(num_rows)]
        self._engine.submit(Batch(1, self._sent, rows))

    def _row(self, length: int) -> NewRow:
        rng = self._rng
        self._sent += 1
        answer = min(rng.randint(2, _MAX_ANSWER), max(1, self._context_tokens - length))
        self._ends.append(self._steps + answer)
        prompt = [rng.randrange(self._vocabulary) for _ in range(length)]
        return NewRow(self._sent, str(self._sent), 0, "fit", prompt, 0, answer, sampling=Sampling(0.0))
