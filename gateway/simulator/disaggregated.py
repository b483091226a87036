"""DistServe's engines: prompts are run on some GPUs, answers on others, and KV memory moves over.

A driver sees the prefill engine only.  The engine runs what it was sent first come, first served, up to a token
cap, and hands each row to the decode engine with the fewest rows.  That one pulls it when there is room: while
less than 5 % of its memory is taken by rows that have not started there, and the prompt fits.  If running rows
outgrow the memory, the last one is swapped out until there is room again; swapping is taken to cost nothing.
"""

import heapq
from collections import deque
from collections.abc import Sequence

import msgspec

from gateway.simulator.backend import SimRoster
from gateway.simulator.cost import Cost
from gateway.simulator.engine import Engine, Lengths, Report
from gateway.simulator.job import Job, Padding, Style, own, prefill_size
from gateway.simulator.row import Row
from triton_backend.contract import End, Step
from triton_backend.memory import OverBudget
from triton_backend.memory import Row as Memory

MAX_BATCH_ROWS = 128
MAX_RUNNING = 1024
MAX_WAITING_SHARE = 0.05
LINK_BYTES_PER_S = 300e9
"""NVLink of an A100, one direction."""


class PrefillEngine(Engine):
    def __init__(
        self,
        cost: Cost,
        padding: Padding,
        max_step_tokens: int,
        lengths: Lengths,
        report: Report,
        decoders: Sequence["DecodeEngine"],
    ) -> None:
        super().__init__(cost, Style.MIXED, padding, max_step_tokens, lengths, report)
        self.away: dict[int, Row] = {}
        """Rows that a decode engine has."""
        self._decoders = decoders

    def moved(self, row: Row) -> None:
        """A decode engine has its memory now."""
        self.away[row.row] = self.live.pop(row.row)
        self.ledger.release(row.row)
        self._report(self.telemetry_step())

    def came_back(self, row: Row, drawn: int) -> None:
        """It has drawn its last token."""
        del self.away[row.row]
        row.tokens = range(drawn)  # type: ignore[assignment]
        row.end(End.LENGTH)
        self._ended.append(row)
        self._tell()

    def _plan(self, now_s: float) -> Job | None:
        waiting = [row for batch in self._state.batches for row in own(batch)][:MAX_BATCH_ROWS]
        chunks: list[tuple[Row, int]] = []
        used = longest = 0
        for row in waiting:
            used, longest = used + row.prompt_tokens, max(longest, row.prompt_tokens)
            step_tokens = longest * (len(chunks) + 1) if self._pads_prompts else used
            if chunks and step_tokens > self._max_step_tokens:
                break
            chunks.append((row, row.prompt_tokens))
        if not chunks:
            return None
        tokens, squares = prefill_size(chunks, self._pads_prompts)
        return Job(now_s, now_s + self.cost.prefill_s(tokens, squares), chunks, tokens, 0)

    def _join(self, row: Row) -> None:
        min(self._decoders, key=lambda decoder: decoder.num_rows).offer(row, self)

    def _settle_state(self) -> None:
        super()._settle_state()
        # They are running elsewhere.
        self._state.running = []


class DecodeEngine(Engine):
    def __init__(self, cost: Cost, padding: Padding, lengths: Lengths) -> None:
        super().__init__(cost, Style.MIXED, padding, 0, lengths, _nobody)
        self._bridge: deque[tuple[Row, PrefillEngine]] = deque()
        """Offered, and still in the prefill engine's memory."""
        self._of: dict[int, tuple[Row, PrefillEngine]] = {}
        """By this engine's number: the row as its prefill engine knows it."""
        self._last_number = 0
        self._moving_tokens = 0
        """Of prompts that are on their way here."""
        self._waiting: deque[Row] = deque()
        self._swapped: deque[tuple[Row, int]] = deque()
        """Rows and how many tokens they have drawn."""

    @property
    def num_rows(self) -> int:
        return len(self._bridge) + len(self._of)

    @property
    def _is_empty(self) -> bool:
        return not self._of

    def offer(self, row: Row, prefill: PrefillEngine) -> None:
        self._bridge.append((row, prefill))
        self.nudge()

    def _turn(self, now_s: float) -> None:
        self._pull()
        self._start()
        super()._turn(now_s)

    def _pull(self) -> None:
        while self._bridge and not self._swapped and self._moving_tokens < MAX_WAITING_SHARE * self.cost.kv_tokens:
            row, prefill = self._bridge[0]
            number = self._last_number + 1
            if not self._try_reserve(number, row.prompt_tokens + 1):
                return
            self._bridge.popleft()
            self._last_number = number
            self._of[number] = row, prefill
            self._moving_tokens += row.prompt_tokens
            move_s = row.prompt_tokens * self.cost.kv_token_bytes / LINK_BYTES_PER_S
            self._loop.call_later(move_s, self._arrived, number)

    def _arrived(self, number: int) -> None:
        row, prefill = self._of[number]
        self._moving_tokens -= row.prompt_tokens
        prefill.moved(row)
        here = Row(msgspec.structs.replace(row.new, row=number), prompt_tokens=row.prompt_tokens)
        here.prefill(here.prompt_tokens)
        here.draw(0, 2 * here.prompt_tokens + here.new.max_tokens)
        self._waiting.append(here)
        self.nudge()

    def _start(self) -> None:
        """Rows that were swapped out come first, but those that wait have their room already."""
        while self._swapped and self._num_running < MAX_RUNNING:
            row, drawn = self._swapped[0]
            if not self._try_reserve(row.row, row.prompt_tokens + drawn):
                break
            self._swapped.popleft()
            self._run(row, drawn)
        while self._waiting and self._num_running < MAX_RUNNING:
            self._run(self._waiting.popleft(), 1)

    def _run(self, row: Row, drawn: int) -> None:
        row.join(self.decodes, drawn)
        self.live[row.row] = row
        self._state.running.append(row)
        self._context += row.base + self.decodes
        self._longest = max(self._longest, row.base)
        heapq.heappush(self._ends, (row.last_at, row.row))

    def _hold_room(self) -> None:
        while self._state.running:
            try:
                self.memory.hold(self._running, self.decodes)
                return
            except OverBudget:
                last = self._running.pop()
                del self.live[last.row]
                self.ledger.release(last.row)
                self._context -= last.base + self.decodes
                self._swapped.append((last, last.drawn(self.decodes)))

    def _try_reserve(self, number: int, tokens: int) -> bool:
        try:
            self._reserve(number, tokens)
        except OverBudget:
            return False
        return True

    def _tell(self) -> None:
        if not self._is_settled:
            self._settle_state()
        ended, self._ended = self._ended, []
        for here in ended:
            row, prefill = self._of.pop(here.row)
            prefill.came_back(row, len(here.tokens))


class PrefillRoster(SimRoster):
    """A driver's view of what the prefill engine still has."""

    def __init__(self, engine: PrefillEngine) -> None:
        super().__init__(engine)
        self._prefill = engine

    def __len__(self) -> int:
        return len(self._rows) - len(self._prefill.away)

    @property
    def memory(self) -> list[Memory]:
        """An answer takes no room here but that of its first token."""
        away = self._prefill.away
        return [Memory(row.ticket.prompt_tokens, 1) for number, row in self._rows.items() if number not in away]


def _nobody(step: Step) -> None:
    """Drivers hear of rows from the prefill engines."""
