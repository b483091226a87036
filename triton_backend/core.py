"""All state of the engine, single-threaded: what a driver asks for, one model step, what the driver hears.

A step is started and then landed: its tokens are read and its rows advance.  An executor whose device runs by
itself gets the next step before the last one has landed, so that it never waits for this thread; a row that turns
out to have ended meanwhile runs one surplus step, whose token is dropped.

Rows belong to the engine, not to a session: they go on while nobody is attached, for `ORPHAN_S` at most, and
the next session finds them in its snapshot.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from triton_backend.plan import Plan, Prefill, plan_step, spare
from triton_backend.record import Recorder, StepRecord, size
from triton_backend.rows import Rows
from triton_backend.sampling import NOT_FINITE, Draws, Reading
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

Drawn = tuple[list[Sequence], Reading]
"""Rows, and what is drawn for each.  `Draws` say that the step is over; anything else is read a step later."""


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
    def run(self, prefill: Prefill | None, decode: list[Sequence]) -> Drawn: ...


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was started."""

    plan: Plan
    rows: list[Sequence]
    """That draw a token in it."""
    reading: Reading
    began_s: float
    """When it was looked what there is to run."""
    started_s: float
    figures: tuple[int, int, int, int, int] | None
    """Its size, if that is recorded."""


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
            chunk_tokens=max_prefill_tokens,
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
        self._flight: Flight | None = None
        """The step whose tokens nobody has read."""
        self._landed_s = 0.0
        """When the last step was over: the next one had the device to itself from then on."""

    @property
    def epoch(self) -> int:
        """The highest that ever attached."""
        return self._reception.epoch

    @property
    def version(self) -> int:
        """Of the contract, as spoken with that one."""
        return self._reception.version

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
            return  # Its driver was superseded after it came; the origins put the tickets back.
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
        """Start at most one step of the model, land at most one, and send at most one message.  False: there was
        nothing to do.

        Raises what the model raised if that makes MAX_FAILURES in a row.
        """
        began_s = self._clock()
        self._look_for_driver()
        self._rows.fit(self._runner.kv_budget_bytes)
        self._rows.settle()
        self._grant()
        plan = self._plan()
        behind, self._flight = self._flight, None
        if plan.is_idle:
            if behind is None:
                self._rest()
                return False
        else:
            self._flight = self._start(plan, began_s)
            if self._flight and isinstance(self._flight.reading, Draws):
                behind, self._flight = self._flight, None
        if behind:
            self._report(*self._land(behind))
            self._record(behind)
        elif self._rows.has_ended:
            self._report([], Draws())
        return True

    def _plan(self) -> Plan:
        plan = plan_step(self._rows.state)
        return Plan(plan.prefill, [row for row in plan.decode if not self._rows.is_spent(row)])

    def _grant(self) -> None:
        """Tell the planner how much of the waiting prompts may be run in the next step."""
        state, meter = self._rows.state, self._meter
        if state.batches and state.running:
            state.spare = spare(state.running, self._clock(), meter.decode_s, meter.prefill)

    def _look_for_driver(self) -> None:
        self._reception.look()
        vacant_since = self._reception.vacant_since
        if vacant_since is not None and self._clock() - vacant_since > ORPHAN_S:
            self._rows.end_all(End.CANCELLED)
            self._rows.take_ended()
            self._unclaimed = []

    def _rest(self) -> None:
        self._rows.ledger.check_idle()
        with self._surviving([]):
            self._runner.arrange({}, [])
        self._meter.rest()
        if self._recorder:
            self._recorder.flush()
        if self._rows.has_ended or self._clock() - self._reception.last_sent >= HEARTBEAT_S:
            self._report([], Draws())

    def _start(self, plan: Plan, began_s: float) -> Flight | None:
        """Start the step; None: it could not be, and rows have ended."""
        state = self._rows.state
        state.num_decodes = 0 if plan.prefill else state.num_decodes + 1
        # Before it is run: rows grow, and leave.
        figures = size(plan, self._rows.ledger.rooms, self._runner.layout) if self._recorder else None
        started_s = self._clock()
        with self._surviving(plan.rows):
            rows, reading = self._execute(plan)
            if plan.prefill:
                for row in plan.prefill.rows:
                    row.prefill(plan.prefill.length)
            for row in rows:
                row.fly()
            if len(rows) < plan.num_draws:
                self._make_room()
            return Flight(plan, rows, reading, began_s, started_s, figures)
        return None

    def _execute(self, plan: Plan) -> Drawn:
        self._runner.arrange(self._rows.ledger.rooms, [row.row for row in self._rows.state.running])
        return self._runner.run(plan.prefill, plan.decode)

    def _land(self, flight: Flight) -> tuple[list[Sequence], Draws]:
        """Read the step's tokens and advance its rows, but for those that have ended."""
        for row in flight.rows:
            row.land()
        with self._surviving(flight.plan.rows):
            draws = flight.reading.read()
            self._failures = 0
            drawn = self._advance(flight.rows, draws)
            self._note(flight)
            return drawn
        return [], Draws()

    def _advance(self, rows: list[Sequence], draws: Draws) -> tuple[list[Sequence], Draws]:
        broken = [row.row for row, token in zip(rows, draws.tokens, strict=True) if token == NOT_FINITE]
        self._rows.end(broken, End.FAILED, "the model returned logits that are not finite")
        wanted = [at for at, row in enumerate(rows) if not row.ending]
        if len(wanted) < len(rows):
            rows, draws = [rows[at] for at in wanted], draws.only(wanted)
        now_s = self._clock()
        for at, row in enumerate(rows):
            if row.wants_logprobs:
                row.logprobs.append(draws.logprobs[at])
                row.alternatives.append(draws.alternatives[at])
            self._rows.draw(row, draws.tokens[at])
            row.pace(now_s)
        return rows, draws

    @contextmanager
    def _surviving(self, affected: list[Sequence]) -> Iterator[None]:
        """What the model raises ends rows, not the engine."""
        try:
            yield
        except OutOfMemory:
            self._make_room()
        except CacheLost as error:
            if is_shortage(error.__cause__):
                self._rows.end_all(End.EVICTED)
            else:
                self._survive(error, self._rows.live, End.EVICTED)
        except Exception as error:
            self._survive(error, affected, End.FAILED)

    def _make_room(self) -> None:
        """There was no memory for some row, not even alone."""
        self._rows.evict(1 + len(self._rows.live) // 8)

    def _survive(self, error: Exception, affected: list[Sequence], reason: End) -> None:
        self._failures += 1
        if self._failures == MAX_FAILURES:
            raise error
        log.exception("a step failed")
        self._rows.end([row.row for row in affected], reason, f"{type(error).__name__}: {error}")

    def _note(self, flight: Flight) -> None:
        step_s = max(self._clock() - max(flight.started_s, self._landed_s), SHORTEST_STEP_S)
        plan = flight.plan
        if plan.prefill:
            self._meter.note_prefill(plan.prefill.tokens, step_s, is_shared=bool(plan.decode))
        else:
            self._meter.note_decode(len(plan.decode), step_s)

    def _record(self, flight: Flight) -> None:
        now_s = self._clock()
        if self._recorder and flight.figures:
            self._recorder.note(StepRecord(now_s - max(flight.began_s, self._landed_s), *flight.figures))
        self._landed_s = now_s

    # What the driver hears.

    def _report(self, rows: list[Sequence], draws: Draws) -> None:
        """One message for the step: the tokens drawn, and the rows that ended since the last message."""
        ended = self._rows.take_ended()
        asked = any(row.wants_logprobs for row in rows)
        step = Step(
            seq=self._seq,
            telemetry=self._telemetry(),
            rows=[row.row for row in rows],
            indexes=[row.new.index + len(row.tokens) - 1 for row in rows],
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
