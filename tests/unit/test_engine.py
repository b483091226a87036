"""The engine without a model: sessions, endings, memory and failures, under any interleaving.  Time stands
still unless a test moves it, and no thread runs unless a test starts it."""

import random
import threading
from collections.abc import Callable, Mapping

import pytest
import torch

from gateway.simulator.meter import Meter as SimulatedMeter
from tests.unit.peer import FIRST_ROW, Peer, new_row
from triton_backend.cache import CacheLost
from triton_backend.contract import (
    CONTRACT_VERSION,
    Ack,
    Attach,
    AttachRefused,
    Batch,
    Cancel,
    Detach,
    End,
    Ended,
    Evict,
    Sampling,
)
from triton_backend.core import HEARTBEAT_S, MAX_FAILURES, ORPHAN_S
from triton_backend.device import make_current
from triton_backend.engine import Engine, EngineConfig, load_runner
from triton_backend.memory import Grouped
from triton_backend.plan import Prefill
from triton_backend.rows import Rows
from triton_backend.sampling import NOT_FINITE, Draws, Reading
from triton_backend.sequence import Sequence
from triton_backend.shortage import OutOfMemory
from triton_backend.telemetry import Meter

VOCABULARY = 50


def next_token(text: list[int]) -> int:
    """What the made-up model draws after a text."""
    return (31 * sum(text) + 7 * len(text)) % VOCABULARY


def continuation(prompt: list[int], num_tokens: int) -> list[int]:
    text = list(prompt)
    for _ in range(num_tokens):
        text.append(next_token(text))
    return text[len(prompt) :]


class NoRoom(OutOfMemory):
    """For the cache, before the step."""


def lost(cause: Exception | None) -> CacheLost:
    error = CacheLost("lost")
    error.__cause__ = cause
    return error


class Executor:
    """A model made of arithmetic.  Checks what it is handed; raises what `troubles` holds, one a step."""

    layout = Grouped((8, 12, 16, 24, 32, 40), bytes_per_token=10)
    context_tokens = 40
    vocabulary = VOCABULARY
    dtype = "none"
    device = "cpu"
    allocated_bytes = 0
    out_of_memory_total = 0

    def __init__(self, kv_tokens: int) -> None:
        self.kv_budget_bytes = kv_tokens * self.layout.bytes_per_token
        self.troubles: list[Exception | None] = []
        self.idle_troubles: list[Exception | None] = []
        """What arranging the cache of an idle engine raises, one a turn."""
        self.broken: set[int] = set()
        """Rows whose logits are not finite."""
        self.rooms: dict[int, int] = {}
        self.running: list[int] = []

    def arrange(self, rooms: Mapping[int, int], running: list[int]) -> None:
        assert sum(rooms.values()) * self.layout.bytes_per_token <= self.kv_budget_bytes
        troubles = self.troubles if rooms else self.idle_troubles
        if troubles and isinstance(troubles[0], (CacheLost, NoRoom)):
            raise troubles.pop(0)  # type: ignore[misc]
        self.rooms, self.running = dict(rooms), running

    def run(self, prefill: Prefill | None, decode: list[Sequence]) -> tuple[list[Sequence], Reading]:
        chunk, finishing = [], []
        if prefill:
            chunk, finishing = prefill.rows, prefill.finishing
            assert all(row.prefilled_tokens == prefill.start for row in chunk)
        self._check(decode)
        return self._draw(chunk + decode, finishing + decode[::-1])

    def _check(self, decode: list[Sequence]) -> None:
        assert self.running == [row.row for row in decode]

    def _draw(self, rows: list[Sequence], drawing: list[Sequence]) -> tuple[list[Sequence], Reading]:
        assert all(self.rooms[row.row] >= row.held_tokens for row in rows)
        if self.troubles and (trouble := self.troubles.pop(0)):
            raise trouble
        tokens = [self._token(row) for row in drawing]
        return drawing, Draws(tokens, [-0.5] * len(tokens), [[(token, -0.5)] for token in tokens])

    def _token(self, row: Sequence) -> int:
        return NOT_FINITE if row.row in self.broken else next_token(row.new.prompt + row.tokens)


