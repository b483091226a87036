"""An engine that only takes time: the real planner and ledger over a cost model, on the event loop's clock.

Steps that decode the same rows are one event, however many: nothing can happen between them but a control, and
that cuts the rest off.  Rows count lazily, by the engine's count of decode steps, so an event costs the same
however many rows run.
"""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from math import inf

from gateway.simulator.cost import Cost
from gateway.simulator.job import Job, Padding, Style, fill, own, prefill_size
from gateway.simulator.memory import memory_of
from gateway.simulator.meter import Meter, Tally
from gateway.simulator.row import Row, row_of
from triton_backend.contract import Batch, Cancel, Detach, End, Evict, NewRow, Step
from triton_backend.memory import OverBudget
from triton_backend.plan import Plan, Prefill, Spare, State, plan_step, spare
from triton_backend.sequence import Sequence as Base
from triton_backend.sequence import Status

HEARTBEAT_S = 0.2
"""Age of the last message at which another one goes out that tells only how fast steps are."""
_NO_LIMIT = 2**60

Lengths = Callable[[NewRow], tuple[int, int]]
"""Of a row: prompt tokens, and answer tokens that will really be drawn."""
Report = Callable[[Step], None]


class Engine:
    def __init__(
        self,
        cost: Cost,
        style: Style,
        padding: Padding,
        max_step_tokens: int,
        lengths: Lengths,
        report: Report,
    ) -> None:
        """`max_step_tokens` bounds the prompts of one step; with `mixed`, all tokens of one."""
        self.cost = cost
        self.layout = cost.layout
        self.memory = memory_of(cost.layout, cost.kv_tokens * cost.kv_token_bytes)
        self.ledger = self.memory.ledger
        self.live: dict[int, Row] = {}
        self.decodes = 0
        """Decode steps run."""
        self.tally = Tally()
        self._style = style
        self._pads_prompts = padding is not Padding.PACKED
        self._pads_running = padding is Padding.PADDED
        self._max_step_tokens = _NO_LIMIT if style is Style.WHOLE else max_step_tokens
        self._state = State(self._max_step_tokens, pads=self._pads_prompts)
        self._lengths = lengths
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._meter = Meter()
        self._inbox: list[Batch | Cancel | Evict] = []
        self._seq = 0
        self._ends: list[tuple[int, int]] = []
        """(count of decode steps, row): when running rows draw their last token."""
        self._ended: list[Row] = []
        self._firsts: list[Row] = []
        """Drew their first token since the last message."""
        self._ghosts: list[int] = []
        """Ended rows that still take part in every step of their batch (whole, padded)."""
        self._context = 0
        """Tokens held by the running rows."""
        self._longest = -_NO_LIMIT
        """The longest running row's, less `decodes`."""
        self._drawn_s = -inf
        """When the running rows drew their last tokens."""
        self._is_settled = True
        self._told_s = -HEARTBEAT_S
        self._job: Job | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the driver asks for

    def submit(self, control: Batch | Cancel | Evict | Detach) -> None:
        """Obeyed when the step in progress has ended."""
        if isinstance(control, Detach):
            return
        self._inbox.append(control)
        self.nudge()

    def nudge(self) -> None:
        """There is something new: look when the step in progress has ended."""
        job = self._job
        if job is None:
            self._turn(self._loop.time())
        elif job.steps > 1:
            self.catch_up()
            job.steps = 1
            job.ends_s = job.started_s + self._decode_s(1)
            self._schedule(job)

    def catch_up(self) -> None:
        """Count the steps of the job in progress that have ended by now."""
        job = self._job
        if job is None or job.steps < 2:
            return
        rows, context_tokens = self._decode_size()
        passed_s = self._loop.time() - job.started_s
        done = min(self.cost.decodes_within(passed_s, rows, context_tokens, self.memory.num_groups), job.steps - 1)
        if done:
            job.started_s += self._decode_s(done)
            job.steps -= done
            self._advance(done)

    def telemetry_step(self) -> Step:
        """A sign of life."""
        return Step(self._seq, self._meter.read(self.ledger, self._num_running, len(self.live)))

    @property
    def _is_empty(self) -> bool:
        return not self.live

    # The crank

    def _turn(self, now_s: float) -> None:
        """Obey, settle, and begin the next step."""
        inbox, self._inbox = self._inbox, []
        for control in inbox:
            self._obey(control)
        self._settle()
        self._job = self._plan(now_s)
        if self._job is not None:
            self._schedule(self._job)
            return
        self._meter.rest()
        if self._is_empty:
            self.ledger.check_idle()
        if self._ended:
            self._tell()

    def _schedule(self, job: Job) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(job.ends_s, self._finish)

    def _finish(self) -> None:
        job, self._timer = self._job, None
        assert job is not None
        if job.steps:
            self._drawn_s = job.ends_s
            self._advance(job.steps - 1)
            last_s = self._decode_s(1)
            self._advance(1)
            self._end_drawn()
            if not job.chunks:
                self._meter.note_decode(self._num_running, last_s, job.steps)
        if job.chunks:
            self._meter.note_prefill(job.padded_tokens, job.ends_s - job.started_s, is_shared=job.steps > 0)
            self._count(job)
            for row, tokens in job.chunks:
                row.prefill(tokens)
                if row.prefilled_tokens == row.prompt_tokens:
                    self._draw_first(row)
            self._state.num_decodes = 0
        if self._firsts or self._ended or (job.steps and job.ends_s - self._told_s >= HEARTBEAT_S):
            self._told_s = job.ends_s
            self._tell()
        self._turn(job.ends_s)

    def _count(self, job: Job) -> None:
        self.tally.padded_tokens += job.padded_tokens
        self.tally.useful_tokens += sum(tokens for _, tokens in job.chunks)

    def _tell(self) -> None:
        if not self._is_settled:
            self._settle_state()
        telemetry = self._meter.read(self.ledger, self._num_running, len(self.live))
        if not self._firsts and not self._ended:
            self._report(Step(self._seq, telemetry))
            return
        firsts = [row for row in self._firsts if row.status is not Status.ENDED]
        rows = firsts + [row for row in self._ended if row.tokens]
        drawn = [row.drawn(self.decodes) for row in rows]
        step = Step(
            seq=self._seq,
            telemetry=telemetry,
            rows=[row.row for row in rows],
            indexes=[row.new.index + count - 1 for row, count in zip(rows, drawn, strict=True)],
            tokens=[0] * len(rows),
            ended=[row.ending for row in self._ended if row.ending],
        )
        self._firsts, self._ended = [], []
        self._report(step)

    # Rows

    def _obey(self, control: Batch | Cancel | Evict) -> None:
        self._seq = max(self._seq, control.seq)
        if isinstance(control, Batch):
            joined: list[Base] = [row for new in control.rows if (row := self._admit(new))]
            if joined:
                self._state.batches.append(joined)
        else:
            reason = End.EVICTED if isinstance(control, Evict) else End.CANCELLED
            self._end([self.live[number] for number in control.rows if number in self.live], reason)

    def _admit(self, new: NewRow) -> Row | None:
        row = row_of(new, *self._lengths(new))
        needed = self.layout.room_tokens(row.prompt_tokens + 1) * self.layout.bytes_per_token
        if needed > self.ledger.capacity_bytes:
            row.end(End.FAILED, "larger than the engine's memory")
        else:
            try:
                self._reserve(row.row, row.prompt_tokens + 1)
            except OverBudget as short:
                row.end(End.REFUSED, str(short))
        if row.ending:
            self._ended.append(row)
            return None
        self.live[row.row] = row
        return row

    def _draw_first(self, row: Row) -> None:
        row.draw(0, _NO_LIMIT)
        self._is_settled = False
        self._longest = max(self._longest, row.prompt_tokens + 1 - self.decodes)
        if row.ending:
            del self.live[row.row]
            self._release(row)
            self._ended.append(row)
        else:
            self._firsts.append(row)
            self._join(row)

    def _join(self, row: Row) -> None:
        """The row has drawn its first token and goes on."""
        row.join(self.decodes)
        row.pace(self._loop.time())
        row.paced = 1
        self._context += row.base + self.decodes
        heapq.heappush(self._ends, (row.last_at, row.row))

    def _end_drawn(self) -> None:
        """End the rows that have drawn all their tokens."""
        while self._ends and self._ends[0][0] <= self.decodes:
            at, number = heapq.heappop(self._ends)
            row = self.live.get(number)
            if row is not None and row.status is Status.RUNNING and at == row.last_at:
                self._end([row], End.LENGTH)

    def _end(self, rows: Sequence[Row], reason: End) -> None:
        for row in rows:
            if row.status is Status.RUNNING:
                self._context -= row.base + self.decodes
            row.leave(reason, self.decodes)
            del self.live[row.row]
            self._release(row)
            self._ended.append(row)
        self._is_settled = False

    def _release(self, row: Row) -> None:
        if self._style is Style.WHOLE and self._pads_running:
            self._ghosts.append(row.row)
        else:
            self.ledger.release(row.row)

    def _settle(self) -> None:
        """Bring the planner's state up to date, and hold room for the running rows' next decode step."""
        if not self._is_settled:
            self._settle_state()
        if self._state.running and not self.memory.surely_holds(self._num_running, self.decodes):
            self._hold_room()

    def _settle_state(self) -> None:
        self._state.settle()
        self._is_settled = True
        if not self._state.running:
            for number in self._ghosts:
                self.ledger.release(number)
            self._ghosts = []
        if self._pads_running and not self._ghosts:
            self._longest = max([row.base for row in self._running], default=-_NO_LIMIT)

    def _hold_room(self) -> None:
        """As the engine does (rows.py): what does not fit is evicted, and a row that does not fit alone fails."""
        while self._state.running:
            try:
                self.memory.hold(self._running, self.decodes)
                return
            except OverBudget:
                if len(self.live) == 1 and not self._ghosts:
                    self._end(list(self.live.values()), End.FAILED)
                else:
                    by_rank = max(self.live.values(), key=lambda row: (row.new.rank, row.row))
                    self._end([by_rank], End.EVICTED)
                self._settle_state()

    def _reserve(self, number: int, tokens: int) -> None:
        """Take a new row's room, with the ledger brought up to date if that could matter.  Raises OverBudget."""
        needed_bytes = self.layout.room_tokens(tokens) * self.layout.bytes_per_token
        if self._state.running and not self.memory.surely_holds(self._num_running, self.decodes, needed_bytes):
            self.memory.hold([row for row in self._running if row.status is Status.RUNNING], self.decodes)
        self.ledger.reserve({number: tokens})

    # Planning

    def _plan(self, now_s: float) -> Job | None:
        if self._style is Style.MIXED:
            chunks = fill(self._state.batches, self._max_step_tokens - self._num_running, self._pads_prompts)
            return self._new_job(now_s, chunks, self._num_running)
        if self._state.batches and self._state.running:
            self._state.spare = self._spare(now_s)
        plan = self._plan_whole() if self._style is Style.WHOLE else plan_step(self._state)
        chunks = []
        if chunk := plan.prefill:
            chunks = [(row, min(chunk.length, row.prompt_tokens - chunk.start)) for row in own(chunk.rows)]
        return self._new_job(now_s, chunks, len(plan.decode))

    def _new_job(self, now_s: float, chunks: list[tuple[Row, int]], num_decoding: int) -> Job | None:
        if not chunks:
            steps = self._num_steps() if num_decoding else 0
            return Job(now_s, now_s + self._decode_s(steps), [], 0, steps) if steps else None
        tokens, squares = prefill_size(chunks, self._pads_prompts)
        rows, context_tokens = self._decode_size() if num_decoding else (0, 0)
        took_s = self.cost.mixed_s(tokens, squares, rows, context_tokens, self.memory.num_groups)
        return Job(now_s, now_s + took_s, chunks, tokens, min(1, num_decoding))

    def _plan_whole(self) -> Plan:
        """One batch as sent, from its first prompt to its last row's end."""
        if self._num_running or not self._state.batches:
            return Plan(None, self._state.running)
        batch = self._state.batches[0]
        return Plan(Prefill(batch, 0, max(row.prompt_tokens for row in batch)))

    def _spare(self, now_s: float) -> Spare | None:
        """As the real engine reckons it, with due times brought up to date."""
        rows, meter = self._running, self._meter
        for row in rows:
            drawn = row.base + self.decodes - row.prompt_tokens
            if drawn > row.paced:
                row.pace(self._drawn_s, drawn - row.paced)
                row.paced = drawn
        return spare(rows, now_s, meter.decode_s, meter.prefill)

    def _num_steps(self) -> int:
        """Decode steps in which nothing happens but tokens: until a row ends or memory could run short."""
        if self._ended or (self._state.batches and self._style is Style.OURS):
            # The next message is due after one step.
            return 1
        until_end = self._ends[0][0] - self.decodes
        return max(1, min(until_end, self.memory.num_safe_steps(self._num_running, self.decodes)))

    def _decode_size(self) -> tuple[int, int]:
        """Rows and context tokens, as the padding has them."""
        rows = self._num_running
        if not self._pads_running:
            return rows, self._context
        rows += len(self._ghosts)
        return rows, rows * (self._longest + self.decodes)

    def _decode_s(self, steps: int) -> float:
        rows, context_tokens = self._decode_size()
        return self.cost.decode_s(rows, context_tokens, self.memory.num_groups, steps)

    def _advance(self, steps: int) -> None:
        self._context += steps * len(self._state.running)
        self._state.num_decodes += steps
        self.decodes += steps

    @property
    def _num_running(self) -> int:
        return len(self._state.running)

    @property
    def _running(self) -> list[Row]:
        return own(self._state.running)
