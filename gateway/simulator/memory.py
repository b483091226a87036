"""KV memory of a simulated engine: the real ledger, and how many decode steps it need not be told of."""

from collections.abc import Collection, Iterable
from typing import Protocol

from gateway.simulator.row import Row
from triton_backend.memory import Grouped, Ledger, Paged


class Memory(Protocol):
    """Of the rows, the running ones are meant; `decodes` is the engine's count of decode steps."""

    ledger: Ledger
    num_groups: int
    """Groups by capacity in which the running rows lie; 0 where there are none."""

    def surely_holds(self, num_running: int, decodes: int, beside_bytes: int = 0) -> bool:
        """Whether the next token of each row, and so much more, surely fits, whatever the ledger was last told."""

    def hold(self, rows: Collection[Row], decodes: int) -> None:
        """Take the room for the next token of each row.  Raises OverBudget."""

    def num_safe_steps(self, num_running: int, decodes: int) -> int:
        """Decode steps, at least one, before which `hold` need not be called again."""


class Blocks:
    """Rows take small blocks as they grow, too often to tell the ledger: it is told when memory may run short."""

    num_groups = 0

    def __init__(self, layout: Paged, capacity_bytes: int) -> None:
        self.ledger = Ledger(layout, capacity_bytes)
        self._block_tokens = layout.block_tokens
        self._token_bytes = layout.bytes_per_token
        self._held_at = 0
        """The count of decode steps up to which the growth is in the ledger."""

    def surely_holds(self, num_running: int, decodes: int, beside_bytes: int = 0) -> bool:
        # A row that has grown by n tokens may take n and the rest of a block more than the ledger says.
        grown = decodes - self._held_at + self._block_tokens - 1
        return num_running * grown * self._token_bytes + beside_bytes <= self.ledger.free_bytes

    def hold(self, rows: Collection[Row], decodes: int) -> None:
        self.ledger.reserve(_held(rows, decodes))
        self._held_at = decodes

    def num_safe_steps(self, num_running: int, decodes: int) -> int:
        free_tokens = self.ledger.free_bytes // self._token_bytes
        grown = decodes - self._held_at + self._block_tokens - 1
        return max(1, free_tokens // num_running - grown + 1)


class Groups:
    """Rows have a capacity and seldom outgrow it: the ledger is told whenever one does, as the real one is."""

    def __init__(self, layout: Grouped, capacity_bytes: int) -> None:
        self.ledger = Ledger(layout, capacity_bytes)
        self.num_groups = 0
        self._grows_at = 0
        """The count of decode steps at which the first row outgrows its capacity."""

    def surely_holds(self, num_running: int, decodes: int, beside_bytes: int = 0) -> bool:
        return False

    def hold(self, rows: Collection[Row], decodes: int) -> None:
        held = _held(rows, decodes)
        self.ledger.reserve(held)
        rooms = [self.ledger.rooms[row] for row in held]
        self.num_groups = len(set(rooms))
        left = (room - tokens for room, tokens in zip(rooms, held.values(), strict=True))
        self._grows_at = decodes + min(left, default=0) + 1

    def num_safe_steps(self, num_running: int, decodes: int) -> int:
        return max(1, self._grows_at - decodes)


def memory_of(layout: Paged | Grouped, capacity_bytes: int) -> Memory:
    return Groups(layout, capacity_bytes) if isinstance(layout, Grouped) else Blocks(layout, capacity_bytes)


def _held(rows: Iterable[Row], decodes: int) -> dict[int, int]:
    return {row.row: row.base + decodes for row in rows}