class Later:
    """What a step draws, on a device that runs by itself."""

    def __init__(self, draws: Draws, trouble: Exception | None) -> None:
        self._draws = draws
        self._trouble = trouble
        self.num_reads = 0

    def read(self) -> Draws:
        self.num_reads += 1
        if self._trouble:
            raise self._trouble
        return self._draws


class AheadExecutor(Executor):
    """Its steps are read later; until then it alone knows what they drew."""

    def __init__(self, kv_tokens: int) -> None:
        super().__init__(kv_tokens)
        self.texts: dict[Sequence, list[int]] = {}
        self.started: list[Later] = []
        self.late_troubles: list[Exception | None] = []
        """What reading the steps raises, one a step."""

    def _check(self, decode: list[Sequence]) -> None:
        assert {row.row for row in decode} <= set(self.running)
        assert all(len(row.tokens) + row.in_flight < row.new.max_tokens for row in decode)

    def _draw(self, rows: list[Sequence], drawing: list[Sequence]) -> tuple[list[Sequence], Reading]:
        drawn, draws = super()._draw(rows, drawing)
        assert isinstance(draws, Draws)
        assert [later.num_reads for later in self.started[:-1]] == [1] * len(self.started[:-1])
        self.started.append(Later(draws, self.late_troubles.pop(0) if self.late_troubles else None))
        return drawn, self.started[-1]

    def _token(self, row: Sequence) -> int:
        text = self.texts.setdefault(row, list(row.new.prompt))
        assert len(text) == row.held_tokens
        text.append(next_token(text))
        return NOT_FINITE if row.row in self.broken else text[-1]


kinds = pytest.mark.parametrize("kind", [Executor, AheadExecutor], ids=["in step", "ahead"])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Rig:
    def __init__(
        self, kv_tokens: int = 200, max_prefill_tokens: int = 16, kind: type[Executor] = Executor
    ) -> None:
        self.executor = kind(kv_tokens)
        self.clock = Clock()
        config = EngineConfig(model="", name="fake", max_prefill_tokens=max_prefill_tokens)
        self.engine = Engine(config, lambda _: self.executor, self.clock)

    def peer(self, epoch: int = 1, **tickets: object) -> Peer:
        peer = Peer(self.engine, epoch, **tickets)  # type: ignore[arg-type]
        self.engine.step()
        return peer


def told_bytes(peer: Peer) -> int:
    """The KV memory that the gateway plans with."""
    assert peer.telemetry is not None
    return peer.telemetry.pool_capacity_bytes + peer.telemetry.pool_growable_bytes


def endings(peer: Peer) -> dict[str, End]:
    return {name: ticket.ending.reason for name, ticket in peer.tickets.items() if ticket.ending}


# Rows.


def test_rows_are_answered_in_one_message_a_step() -> None:
    rig = Rig()
    peer = rig.peer()
    peer.put([new_row(0, [1, 2], 3), new_row(1, [3], 2)])
    peer.run()
    assert [sorted(step.rows) for step in peer.steps] == [
        [FIRST_ROW, FIRST_ROW + 1],
        [FIRST_ROW, FIRST_ROW + 1],
        [FIRST_ROW],
    ]
    assert [[ended.row for ended in step.ended] for step in peer.steps] == [[], [FIRST_ROW + 1], [FIRST_ROW]]
    assert peer.tickets["call/0"].tokens == continuation([1, 2], 3)
    assert endings(peer) == {"call/0": End.LENGTH, "call/1": End.LENGTH}


def test_log_probabilities_are_sent_only_if_a_row_asks() -> None:
    rig = Rig()
    peer = rig.peer()
    peer.put([new_row(0, [1], 2), new_row(1, [2], 1, sampling=Sampling(logprobs=1))])
    peer.run()
    assert [len(step.logprobs) for step in peer.steps] == [2, 0]
    assert [len(step.alternatives) for step in peer.steps] == [2, 0]


def test_a_chunk_that_draws_nothing_is_reported_too() -> None:
    rig = Rig(max_prefill_tokens=8)
    peer = rig.peer()
    peer.put([new_row(0, list(range(20)), 1)])
    peer.run()
    assert [(step.seq, step.tokens) for step in peer.steps] == [
        (1, []),
        (1, []),
        (1, continuation(list(range(20)), 1)),
    ]


