"""KV memory counted one way by everybody: the gateway's fit, the engine's ledger, the simulator.

A layout says how many tokens of room a row of a given length occupies; everything else follows from that one
rounding rule.  Lengths are tokens, sizes are bytes.  Pure.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


class Row(NamedTuple):
    """One sequence as memory sees it: tokens whose room is taken now, and how many more will be taken."""

    held_tokens: int
    left_tokens: int


class KVLayout(Protocol):
    """How an engine lays KV memory out."""

    @property
    def bytes_per_token(self) -> int:
        """Key and value bytes of one token over all layers."""

    def room_tokens(self, tokens: int) -> int:
        """Tokens of room that a row of `tokens` tokens occupies (0 for 0)."""

    def room_array(self, tokens: Tokens) -> Tokens:
        """`room_tokens` of each."""


class Paged(msgspec.Struct, frozen=True, tag="paged"):
    """Fixed blocks, allocated as a row grows."""

    block_tokens: int
    bytes_per_token: int

    def room_tokens(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens) * self.block_tokens

    def room_array(self, tokens: Tokens) -> Tokens:
        return -(-tokens // self.block_tokens) * self.block_tokens


class Grouped(msgspec.Struct, frozen=True, tag="grouped"):
    """Rows of one capacity lie side by side in one tensor; a row that outgrows its capacity moves up the
    ladder.

    `ladder_tokens` is ascending; past its end, capacities are multiples of the last step.
    """

    ladder_tokens: tuple[int, ...]
    bytes_per_token: int

    def room_tokens(self, tokens: int) -> int:
        if tokens == 0:
            return 0
        at = bisect_left(self.ladder_tokens, tokens)
        if at < len(self.ladder_tokens):
            return self.ladder_tokens[at]
        top = self.ladder_tokens[-1]
        return -(-tokens // top) * top

    def room_array(self, tokens: Tokens) -> Tokens:
        ladder = _rungs(self.ladder_tokens)
        top = self.ladder_tokens[-1]
        room = ladder.take(ladder.searchsorted(tokens), mode="clip")
        return room if tokens.max(initial=0) <= top else np.where(tokens > top, -(-tokens // top) * top, room)


@cache
def _rungs(ladder_tokens: tuple[int, ...]) -> Tokens:
    return np.array((0, *ladder_tokens), np.int64)


Layout = Paged | Grouped


def used_bytes(layout: KVLayout, rows: Iterable[Row]) -> int:
    """KV bytes that the rows occupy now."""
    return sum(layout.room_tokens(row.held_tokens) for row in rows) * layout.bytes_per_token


class FuturePeak:
    """The highest KV use from now until every row has finished, if no further row joins.

    All rows grow by one token a step and leave when they have none left, so use only falls at a departure and
    the peak stands just before one.  Hence it is enough to know the use at each row's last step: one number
    per distinct `left_tokens`.  A value: `joined` is another one.
    """

    __slots__ = ("_held", "_layout", "_left", "_room_at", "_steps")

    def __init__(self, layout: KVLayout, rows: Sequence[Row] = ()) -> None:
        self._layout = layout
        table = np.fromiter(chain.from_iterable(rows), np.int64, 2 * len(rows)).reshape(-1, 2)
        self._held, self._left = table[:, 0], table[:, 1]
        self._steps = np.array(sorted({left for _, left in rows}), np.int64)
        """From now until some row leaves, ascending."""
        alive = self._left >= self._steps[:, None]
        self._room_at = (layout.room_array(self._held + self._steps[:, None]) * alive).sum(axis=1)
        """Tokens of room in use after so many steps."""

    @property
    def bytes(self) -> int:
        return int(self._room_at.max(initial=0)) * self._layout.bytes_per_token

    def joined(self, row: Row) -> "FuturePeak":
        """The same with one more row, in O(rows)."""
        held, left = row
        steps, room_at = self._steps, self._room_at
        at = int(steps.searchsorted(left))
        if at == len(steps) or steps[at] != left:
            others = self._held[self._left >= left]
            room = int(self._layout.room_array(others + left).sum())
            steps = np.concatenate((steps[:at], (left,), steps[at:]))
            room_at = np.concatenate((room_at[:at], (room,), room_at[at:]))
        new = FuturePeak.__new__(FuturePeak)
        new._layout = self._layout
        new._held, new._left = np.concatenate((self._held, (held,))), np.concatenate((self._left, (left,)))
        new._steps = steps
        new._room_at = room_at + self._layout.room_array(held + steps) * (steps <= left)
        return new


class OverBudget(Exception):
    """A reservation that does not fit; the ledger is unchanged."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(f"needs {needed_bytes} bytes of KV memory, {free_bytes} are free")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class Ledger:
    """What each row of an engine holds, in the layout's own bytes; never over `capacity_bytes`."""

    def __init__(self, layout: KVLayout, capacity_bytes: int) -> None:
        self._layout = layout
        self.capacity_bytes = capacity_bytes
        self._held: dict[int, int] = {}
        self._used_tokens = 0

    @property
    def used_bytes(self) -> int:
        return self._used_tokens * self._layout.bytes_per_token

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes

    @property
    def rooms(self) -> Mapping[int, int]:
        """Tokens of room each row occupies; a live view."""
        return self._held

    def reserve(self, rows: dict[int, int]) -> None:
        """Grow each row to hold that many tokens, all or none.  Raises OverBudget."""
        room = self._layout.room_tokens
        grown = {row: room(tokens) for row, tokens in rows.items()}
        more_tokens = sum(size - self._held.get(row, 0) for row, size in grown.items())
        more = more_tokens * self._layout.bytes_per_token
        if more > self.free_bytes:
            raise OverBudget(more, self.free_bytes)
        self._used_tokens += more_tokens
        self._held.update(grown)

    def release(self, row: int) -> None:
        """Give back all that the row holds; nothing if it holds nothing."""
        self._used_tokens -= self._held.pop(row, 0)

    def check_idle(self) -> None:
        """Raise if anything is still held although no row is left: a leak."""
        if self._held or self._used_tokens:
            raise AssertionError(f"ledger not empty when idle: {self._held}, {self._used_tokens} tokens")
