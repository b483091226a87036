"""What the engine does next, as a value.  Pure: the simulator plans its steps with this very code.

A batch is prefilled together, as sent, in uniform chunks; the batch whose best row has the lowest rank goes first,
so that a short prompt does not wait for the whole of a long one.  Running rows have credit: they may be late by as
much as they were early, as long as their mean time per token keeps to its target.  A chunk takes what credit there
is, and decode steps earn it back.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

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


MIN_CHUNK_TOKENS = 128
"""A chunk that is due whatever the credit: a smaller one costs a step for hardly any progress."""
GOOD_CHUNK_TOKENS = 512
"""Credit is saved up for a chunk of this size, or for what is left of the batch."""
MAX_DECODES = 8
"""Decode steps in a row while prompts wait, at most."""


def spare_tokens(
    running: Iterable[Sequence], now_s: float, decode_s: float, prefill_tokens_per_s: float
) -> int | None:
    """Prompt tokens that may be run before the running rows must have their next token; None: any number.

    `decode_s` is what the next decode step will take.
    """
    due_s = min((row.due_s for row in running if row.new.tpot_s), default=inf)
    if due_s == inf or not prefill_tokens_per_s:
        return None
    return int(max(0.0, due_s - decode_s - now_s) * prefill_tokens_per_s)


@dataclass(slots=True)
class State:
    """The live rows as the planner sees them."""

    max_prefill_tokens: int
    """Padded tokens in one chunk, at most (but never less than one token of one row)."""
    batches: deque[list[Sequence]] = field(default_factory=deque)
    """Rows whose prompts are not all run yet, by batch, in order of arrival."""
    running: list[Sequence] = field(default_factory=list)
    num_decodes: int = 1
    """Decode steps since the last chunk."""
    spare_tokens: int | None = None
    """See the function of this name; to be set before a step while prompts wait."""

    def settle(self) -> None:
        """Drop ended rows and move those that drew their first token into the decode pool."""
        joined = [row for batch in self.batches for row in batch if row.status is Status.RUNNING]
        self.running = [row for row in self.running if row.status is Status.RUNNING] + joined
        left = ([row for row in batch if row.status in TO_PREFILL] for batch in self.batches)
        self.batches = deque(batch for batch in left if batch)


def plan_step(state: State) -> Plan:
    """The next step of a settled state."""
    if not state.batches:
        return Decode(state.running) if state.running else Idle()
    batch = min(state.batches, key=_rank)
    max_tokens = state.max_prefill_tokens if not state.running else _chunk_tokens(state, batch)
    return _next_chunk(batch, max_tokens) if max_tokens else Decode(state.running)


def _chunk_tokens(state: State, batch: list[Sequence]) -> int:
    """How much may be run of the batch while rows are running; 0: they have their turn first."""
    if state.spare_tokens is None:
        return state.max_prefill_tokens if state.num_decodes else 0
    wanted = min(GOOD_CHUNK_TOKENS, sum(row.prompt_tokens - row.prefilled_tokens for row in batch))
    if state.spare_tokens >= wanted:
        return min(state.spare_tokens, state.max_prefill_tokens)
    return min(MIN_CHUNK_TOKENS, state.max_prefill_tokens) if state.num_decodes >= MAX_DECODES else 0


def _rank(batch: list[Sequence]) -> float:
    return min(row.new.rank for row in batch)


def _next_chunk(batch: list[Sequence], max_tokens: int) -> Prefill:
    # Rows of a batch advance together unless one step had room for only a part of them: the hindmost go
    # first.
    start = min(row.prefilled_tokens for row in batch)
    rows = [row for row in batch if row.prefilled_tokens == start][:max_tokens]
    left = max(row.prompt_tokens for row in rows) - start
    num_chunks = -(-left // max(1, max_tokens // len(rows)))
    # Equal chunks rather than full ones and a rest: a short last chunk streams all weights for few tokens.
    return Prefill(rows, start, -(-left // num_chunks))
