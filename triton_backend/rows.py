"""The engine's rows and the memory they hold: who comes in, who must go, who has ended.  Pure.

Every way out of the engine goes through here, so a row's room is given back exactly where its ending is
recorded.
"""

from collections.abc import Iterable

from triton_backend.contract import End, NewRow
from triton_backend.memory import KVLayout, Ledger, OverBudget
from triton_backend.plan import State
from triton_backend.sequence import Sequence, Status, flaw


class Rows:
    def __init__(
        self,
        layout: KVLayout,
        kv_budget_bytes: int,
        context_tokens: int,
        vocabulary: int,
        max_prefill_tokens: int,
    ) -> None:
        self.state = State(max_prefill_tokens)
        self.ledger = Ledger(layout, kv_budget_bytes)
        self._most_bytes = kv_budget_bytes
        """What the ledger had at most: so much may come back."""
        self._layout = layout
        self._context_tokens = context_tokens
        self._vocabulary = vocabulary
        self._live: dict[int, Sequence] = {}
        self._ended: list[Sequence] = []

    @property
    def live(self) -> list[Sequence]:
        return list(self._live.values())

    @property
    def num_running(self) -> int:
        return sum(row.status is Status.RUNNING for row in self._live.values())

    @property
    def has_ended(self) -> bool:
        """There is something for `take_ended`."""
        return bool(self._ended)

    def take_ended(self) -> list[Sequence]:
        """Rows that ended since the last call, in order; they are the caller's from here on."""
        ended, self._ended = self._ended, []
        return ended

    def accept(self, batch: Iterable[NewRow]) -> None:
        """Each row joins a batch to prefill, or ends at once: failed if it can never run, else refused."""
        joined = [row for new in batch if (row := self._admit(new))]
        if joined:
            self.state.batches.append(joined)

    def is_spent(self, row: Sequence) -> bool:
        """It has no further step to run."""
        return row.is_spent(self._context_tokens)

    def draw(self, row: Sequence, token: int) -> None:
        row.draw(token, self._context_tokens)
        if row.ending:
            self._release(row)

    def end(self, numbers: Iterable[int], reason: End, detail: str = "") -> None:
        """Unknown numbers are ignored: those rows ended meanwhile."""
        for row in [self._live[number] for number in numbers if number in self._live]:
            row.end(reason, detail)
            self._release(row)

    def end_all(self, reason: End, detail: str = "") -> None:
        self.end(list(self._live), reason, detail)

    def evict(self, count: int) -> None:
        """End the rows of the highest ranks; among equals the youngest has the least to lose."""
        by_rank = sorted(self._live.values(), key=lambda row: (row.new.rank, row.row), reverse=True)
        self.end([row.row for row in by_rank[:count]], End.EVICTED)

    def fit(self, kv_budget_bytes: int) -> None:
        """There is so much memory now; rows that it has no room for are evicted."""
        self.ledger.capacity_bytes = kv_budget_bytes
        self._most_bytes = max(self._most_bytes, kv_budget_bytes)
        while self._live and self.ledger.free_bytes < 0:
            self.evict(1)

    def settle(self) -> None:
        """Bring the planner's state up to date, and hold room for all running rows' next decode step.

        What does not fit is evicted; a row that does not fit even alone, and never would have, has failed.
        """
        self.state.settle()
        while running := self.state.running:
            try:
                self.ledger.reserve({row.row: row.held_tokens for row in running if not self.is_spent(row)})
                return
            except OverBudget as short:
                if len(self._live) == 1 and self.ledger.capacity_bytes == self._most_bytes:
                    self.end_all(End.FAILED, f"it is alone in the engine and {short}")
                else:
                    self.evict(1)
                self.state.settle()

    def _admit(self, new: NewRow) -> Sequence | None:
        row = Sequence(new)
        if detail := self._flaw(new):
            row.end(End.FAILED, detail)
            self._ended.append(row)
            return None
        try:
            self.ledger.reserve({new.row: row.prompt_tokens + 1})
        except OverBudget as short:
            row.end(End.REFUSED, str(short))
            self._ended.append(row)
            return None
        self.ledger.reserve({new.row: row.held_tokens})
        self._live[new.row] = row
        return row

    def _flaw(self, new: NewRow) -> str | None:
        if new.row in self._live:
            return f"row number {new.row} is in use"
        if detail := flaw(new, self._context_tokens, self._vocabulary):
            return detail
        needed = self._layout.room_tokens(len(new.prompt) + 1) * self._layout.bytes_per_token
        if needed > self._most_bytes:
            return f"needs {needed} bytes of KV memory, the engine has {self._most_bytes} in all"
        return None

    def _release(self, row: Sequence) -> None:
        del self._live[row.row]
        self.ledger.release(row.row)
        self._ended.append(row)
