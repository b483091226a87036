"""What the engine does next, as a value.  Pure: the simulator plans its steps with this very code.

A batch is prefilled together, as sent, in uniform chunks.  While rows run, chunks and decode steps take
turns, so a long prompt delays a running row by one chunk per token and no more.  Batches are prefilled in
order of arrival.
"""

from collections import deque
from dataclasses import dataclass, field

from triton_backend.sequence import TO_PREFILL, Sequence, Status


@dataclass(frozen=True, slots=True)
class Prefill:
    """Run the prompt tokens `start .. start + length` of each row; shorter prompts are padded."""

    rows: list[Sequence]
    start: int
    length: int

    @property
    def padded_tokens(self) -> int:
        return len(self.rows) * self.length


@dataclass(frozen=True, slots=True)
class Decode:
    """Draw one token for each row."""

    rows: list[Sequence]


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to run."""


Plan = Prefill | Decode | Idle


@dataclass(slots=True)
class State:
    """The live rows as the planner sees them."""

    chunk_tokens: int
    """Padded tokens in one chunk, at most (but never less than one token of one row)."""
    batches: deque[list[Sequence]] = field(default_factory=deque)
    """Rows whose prompts are not all run yet, by batch, in order of arrival."""
    running: list[Sequence] = field(default_factory=list)
    prefilled_last: bool = False
    """The last step was a chunk: running rows have the next turn."""

    def settle(self) -> None:
        """Drop ended rows and move those that drew their first token into the decode pool."""
        joined = [row for batch in self.batches for row in batch if row.status is Status.RUNNING]
        self.running = [row for row in self.running if row.status is Status.RUNNING] + joined
        left = ([row for row in batch if row.status in TO_PREFILL] for batch in self.batches)
        self.batches = deque(batch for batch in left if batch)


def plan_step(state: State) -> Plan:
    """The next step of a settled state."""
    if state.batches and not (state.running and state.prefilled_last):
        return _next_chunk(state.batches[0], state.chunk_tokens)
    if state.running:
        return Decode(state.running)
    return Idle()


def _next_chunk(batch: list[Sequence], max_tokens: int) -> Prefill:
    # Rows of a batch advance together unless one step had room for only a part of them: the hindmost go
    # first.
    start = min(row.prefilled_tokens for row in batch)
    rows = [row for row in batch if row.prefilled_tokens == start][:max_tokens]
    left = max(row.prompt_tokens for row in rows) - start
    num_chunks = -(-left // max(1, max_tokens // len(rows)))
    # Equal chunks rather than full ones and a rest: a short last chunk streams all weights for few tokens.
    return Prefill(rows, start, -(-left // num_chunks))
