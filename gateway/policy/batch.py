"""Which of the waiting tickets start now: as many as the live memory figures carry to their predicted ends.

A rule sees the tickets best first, and a replica's room as a value.  All the tickets it is shown have similar
lengths: they lie in one bucket.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple, Protocol

import msgspec

from gateway.policy.length import left_tokens
from gateway.policy.pace import UNKNOWN, Pace
from gateway.request import Ticket
from triton_backend.contract import Telemetry
from triton_backend.memory import FuturePeak, KVLayout, Row


class Unstarted(NamedTuple):
    """A row in the engine whose prompt is still to be run; the lowest rank goes first."""

    rank: float
    prompt_tokens: int


def tokens_before(unstarted: Iterable[Unstarted], rank: float) -> int:
    """Prompt tokens that are run before those of a new row of this rank."""
    return sum(row.prompt_tokens for row in unstarted if row.rank <= rank)


class Room(msgspec.Struct, frozen=True):
    """What a replica has and may still take."""

    running: Sequence[Row]
    """The rows it has, started or not."""
    layout: KVLayout
    budget_bytes: int
    """M_safe: what batches are planned into."""
    max_rows: int
    """Rows that may come now."""
    max_prefill_tokens: int
    """Prompt tokens, padding included, that may be waiting in the engine before a ticket of this batch."""
    unstarted: Sequence[Unstarted] = ()
    """The rows whose prompts are waiting there now."""
    pace: Pace = UNKNOWN
    tpot_s: float = inf
    """The tightest target for the time per token among the running rows."""
    alone_bytes: float = inf
    """What a row may take that has the engine to itself."""

    @property
    def is_busy(self) -> bool:
        """So many prompts wait in the engine that no more should, in order of arrival."""
        return tokens_before(self.unstarted, inf) >= self.max_prefill_tokens


class BatchRule(Protocol):
    runs_to_completion: ClassVar[bool]
    """No row joins until the whole batch has ended."""
    keeps_pace: ClassVar[bool]
    """The engine is told the rows' targets, and sizes chunks of prompts by them."""

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        """Those of the tickets (best first) that start now, in order."""


def kv_bytes(telemetry: Telemetry) -> int:
    """Free and held KV memory.  M_safe is a part of it (BucketServe Eq. 5, with the engine's own KV counted as
    available)."""
    return telemetry.pool_capacity_bytes + telemetry.pool_growable_bytes


def row_of(ticket: Ticket) -> Row:
    """A ticket's memory once claimed.  The last token drawn is never stored, hence one less."""
    left = left_tokens(ticket.profile, 0, ticket.max_tokens)
    return Row(ticket.prompt_tokens, left - 1)


def longest_row_tokens(layout: KVLayout, budget_bytes: int) -> int:
    """The most tokens (prompt and answer) that one row alone may hold within the budget."""
    room = budget_bytes // layout.bytes_per_token
    return bisect_right(range(1, room + 1), room, key=layout.room_tokens)


@dataclass(frozen=True, slots=True)
class ToTheEnd:
    """Ours: the future peak of KV memory, running rows and new ones, stays within M_safe, and the decode steps
    of all of them within the tightest target for the time per token.

    A prompt that is more urgent than those waiting in the engine passes them there.  What does not fit is
    skipped, not waited for; the driver's guard sees to it that nobody is passed for long.
    On an idle engine the first goes if it fits at all: no later moment would suit it better, unless others have
    taken memory that may come back.
    """

    runs_to_completion: ClassVar[bool] = False
    keeps_pace: ClassVar[bool] = True

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        ahead = _Ahead(room.layout, room.running)
        chosen: list[Ticket] = []
        too_large: list[Row] = []
        longest, tpot_s = 0, room.tpot_s
        for ticket in tickets:
            if len(chosen) >= room.max_rows:
                break
            num_rows = len(room.running) + len(chosen) + 1
            before = tokens_before(room.unstarted, ticket.score)
            padded = max(longest, ticket.prompt_tokens) * (len(chosen) + 1)
            if (before or chosen) and before + padded > room.max_prefill_tokens:
                continue
            if not room.pace.keeps(min(tpot_s, ticket.tpot_s), num_rows):
                continue
            row = row_of(ticket)
            # The peak only rises: what is no smaller than one that did not fit does not fit either.
            if any(row.held_tokens >= one.held_tokens and row.left_tokens >= one.left_tokens for one in too_large):
                continue
            if ahead.joins(row, room.budget_bytes if num_rows > 1 else room.alone_bytes):
                longest, tpot_s = max(longest, ticket.prompt_tokens), min(tpot_s, ticket.tpot_s)
                chosen.append(ticket)
            else:
                too_large.append(row)
        return chosen