def test_what_does_not_fit_is_refused_and_what_can_never_run_has_failed() -> None:
    rig = Rig(kv_tokens=30)
    peer = rig.peer()
    rows = [new_row(at, [1] * length, 9) for at, length in enumerate([11, 11, 9, 30, 41, 0])]
    rows.append(new_row(6, [VOCABULARY], 9))
    peer.put(rows)
    rig.engine.step()
    ended = {row.row - FIRST_ROW: (row.reason, row.detail) for row in peer.steps[0].ended}
    assert ended[2] == (End.REFUSED, "needs 120 bytes of KV memory, 60 are free")
    assert ended[3] == (End.FAILED, "needs 320 bytes of KV memory, the engine has 300 in all")
    assert [ended[at][0] for at in (4, 5, 6)] == [End.FAILED] * 3
    assert 0 not in ended
    assert 1 not in ended


def test_a_row_number_in_use_is_refused_and_its_owner_goes_on() -> None:
    rows = Rows(Executor.layout, 200, Executor.context_tokens, VOCABULARY, max_prefill_tokens=16)
    rows.accept([new_row(0, [1], 5), new_row(1, [2], 5)])
    (ended,) = rows.take_ended()
    assert ended.ending == Ended(0, End.FAILED, "row number 0 is in use")
    assert [row.new.prompt for row in rows.live] == [[1]]


def test_growth_evicts_the_highest_rank() -> None:
    rig = Rig(kv_tokens=28)
    peer = rig.peer()
    peer.put([new_row(at, [at] * 7, 8, rank=rank) for at, rank in enumerate([1.0, 3.0, 2.0])])
    while not any(step.ended for step in peer.steps):
        rig.engine.step()
    assert [(ended.row, ended.reason) for ended in peer.steps[-1].ended] == [(FIRST_ROW + 1, End.EVICTED)]
    peer.run()
    assert all(ticket.tokens == continuation(ticket.first.prompt, 8) for ticket in peer.tickets.values())


def test_a_row_that_outgrows_the_whole_budget_has_failed() -> None:
    rig = Rig(kv_tokens=12)
    peer = rig.peer()
    peer.put([new_row(0, [1] * 5, 20)])
    peer.run()
    assert endings(peer) == {"call/0": End.FAILED}
    assert peer.tickets["call/0"].tokens == continuation([1] * 5, 8)


@pytest.mark.parametrize(("control", "reason"), [(Cancel, End.CANCELLED), (Evict, End.EVICTED)])
def test_a_row_is_ended_between_steps(control: type[Cancel] | type[Evict], reason: End) -> None:
    rig = Rig()
    peer = rig.peer()
    peer.put([new_row(0, [1], 30), new_row(1, [2], 30)])
    rig.engine.step()
    peer.end(control, [FIRST_ROW, 77])
    rig.engine.step()
    assert [(ended.row, ended.reason) for ended in peer.steps[-1].ended] == [(FIRST_ROW, reason)]
    assert peer.steps[-1].rows == [FIRST_ROW + 1]


def test_less_memory_evicts_the_highest_ranks_at_once_and_more_lets_them_back() -> None:
    rig = Rig(kv_tokens=100)
    peer = rig.peer()
    peer.put([new_row(at, [at] * 9, 12, rank=rank) for at, rank in enumerate([1.0, 4.0, 2.0, 3.0])])
    rig.engine.step()
    rig.executor.kv_budget_bytes = 30 * 10
    rig.engine.step()
    evicted = [(ended.row - FIRST_ROW, ended.reason) for ended in peer.steps[-1].ended]
    assert evicted == [(1, End.EVICTED), (3, End.EVICTED)]
    assert told_bytes(peer) == 300
    rig.executor.kv_budget_bytes = 10
    rig.engine.step()
    assert peer.live == {}
    peer.put_back()
    rig.engine.step()
    assert [ended.reason for ended in peer.steps[-1].ended] == [End.REFUSED] * 4
    rig.executor.kv_budget_bytes = 1000
    peer.run()
    assert all(ticket.tokens == continuation(ticket.first.prompt, 12) for ticket in peer.tickets.values())


