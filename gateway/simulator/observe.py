"""Steps of the real engine, in this process, under a load that covers what it can do.

A served engine takes longer for each, as it shares its process and tells a gateway of them.  The only file here
that needs the engine's libraries.
"""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from triton_backend.contract import Attach, Batch, Event, NewRow, Sampling
from triton_backend.engine import Engine, EngineConfig, load_runner
from triton_backend.record import EngineRecord, StepRecord, read

_PHASE_STEPS = 60
"""For so long the number of running rows is kept about the same."""
_MAX_ANSWER = 64


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
) -> tuple[EngineRecord, list[StepRecord]]:
    """Run the engine for so long; `progress` gets the seconds that have passed since it was last called."""
    runner = load(config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps"
        engine = Engine(replace(config, step_records=str(file)), lambda _: runner, clock)
        engine.attach(Attach(1, "fit"), _Nobody())
        engine.step()
        feeder = _Feeder(engine, runner, max_rows, random.Random(seed))
        began_s = last_s = clock()
        while last_s - began_s < seconds:
            feeder.feed()
            engine.step()
            now_s = clock()
            progress(now_s - last_s)
            last_s = now_s
        engine.stop(0.0)
        return read(file)


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