class _Ahead:
    """Rows in an engine and those that join them: does their future peak stay within a budget?

    Far below it there is a shorter answer: were all rows at their last step at once, they would still fit.
    """

    def __init__(self, layout: KVLayout, rows: Sequence[Row]) -> None:
        self._layout = layout
        self._rows = list(rows)
        self._last_tokens = sum(layout.room_tokens(held + left) for held, left in rows)
        """Room of all rows at their last steps: no less than the peak."""
        self._peak: FuturePeak | None = None
        """None: not needed so far."""

    def joins(self, row: Row, budget_bytes: float) -> bool:
        """Count the row in if it fits."""
        last_tokens = self._last_tokens + self._layout.room_tokens(row.held_tokens + row.left_tokens)
        if self._peak is not None or last_tokens * self._layout.bytes_per_token > budget_bytes:
            if self._peak is None:
                self._peak = FuturePeak(self._layout, self._rows)
            with_it = self._peak.joined(row)
            if with_it.bytes > budget_bytes:
                return False
            self._peak = with_it
        self._rows.append(row)
        self._last_tokens = last_tokens
        return True


@dataclass(frozen=True, slots=True)
class ByPrompt:
    """BucketServe's rule as published (Eqs. 5 and 6): as many in order as the free memory holds
    prompts, all counted as long as the longest.  Answers are left to the engine, which evicts what outgrows it.
    """

    runs_to_completion: ClassVar[bool] = False
    keeps_pace: ClassVar[bool] = False

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        free_tokens = _free_tokens(room)
        chosen: list[Ticket] = []
        longest = 0
        for ticket in [] if room.is_busy else tickets[: room.max_rows]:
            longest = max(longest, room.layout.room_tokens(ticket.prompt_tokens + 1))
            if longest * (len(chosen) + 1) > free_tokens and (chosen or room.running):
                break
            chosen.append(ticket)
        return chosen


@dataclass(frozen=True, slots=True)
class InOrder:
    """First come, first served, as vLLM and DistServe's prefill: prompts join in order while a token cap and the
    free memory allow; the first that does not fit ends it.  Rows join a running batch."""

    max_tokens: int = 8192
    """Prompt tokens of one batch; a longer prompt goes alone."""
    max_running: int = 256
    runs_to_completion: ClassVar[bool] = False
    keeps_pace: ClassVar[bool] = False

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        free_tokens = _free_tokens(room)
        chosen: list[Ticket] = []
        total = 0
        places = min(room.max_rows, self.max_running - len(room.running))
        for ticket in [] if room.is_busy else tickets[: max(0, places)]:
            total += ticket.prompt_tokens
            free_tokens -= room.layout.room_tokens(ticket.prompt_tokens + 1)
            if (chosen and total > self.max_tokens) or (free_tokens < 0 and (chosen or room.running)):
                break
            chosen.append(ticket)
        return chosen


@dataclass(frozen=True, slots=True)
class Fixed:
    """A fixed number of rows, run to the end before the next batch starts."""

    size: int = 8
    runs_to_completion: ClassVar[bool] = True
    keeps_pace: ClassVar[bool] = False

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        return [] if room.running else list(tickets[: min(self.size, room.max_rows)])


@dataclass(frozen=True, slots=True)
class SloOdbs:
    """UELLM's batch scheduler as its code runs it: in the order of the composite key, a batch takes
    the next ticket while it is below the cap and the step up in length costs less than the threshold."""

    cap: int = 10
    threshold: float = 15_000.0
    runs_to_completion: ClassVar[bool] = True
    keeps_pace: ClassVar[bool] = False

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        chosen: list[Ticket] = []
        longest = 0
        for ticket in [] if room.running else tickets[: min(self.cap, room.max_rows)]:
            length = ticket.profile.expected_tokens
            if chosen and (length - longest) * (len(chosen) + 1) * 1.2 > self.threshold:
                break
            chosen.append(ticket)
            longest = max(longest, length)
        return chosen


def _free_tokens(room: Room) -> int:
    """Tokens of KV room left within the budget by what the rows hold now."""
    held = sum(room.layout.room_tokens(row.held_tokens) for row in room.running)
    return room.budget_bytes // room.layout.bytes_per_token - held