def test_a_row_that_outgrows_what_is_left_is_put_back() -> None:
    rig = Rig(kv_tokens=100)
    peer = rig.peer()
    peer.put([new_row(0, [1] * 5, 20)])
    rig.engine.step()
    rig.executor.kv_budget_bytes = 120
    while peer.live:
        rig.engine.step()
    assert [ended.reason for ended in peer.steps[-1].ended] == [End.EVICTED]
    rig.executor.kv_budget_bytes = 1000
    peer.run()
    assert peer.tickets["call/0"].tokens == continuation([1] * 5, 20)


# Sessions.


def test_the_first_event_is_a_snapshot_and_rows_go_on() -> None:
    rig = Rig()
    first = rig.peer()
    first.put([new_row(0, [1], 6)])
    rig.engine.step()
    rig.engine.step()
    second = rig.peer(epoch=2, tickets=first.tickets)
    assert first.last is not None
    assert first.last.epoch == 2  # type: ignore[union-attr]
    assert first.num_finished == 1
    assert second.attached is not None
    assert [row.tokens for row in second.attached.rows] == [continuation([1], 2)]
    second.run()
    assert second.tickets["call/0"].tokens == continuation([1], 6)


@pytest.mark.parametrize("epoch", [1, 2])
def test_only_a_higher_epoch_takes_over(epoch: int) -> None:
    rig = Rig()
    holder = rig.peer(epoch=2)
    late = rig.peer(epoch=epoch)
    assert late.last is not None
    assert (late.last.epoch, late.num_finished, late.attached) == (2, 1, None)  # type: ignore[union-attr]
    assert holder.num_finished == 0
    assert rig.engine.submit(Batch(1, 5, [])) == Ack(5, 2, "epoch 2 holds the engine")


def test_another_contract_version_is_told_which_one_is_spoken() -> None:
    rig = Rig()
    peer = Peer.__new__(Peer)
    peer.num_finished, peer.last, peer.is_gone = 0, None, False
    rig.engine.attach(Attach(9, "later", version=99), peer)
    rig.engine.step()
    assert peer.last == AttachRefused(3, "contract version 99 is not spoken here, use 3")
    assert peer.num_finished == 1
    assert rig.peer(epoch=1).attached is not None


def test_an_earlier_contract_version_is_answered_in_kind() -> None:
    rig = Rig()
    peer = Peer.__new__(Peer)
    peer.num_finished, peer.last, peer.is_gone, peer.attached = 0, None, False, None
    rig.engine.attach(Attach(9, "earlier", version=CONTRACT_VERSION - 1), peer)
    rig.engine.step()
    assert peer.attached is not None
    assert peer.attached.version == CONTRACT_VERSION - 1
    assert rig.engine.submit(Batch(9, 1, [])) == Ack(1, 9)


def test_controls_of_a_superseded_driver_are_dropped() -> None:
    rig = Rig()
    old = rig.peer()
    rig.engine.attach(Attach(2, "new"), Peer(rig.engine, 3))
    old.put([new_row(0, [1], 3)])
    rig.engine.step()
    assert rig.executor.rooms == {}


def test_detach_ends_the_session_and_keeps_the_rows() -> None:
    rig = Rig()
    first = rig.peer()
    first.put([new_row(0, [1], 3)])
    assert rig.engine.submit(Detach(1, 2)) == Ack(2, 1)
    while rig.engine.step():
        pass
    assert (first.num_finished, first.steps) == (1, [])
    second = rig.peer(epoch=2, tickets=first.tickets)
    assert second.attached is not None
    assert [(row.ended, row.tokens) for row in second.attached.rows] == [(End.LENGTH, continuation([1], 3))]
    third = rig.peer(epoch=3, tickets=first.tickets)
    assert third.attached is not None
    assert third.attached.rows == []


def test_a_peer_that_is_gone_loses_the_session_and_no_ending() -> None:
    rig = Rig()
    first = rig.peer()
    first.put([new_row(0, [1], 1)])
    first.is_gone = True
    rig.engine.step()
    assert first.num_finished == 1
    second = rig.peer(epoch=2, tickets=first.tickets)
    assert endings(second) == {"call/0": End.LENGTH}


def test_rows_nobody_comes_for_are_dropped() -> None:
    rig = Rig(max_prefill_tokens=4)
    first = rig.peer()
    first.put([new_row(0, [1], 1), new_row(1, [1] * 30, 5)])
    first.is_gone = True
    rig.engine.step()
    rig.clock.now += ORPHAN_S + 1
    assert rig.engine.step() is False
    second = rig.peer(epoch=2, tickets=first.tickets)
    assert second.attached is not None
    assert second.attached.rows == []


