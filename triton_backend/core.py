"""All state of the engine, single-threaded: what a driver asks for, one model step, what the driver hears.

Rows belong to the engine, not to a session: they go on while nobody is attached, for `ORPHAN_S` at most, and
the next session finds them in its snapshot.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from triton_backend.cache import CacheLost
from triton_backend.contract import (
    Attach,
    Attached,
    Batch,
    Cancel,
    Detach,
    End,
    Evict,
    ModelInfo,
    Step,
    Telemetry,
)
from triton_backend.memory import Layout
from triton_backend.plan import Decode, Idle, Prefill, plan_step, spare_tokens
from triton_backend.record import Recorder, StepRecord, size
from triton_backend.rows import Rows
from triton_backend.sampling import Draws, NotFinite
from triton_backend.sequence import Sequence
from triton_backend.session import Reception, Sink
from triton_backend.shortage import OutOfMemory, is_shortage
from triton_backend.telemetry import Meter

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.15
"""Time between signs of life when idle: five a second are promised, the rest is the scheduler's slack."""
ORPHAN_S = 30.0
"""How long rows outlive their last session: by then their origins have put them back elsewhere."""
SHORTEST_STEP_S = 1e-6
"""Rates divide by a step's time, and a coarse clock may not see one pass."""
MAX_FAILURES = 3
"""Steps in a row that may raise before the engine declares itself broken."""

Drawn = tuple[list[Sequence], Draws]
"""Rows, and what was drawn for each."""


