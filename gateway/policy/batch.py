"""How many sequences may run: as many as the live memory figures carry to their predicted ends."""

from collections.abc import Iterable, Sequence

from gateway.policy.length import left_tokens
from gateway.request import Ticket
from triton_backend.contract import Telemetry
from triton_backend.memory import FuturePeak, KVLayout, Row


def safe_bytes(telemetry: Telemetry, factor: float) -> int:
    """M_safe: the part of (free + held) KV memory that batches may be planned into (BucketServe Eq. 5, with
    the engine's own KV counted as available: DESIGN.md 6)."""
    return int(factor * (telemetry.pool_capacity_bytes + telemetry.pool_growable_bytes))


def row_of(ticket: Ticket) -> Row:
    """A ticket's memory once claimed.  The last token drawn is never stored, hence one less."""
    left = left_tokens(ticket.profile, 0, ticket.max_tokens)
    return Row(ticket.prompt_tokens, left - 1)


def longest_row_tokens(layout: KVLayout, budget_bytes: int) -> int:
    """The most tokens (prompt and answer) that one row alone may hold within the budget."""
    room = budget_bytes // layout.bytes_per_token
    low, high = 0, room
    while low < high:
        middle = (low + high + 1) // 2
        if layout.room_tokens(middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def fit(
    tickets: Sequence[Ticket],
    running: Iterable[Row],
    layout: KVLayout,
    budget_bytes: int,
    max_rows: int,
    max_prefill_tokens: int,
) -> list[Ticket]:
    """The longest prefix of `tickets` (best first) that may start now.

    Its future KV peak together with the running rows stays within `budget_bytes`, its padded prefill within
    `max_prefill_tokens`, its size within `max_rows`.  The first that does not fit ends the batch, so nothing
    overtakes a head for being smaller.  On an idle engine the first always goes: admission saw to it that it fits
    alone, and no later moment would suit it better.
    """
    peak = FuturePeak(layout, running)
    idle = peak.bytes == 0
    chosen: list[Ticket] = []
    longest = 0
    for ticket in tickets[:max_rows]:
        row = row_of(ticket)
        longest = max(longest, ticket.prompt_tokens)
        fits = (longest * (len(chosen) + 1) <= max_prefill_tokens or not chosen) and peak.bytes_with(
            row
        ) <= budget_bytes
        if not fits and not (idle and not chosen):
            break
        peak.add(row)
        chosen.append(ticket)
    return chosen