def test_an_idle_engine_gives_signs_of_life() -> None:
    rig = Rig()
    peer = rig.peer()
    assert peer.steps == []
    for _ in range(3):
        rig.clock.now += HEARTBEAT_S
        assert rig.engine.step() is False
        assert rig.engine.step() is False
    assert [(step.rows, step.telemetry.step_s) for step in peer.steps] == [([], 0.0)] * 3


def test_telemetry_counts_bytes_and_rows() -> None:
    rig = Rig(max_prefill_tokens=8)
    peer = rig.peer()
    peer.put([new_row(0, [1] * 7, 9), new_row(1, [1] * 20, 9)])
    rig.engine.step()
    rig.engine.step()
    told = peer.telemetry
    assert told is not None
    assert (told.running, told.waiting) == (1, 1) or (told.running, told.waiting) == (0, 2)
    assert told.pool_used_bytes == (8 + 24) * 10
    assert told.pool_capacity_bytes + told.pool_growable_bytes == 2000
    assert told.process_bytes > 10**6
    assert told.prefill_tokens_per_s > 0


@pytest.mark.parametrize("meter", [Meter(float), SimulatedMeter()], ids=["real", "simulated"])
def test_short_prompts_do_not_hide_how_fast_a_long_one_runs(meter: Meter | SimulatedMeter) -> None:
    """20 ms a chunk and 0.1 ms a token: five short prompts for each of 900 tokens."""
    for tokens in [*[50] * 5, 900] * 20:
        meter.note_prefill(tokens, 0.02 + 1e-4 * tokens, is_shared=False)
    # The short ones run at 2,000 tokens/s, the long one at 8,182; the mean of the chunks' rates is 3,030.
    assert 5000 < meter.prefill.tokens_per_s < 5700


# Failures.


def test_a_step_that_raises_fails_its_rows_and_the_engine_goes_on() -> None:
    rig = Rig()
    peer = rig.peer()
    rig.executor.troubles = [ValueError("odd"), None, ValueError("odd again")]
    peer.put([new_row(0, [1], 3)])
    rig.engine.step()
    assert [(ended.reason, ended.detail) for ended in peer.steps[-1].ended] == [(End.FAILED, "ValueError: odd")]
    peer.put([new_row(1, [1], 3)])
    rig.engine.step()
    rig.engine.step()
    peer.put([new_row(2, [1], 3)])
    peer.run()
    assert endings(peer) == {"call/0": End.FAILED, "call/1": End.FAILED, "call/2": End.LENGTH}


@kinds
def test_rows_without_finite_logits_fail_alone(kind: type[Executor]) -> None:
    rig = Rig(kind=kind)
    peer = rig.peer()
    peer.put([new_row(at, [at], 4) for at in range(3)])
    rig.engine.step()
    rig.executor.broken = {FIRST_ROW + 1}
    peer.run()
    assert endings(peer) == {"call/0": End.LENGTH, "call/1": End.FAILED, "call/2": End.LENGTH}
    assert peer.tickets["call/2"].tokens == continuation([2], 4)
    assert len(peer.tickets["call/1"].tokens) == 1


@kinds
@pytest.mark.parametrize("trouble", [OutOfMemory("full"), NoRoom("full"), lost(MemoryError("full"))])
def test_out_of_memory_costs_a_pause_and_no_row(trouble: Exception, kind: type[Executor]) -> None:
    """However often."""
    rig = Rig(kind=kind)
    peer = rig.peer()
    rig.executor.troubles = [None, *[trouble] * (2 * MAX_FAILURES)]
    peer.put([new_row(at, [at], 5) for at in range(9)])
    peer.run()
    assert set(endings(peer).values()) == {End.LENGTH}
    assert all(ticket.tokens == continuation(ticket.first.prompt, 5) for ticket in peer.tickets.values())


