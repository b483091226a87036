"""Output throughput of the whole engine with as many rows as its memory holds, in the steady state: rows end and
new ones come all the time."""

import random
import time
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from tests.unit.peer import GREEDY
from triton_backend.contract import Attach, Attached, Batch, End, Event, NewRow, Step
from triton_backend.engine import Engine

BATCH_ROWS = 4
"""Sent together, as the gateway does with prompts of like length."""


class Throughput(NamedTuple):
    output_per_s: float
    prompt_per_s: float
    rows: float
    """Live on the mean."""
    num_steps: int
    filling_s: float
    """Until all first prompts were run."""
    filled_tokens: int
    num_evicted: int


class Client:
    """Keeps so many rows alive."""

    def __init__(self, engine: Engine, vocabulary: int, prompt_tokens: int, output_tokens: int) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._rng = random.Random(7)
        self._chunk_tokens = 0
        """Of prompts in a step of the engine, as it says."""
        self._numbers = count()
        self._seq = 0
        self.prompts: dict[int, int] = {}
        """Tokens of the prompts of live rows whose first token has not come, by row."""
        self.num_live = 0
        self.num_tokens = 0
        self.num_prompt_tokens = 0
        self.num_steps = 0
        self.num_evicted = 0
        engine.attach(Attach(1, "benchmark"), self)
        engine.step()

    def send(self, event: Event) -> None:
        if isinstance(event, Attached):
            self._chunk_tokens = event.model.chunk_tokens
        elif isinstance(event, Step):
            self.num_tokens += len(event.tokens)
            self.num_steps += 1
            for row in event.rows:
                self.num_prompt_tokens += self.prompts.pop(row, 0)
            self.num_live -= len(event.ended)
            for ended in event.ended:
                self.prompts.pop(ended.row, None)
                assert ended.reason in (End.LENGTH, End.EVICTED, End.REFUSED), ended
                self.num_evicted += ended.reason is not End.LENGTH

    def is_closed(self) -> bool:
        return False

    def finish(self) -> None:
        pass

    def put(self, lengths: list[tuple[int, int]]) -> None:
        """Rows of so many prompt and output tokens, in one batch."""
        rows = []
        for prompt_tokens, output_tokens in lengths:
            number = next(self._numbers)
            prompt = [self._rng.randrange(self._vocabulary) for _ in range(prompt_tokens)]
            rows.append(
                NewRow(number, str(number), 0, "", prompt, 0, output_tokens, sampling=GREEDY, rank=float(number))
            )
            self.prompts[number] = prompt_tokens
        self._seq += 1
        self.num_live += len(rows)
        assert self._engine.submit(Batch(1, self._seq, rows)) is None

    def fill(self, num_rows: int) -> int:
        """Rows that are at all points of their answers once all are there, as in the steady state; their prompts'
        tokens in all.

        Each gets a token with every chunk of those behind it, so the first are given shorter prompts.
        """
        mean_tokens = self._prompt_tokens + self._output_tokens / 2
        lengths = []
        for number in range(num_rows):
            coming = (num_rows - number) * mean_tokens / self._chunk_tokens
            done = round(self._output_tokens * number / num_rows - coming)
            lengths.append((self._prompt_tokens + done, self._output_tokens - done))
        for start in range(0, num_rows, BATCH_ROWS):
            self.put(lengths[start : start + BATCH_ROWS])
        return sum(self.prompts.values())

    def top_up(self, num_rows: int) -> None:
        if num_rows - self.num_live >= BATCH_ROWS:
            self.put([(self._prompt_tokens, self._output_tokens)] * BATCH_ROWS)


def measure(
    engine: Engine,
    vocabulary: int,
    num_rows: int,
    prompt_tokens: int,
    output_tokens: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Throughput:
    client = Client(engine, vocabulary, prompt_tokens, output_tokens)
    began_s = clock()
    filled_tokens = client.fill(num_rows)
    filled = set(client.prompts)
    while filled & client.prompts.keys():
        engine.step()
        client.top_up(num_rows)
    filling_s = clock() - began_s
    before = client.num_tokens, client.num_prompt_tokens, client.num_steps
    began_s, row_steps = clock(), 0
    while clock() - began_s < seconds:
        engine.step()
        client.top_up(num_rows)
        row_steps += client.num_live
    took_s = clock() - began_s
    tokens, prompt_done, num_steps = (
        now - then
        for now, then in zip((client.num_tokens, client.num_prompt_tokens, client.num_steps), before, strict=True)
    )
    return Throughput(
        tokens / took_s,
        prompt_done / took_s,
        row_steps / max(1, num_steps),
        num_steps,
        filling_s,
        filled_tokens,
        client.num_evicted,
    )


def time_job(engine: Engine, vocabulary: int, num_rows: int, prompt_tokens: int, output_tokens: int) -> float:
    """Seconds that so many rows take, a multiple of BATCH_ROWS and all there from the start."""
    client = Client(engine, vocabulary, prompt_tokens, output_tokens)
    began_s = time.perf_counter()
    for _ in range(0, num_rows, BATCH_ROWS):
        client.put([(prompt_tokens, output_tokens)] * BATCH_ROWS)
    while client.num_live:
        engine.step()
    return time.perf_counter() - began_s