class Executor(Protocol):
    """What the core needs of a `Runner`, which documents it."""

    @property
    def layout(self) -> Layout: ...
    @property
    def kv_budget_bytes(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def out_of_memory_total(self) -> int: ...

    def arrange(self, rooms: Mapping[int, int], running: list[int]) -> None: ...
    def prefill(self, rows: list[Sequence], start: int, length: int) -> Drawn: ...
    def decode(self, rows: list[Sequence]) -> Drawn: ...


class Core:
    def __init__(
        self,
        runner: Executor,
        name: str,
        max_prefill_tokens: int,
        clock: Callable[[], float],
        recorder: Recorder | None,
    ) -> None:
        self._recorder = recorder
        self._runner = runner
        self._clock = clock
        self._model = ModelInfo(
            name=name,
            context_tokens=runner.context_tokens,
            vocabulary=runner.vocabulary,
            dtype=runner.dtype,
            device=runner.device,
        )
        self._rows = Rows(
            runner.layout,
            runner.kv_budget_bytes,
            runner.context_tokens,
            runner.vocabulary,
            max_prefill_tokens,
        )
        self._unclaimed: list[Sequence] = []
        """Ended while nobody was attached: for the next snapshot."""
        self._reception = Reception(clock)
        self._seq = 0
        self._meter = Meter(clock)
        self._failures = 0

    @property
    def epoch(self) -> int:
        """The highest that ever attached."""
        return self._reception.epoch

    def close(self) -> None:
        """End the session, if there is one."""
        self._reception.close()
        if self._recorder:
            self._recorder.close()

    # What the driver asks for.

    def attach(self, attach: Attach, sink: Sink) -> None:
        if not self._reception.admit(attach, sink):
            return
        self._seq = 0
        self._unclaimed += self._rows.take_ended()
        snapshot = [row.live_row() for row in (*self._unclaimed, *self._rows.live)]
        telemetry = self._telemetry()
        layout = self._runner.layout
        if self._reception.send(Attached(attach.epoch, attach.version, self._model, layout, snapshot, telemetry)):
            self._unclaimed = []

    def obey(self, control: Batch | Cancel | Evict | Detach) -> None:
        if control.epoch != self._reception.epoch:
            return  # Its driver was superseded after the acknowledgement; the origins put the tickets back.
        self._seq = max(self._seq, control.seq)
        match control:
            case Batch():
                self._rows.accept(control.rows)
            case Cancel():
                self._rows.end(control.rows, End.CANCELLED)
            case Evict():
                self._rows.end(control.rows, End.EVICTED)
            case Detach():
                self._reception.close()

    # One step.

    def step(self) -> bool:
        """At most one step of the model and one message.  False: there was nothing to run.

        Raises what the model raised if that makes MAX_FAILURES in a row.
        """
        began_s = self._clock()
        self._look_for_driver()
        self._rows.fit(self._runner.kv_budget_bytes)
        self._rows.settle()
        self._grant()
        plan = plan_step(self._rows.state)
        if isinstance(plan, Idle):
            self._rest()
            return False
        if self._recorder is None:
            self._report(*self._run(plan))
        else:
            # Before it is run: rows grow, and leave.
            figures = size(plan, self._rows.ledger.rooms, self._runner.layout)
            self._report(*self._run(plan))
            self._recorder.note(StepRecord(self._clock() - began_s, *figures))
        return True

    def _grant(self) -> None:
        """Tell the planner how much of the waiting prompts may be run before the next decode step."""
        state, meter = self._rows.state, self._meter
        if state.batches and state.running:
            state.spare_tokens = spare_tokens(state.running, self._clock(), meter.decode_s, meter.prefill)

    def _look_for_driver(self) -> None:
        self._reception.look()
        vacant_since = self._reception.vacant_since
        if vacant_since is not None and self._clock() - vacant_since > ORPHAN_S:
            self._rows.end_all(End.CANCELLED)
            self._rows.take_ended()
            self._unclaimed = []

    def _rest(self) -> None:
        self._rows.ledger.check_idle()
        self._runner.arrange({}, [])
        self._meter.rest()
        if self._recorder:
            self._recorder.flush()
        if self._rows.has_ended or self._clock() - self._reception.last_sent >= HEARTBEAT_S:
            self._report([], Draws())

    def _run(self, plan: Prefill | Decode) -> Drawn:
        """Run the step and advance its rows; what the model raises ends rows, not the engine."""
        state = self._rows.state
        state.num_decodes = 0 if isinstance(plan, Prefill) else state.num_decodes + 1
        started = self._clock()
        try:
            drawn = self._execute(plan)
        except OutOfMemory:
            self._rows.evict(1 + len(self._rows.live) // 8)
        except NotFinite as error:
            self._rows.end(error.rows, End.FAILED, str(error))
        except CacheLost as error:
            if is_shortage(error.__cause__):
                self._rows.end_all(End.EVICTED)
            else:
                self._survive(error, self._rows.live, End.EVICTED)
        except Exception as error:
            self._survive(error, plan.rows, End.FAILED)
        else:
            self._failures = 0
            self._advance(plan, *drawn)
            self._note(plan, max(self._clock() - started, SHORTEST_STEP_S))
            return drawn
        return [], Draws()

    def _execute(self, plan: Prefill | Decode) -> Drawn:
        self._runner.arrange(self._rows.ledger.rooms, [row.row for row in self._rows.state.running])
        if isinstance(plan, Prefill):
            return self._runner.prefill(plan.rows, plan.start, plan.length)
        return self._runner.decode(plan.rows)

    def _survive(self, error: Exception, affected: list[Sequence], reason: End) -> None:
        self._failures += 1
        if self._failures == MAX_FAILURES:
            raise error
        log.exception("a step failed")
        self._rows.end([row.row for row in affected], reason, f"{type(error).__name__}: {error}")

    def _advance(self, plan: Prefill | Decode, rows: list[Sequence], draws: Draws) -> None:
        if isinstance(plan, Prefill):
            for row in plan.rows:
                row.prefill(plan.length)
        now_s = self._clock()
        for at, row in enumerate(rows):
            if row.wants_logprobs:
                row.logprobs.append(draws.logprobs[at])
                row.alternatives.append(draws.alternatives[at])
            self._rows.draw(row, draws.tokens[at])
            row.pace(now_s)

    def _note(self, plan: Prefill | Decode, step_s: float) -> None:
        if isinstance(plan, Prefill):
            self._meter.note_prefill(plan.padded_tokens, step_s)
        else:
            self._meter.note_decode(len(plan.rows), step_s)

    # What the driver hears.

    def _report(self, rows: list[Sequence], draws: Draws) -> None:
        """One message for the step: the tokens drawn, and the rows that ended since the last message."""
        ended = self._rows.take_ended()
        asked = any(row.wants_logprobs for row in rows)
        step = Step(
            seq=self._seq,
            telemetry=self._telemetry(),
            rows=[row.row for row in rows],
            indexes=[row.index - 1 for row in rows],
            tokens=draws.tokens,
            logprobs=draws.logprobs if asked else [],
            alternatives=draws.alternatives if asked else [],
            ended=[row.ending for row in ended if row.ending],
        )
        if not self._reception.send(step):
            self._unclaimed += ended

    def _telemetry(self) -> Telemetry:
        num_running = self._rows.num_running
        num_waiting = len(self._rows.live) - num_running
        return self._meter.read(self._rows.ledger, self._runner, num_running, num_waiting)