@kinds
@pytest.mark.parametrize("trouble", [NoRoom("full"), lost(MemoryError("full"))])
def test_an_idle_engine_outlives_a_pool_that_there_is_no_memory_to_resize(
    trouble: Exception, kind: type[Executor]
) -> None:
    """However often."""
    rig = Rig(kind=kind)
    peer = rig.peer()
    rig.executor.idle_troubles = [trouble] * (2 * MAX_FAILURES)
    for _ in range(2 * MAX_FAILURES):
        assert rig.engine.step() is False
    assert rig.executor.idle_troubles == []
    peer.put([new_row(0, [1], 3)])
    peer.run()
    assert endings(peer) == {"call/0": End.LENGTH}


# A device that runs by itself.


def test_a_step_is_started_before_the_last_one_is_read() -> None:
    rig = Rig(kind=AheadExecutor)
    assert isinstance(rig.executor, AheadExecutor)
    peer = rig.peer()
    peer.put([new_row(0, [1], 3), new_row(1, [2], 2)])
    seen = []
    while rig.engine.step():
        seen.append(([later.num_reads for later in rig.executor.started], len(peer.steps)))
    # The last turn only reads: what was in flight ends both rows.
    assert seen == [([0], 0), ([1, 0], 1), ([1, 1, 0], 2), ([1, 1, 1], 3)]
    assert endings(peer) == {"call/0": End.LENGTH, "call/1": End.LENGTH}
    assert peer.tickets["call/0"].tokens == continuation([1], 3)


def test_a_prompt_waits_while_the_first_tokens_of_all_running_rows_are_in_flight() -> None:
    """And they have a target, so that it is asked how long it may be."""
    rig = Rig(kind=AheadExecutor)
    peer = rig.peer()
    peer.put([new_row(0, [1] * 10, 2)])
    peer.run()
    peer.put([new_row(at, [at] * 10, 3, tpot_s=0.1) for at in (1, 2)])
    peer.run()
    assert peer.tickets["call/2"].tokens == continuation([2] * 10, 3)


def test_the_token_of_a_surplus_step_is_dropped_and_its_room_given_back() -> None:
    rig = Rig(kind=AheadExecutor)
    assert isinstance(rig.executor, AheadExecutor)
    peer = rig.peer()
    stop_id = continuation([1], 3)[2]
    peer.put([new_row(0, [1], 30, stop_ids=[stop_id])])
    peer.run()
    assert peer.tickets["call/0"].tokens == continuation([1], 3)
    assert endings(peer) == {"call/0": End.STOP}
    assert len(rig.executor.started) == 4
    assert rig.executor.rooms == {}


def test_a_row_cancelled_in_flight_gets_no_further_token() -> None:
    rig = Rig(kind=AheadExecutor)
    peer = rig.peer()
    peer.put([new_row(0, [1], 30), new_row(1, [2], 4)])
    rig.engine.step()
    rig.engine.step()
    peer.end(Cancel, [FIRST_ROW])
    peer.run()
    assert len(peer.tickets["call/0"].tokens) == 1
    assert peer.tickets["call/1"].tokens == continuation([2], 4)


def test_a_step_that_breaks_on_the_way_fails_its_rows_and_the_engine_goes_on() -> None:
    rig = Rig(kind=AheadExecutor)
    assert isinstance(rig.executor, AheadExecutor)
    peer = rig.peer()
    rig.executor.late_troubles = [None, ValueError("odd")]
    peer.put([new_row(0, [1], 5)])
    peer.run()
    peer.put([new_row(1, [1], 5)])
    peer.run()
    assert endings(peer) == {"call/0": End.FAILED, "call/1": End.LENGTH}
    assert rig.executor.rooms == {}


# The thread.


class Waiter(Peer):
    """Tells when its first step, or its final flag, has come."""

    def __init__(self, engine: Engine, epoch: int = 1) -> None:
        self.heard = threading.Event()
        super().__init__(engine, epoch)

    def send(self, event: object) -> None:
        super().send(event)  # type: ignore[arg-type]
        self.heard.set()

    def finish(self) -> None:
        super().finish()
        self.heard.set()

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            assert self.heard.wait(5)
            self.heard.clear()


