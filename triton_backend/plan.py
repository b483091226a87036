"""What the engine does next, as a value.  Pure: the simulator plans its steps with this very code.

Every step draws a token for each running row.  A chunk of prompts may be in the same step, so that the weights
are read once for both.  Prompts are run in order of their ranks, a long one in chunks, so that a short one does
not wait for the whole of it.  As many run together as fit, whichever batch they came in.  Running rows have
credit: they may be late by as much as they were early, as long as their mean time per token keeps to its target.
A chunk takes what credit there is, and steps without one earn it back.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from triton_backend.prefill_pace import PrefillPace
from triton_backend.sequence import MAX_CREDIT, PACE, TO_PREFILL, Sequence, Status


@dataclass(frozen=True, slots=True)
class Prefill:
    """Run the prompt tokens `start .. start + length` of each row, or as many of them as it has."""

    rows: list[Sequence]
    start: int
    length: int
    is_padded: bool = False
    """Shorter prompts cost as much as the longest."""

    @property
    def ends(self) -> list[int]:
        """Where each row's part ends, padding included."""
        end = self.start + self.length
        return [end if self.is_padded else min(end, row.prompt_tokens) for row in self.rows]

    @property
    def tokens(self) -> int:
        """Padding included."""
        return sum(self.ends) - self.start * len(self.rows)

    @property
    def squares(self) -> int:
        """Growth of the sum of squared prefilled lengths, padding included."""
        return sum(end**2 - self.start**2 for end in self.ends)

    @property
    def finishing(self) -> list[Sequence]:
        """Rows whose prompts end here: they draw their first token."""
        return [row for row in self.rows if row.prompt_tokens <= self.start + self.length]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step."""

    prefill: Prefill | None = None
    decode: list[Sequence] = field(default_factory=list)
    """Running rows, for each of which a token is drawn."""

    @property
    def is_idle(self) -> bool:
        return self.prefill is None and not self.decode

    @property
    def rows(self) -> list[Sequence]:
        """All that take part."""
        return self.decode if self.prefill is None else self.prefill.rows + self.decode

    @property
    def num_draws(self) -> int:
        """Tokens that it draws."""
        return len(self.decode) + (len(self.prefill.finishing) if self.prefill else 0)


MIN_CHUNK_TOKENS = 128
"""A chunk that is due whatever the credit, and may be padding for the most part: a smaller one takes as long."""
GOOD_CHUNK_TOKENS = 512
"""Credit is saved up for a chunk of this size, or for what is left of the prompt; but for half of what the most
credit pays for at most, as a device may be so slow that it never pays for a whole one."""
MAX_DECODES = 8
"""Steps without a chunk while prompts wait, at most."""
MAX_PADDING = 0.2
"""Part of a chunk that may be padding, where there is any: prompts of one bucket run together, a short one never
pays for a long."""


class Spare(NamedTuple):
    """Prompt tokens that may be run before the running rows must have their next token."""

    tokens: int
    """Now."""
    most_tokens: int
    """When the rows have as much credit as they ever have."""


def spare(running: Iterable[Sequence], now_s: float, decode_s: float, pace: PrefillPace) -> Spare | None:
    """None: any number.  `decode_s` is what a step without prompts will take, and `pace` tells what they add."""
    paced = [row for row in running if row.new.tpot_s]
    if not paced:
        return None
    most_s = MAX_CREDIT * PACE * min(row.new.tpot_s for row in paced)
    tokens = pace.tokens_within(min(row.due_by(now_s) for row in paced) - decode_s - now_s)
    most_tokens = pace.tokens_within(most_s - decode_s)
    return None if tokens is None or most_tokens is None else Spare(tokens, most_tokens)


@dataclass(slots=True)
class State:
    """The live rows as the planner sees them."""

    max_prefill_tokens: int
    """Tokens in one chunk, padding included, at most (but never less than one token of one row)."""
    batches: deque[list[Sequence]] = field(default_factory=deque)
    """Rows whose prompts are not all run yet, by batch, in order of arrival."""
    running: list[Sequence] = field(default_factory=list)
    num_decodes: int = 0
    """Steps since the last one with a chunk."""
    spare: Spare | None = None
    """See the function of this name; to be set before a step while prompts wait."""
    pads: bool = False
    """Whether the engine pads the prompts of a chunk to the longest of them, as simulated ones may: then only
    those of like length run together."""

    def settle(self) -> None:
        """Drop ended rows and move those that drew their first token into the decode pool."""
        joined = [row for batch in self.batches for row in batch if row.status is Status.RUNNING]
        self.running = [row for row in self.running if row.status is Status.RUNNING] + joined
        left = ([row for row in batch if row.status in TO_PREFILL] for batch in self.batches)
        self.batches = deque(batch for batch in left if batch)


def plan_step(state: State) -> Plan:
    """The next step of a settled state."""
    if not state.batches:
        return Plan(None, state.running)
    # Among equals in order of arrival: sorting is stable.
    waiting = sorted((row for batch in state.batches for row in batch), key=lambda row: row.new.rank)
    max_tokens = state.max_prefill_tokens if not state.running else _chunk_tokens(state, waiting[0])
    return Plan(_next_chunk(waiting, max_tokens, state.pads) if max_tokens else None, state.running)


def _chunk_tokens(state: State, first: Sequence) -> int:
    """How much may be run of the prompts while rows are running."""
    if state.spare is None:
        return state.max_prefill_tokens
    good_tokens = max(MIN_CHUNK_TOKENS, min(GOOD_CHUNK_TOKENS, state.spare.most_tokens // 2))
    if state.spare.tokens >= min(good_tokens, first.unfilled_tokens):
        return min(state.spare.tokens, state.max_prefill_tokens)
    return min(MIN_CHUNK_TOKENS, state.max_prefill_tokens) if state.num_decodes >= MAX_DECODES else 0


def _next_chunk(waiting: list[Sequence], max_tokens: int, pads: bool) -> Prefill:
    first = waiting[0]
    left = first.unfilled_tokens
    if left > max_tokens:
        # Equal chunks rather than full ones and a rest: a short last chunk streams all weights for few tokens.
        return Prefill([first], first.prefilled_tokens, -(-left // -(-left // max_tokens)), pads)
    rows: list[Sequence] = []
    longest = total = 0
    for row in waiting:
        tokens = row.unfilled_tokens
        padded = max(longest, tokens) * (len(rows) + 1) if pads else total + tokens
        is_alike = padded <= MIN_CHUNK_TOKENS or total + tokens >= (1 - MAX_PADDING) * padded
        if is_alike and padded <= max_tokens and row.prefilled_tokens == first.prefilled_tokens:
            rows.append(row)
            longest, total = max(longest, tokens), total + tokens
    return Prefill(rows, first.prefilled_tokens, longest, pads)