def test_the_thread_serves_and_stops_with_a_final_flag() -> None:
    rig = Rig()
    rig.engine.start()
    peer = Waiter(rig.engine)
    peer.wait_until(lambda: peer.attached is not None)
    peer.put([new_row(0, [1], 5)])
    peer.wait_until(lambda: peer.tickets["call/0"].ending is not None)
    assert rig.engine.is_alive()
    rig.engine.stop(5)
    assert not rig.engine.is_alive()
    assert peer.num_finished == 1
    assert rig.engine.submit(Batch(1, 9, [])) == Ack(9, 1, "the engine is down")
    late = Waiter(rig.engine, epoch=2)
    assert (late.num_finished, late.attached) == (1, None)


def test_a_thread_that_fails_again_and_again_says_so() -> None:
    rig = Rig()
    rig.executor.troubles = [ValueError("broken")] * MAX_FAILURES
    peer = Waiter(rig.engine)
    rig.engine.step()
    rig.engine.start()
    for at in range(MAX_FAILURES):
        peer.put([new_row(at, [1], 5)])
        peer.wait_until(lambda at=at: len(endings(peer)) > at or peer.num_finished == 1)  # type: ignore[misc]
    peer.wait_until(lambda: peer.num_finished == 1)
    rig.engine.stop(5)
    assert not rig.engine.is_alive()


without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch is to say that there is no device")


@without_cuda
def test_a_model_is_loaded_by_a_thread_that_is_on_its_device() -> None:
    """It is put there before the model is looked for."""
    with pytest.raises((AttributeError, RuntimeError)):
        load_runner(EngineConfig(model="none", name="fake", device="cuda:1"))


@without_cuda
def test_the_thread_is_on_its_models_device() -> None:
    class Elsewhere(Executor):
        device = "cuda:1"

    rig = Rig(kind=Elsewhere)
    rig.engine.start()
    rig.engine._thread.join(5)
    assert not rig.engine.is_alive()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_where_no_device_is_named_a_thread_stays_where_it_is(device: str) -> None:
    make_current(device)


# Any interleaving.

TARGETS = 0.0, 0.1, 5e-6
"""For the time per token: none, one that is always met, and one that hardly ever is."""


@kinds
@pytest.mark.parametrize("seed", range(25))
def test_no_interleaving_loses_doubles_or_changes_a_token(seed: int, kind: type[Executor]) -> None:
    """Batches, cancels, evictions, takeovers, vanished peers and memory trouble in random order; the peer
    checks the contract event by event, the executor the memory, and at the end the ledger is empty."""
    rng = random.Random(seed)
    rig = Rig(rng.choice([45, 90, 300]), rng.choice([1, 8, 64]), kind)
    peer = rig.peer()
    num_tickets = 0
    for _ in range(120):
        action = rng.random()
        if action < 0.15:
            prompts = [
                [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))] for _ in range(rng.randint(1, 5))
            ]
            target = {"tpot_s": TARGETS[seed % len(TARGETS)]}
            rows = [
                new_row(num_tickets + at, prompt, rng.randint(1, 15), **target)
                for at, prompt in enumerate(prompts)
            ]
            peer.put(rows)
            num_tickets += len(rows)
        elif action < 0.25 and peer.live:
            peer.end(Cancel if rng.random() < 0.5 else Evict, rng.sample(sorted(peer.live), k=1))
        elif action < 0.30:
            peer.is_gone = rng.random() < 0.5
            for _ in range(rng.randint(0, 5)):
                rig.engine.step()
            peer = rig.peer(peer.epoch + 1, tickets=peer.tickets)
        elif action < 0.36:
            rig.executor.troubles += [rng.choice([OutOfMemory("full"), NoRoom("full"), lost(None)]), None]
        elif action < 0.40:
            rig.executor.kv_budget_bytes = rng.randint(10, 300) * Executor.layout.bytes_per_token
        elif action < 0.5:
            peer.put_back()
        rig.engine.step()
    rig.executor.troubles = []
    rig.executor.kv_budget_bytes = 300 * Executor.layout.bytes_per_token
    peer.run()
    for ticket in peer.tickets.values():
        assert ticket.ending is not None
        assert ticket.ending.reason in (End.LENGTH, End.CANCELLED)
        expected = continuation(ticket.first.prompt, len(ticket.tokens))
        assert ticket.tokens == expected
        if ticket.ending.reason is End.LENGTH:
            assert len(ticket.tokens) == ticket.first.max_tokens
    assert rig.engine.step() is False
    assert rig.executor.rooms == {}
