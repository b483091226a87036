"""The planner alone: chunks, turns and order.  No model, no memory."""

from collections import deque
from math import inf

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_backend.contract import NewRow
from triton_backend.plan import Decode, Idle, Prefill, State, plan_step, spare_tokens
from triton_backend.sequence import Sequence


def rows(*lengths: int, max_tokens: int = 3) -> list[Sequence]:
    return [Sequence(NewRow(at, "t", 0, "o", [0] * length, 0, max_tokens)) for at, length in enumerate(lengths)]


def advance(state: State, plan: Prefill | Decode) -> None:
    """What the engine does after a step."""
    state.num_decodes = 0 if isinstance(plan, Prefill) else state.num_decodes + 1
    drawing = plan.rows
    if isinstance(plan, Prefill):
        for row in plan.rows:
            row.prefill(plan.length)
        drawing = [row for row in plan.rows if row.prefilled_tokens == row.prompt_tokens]
    for row in drawing:
        row.draw(0, context_tokens=1000)
    state.settle()


def play(state: State) -> list[Prefill | Decode]:
    plans = []
    while not isinstance(plan := plan_step(state), Idle):
        plans.append(plan)
        advance(state, plan)
    return plans


def test_nothing_to_run_is_idle() -> None:
    assert plan_step(State(10)) == Idle()


def test_a_batch_that_fits_is_one_chunk() -> None:
    batch = rows(4, 5)
    assert plan_step(State(10, deque([batch]))) == Prefill(batch, start=0, length=5)


def test_chunks_are_even() -> None:
    plans = play(State(10, deque([rows(21, max_tokens=1)])))
    assert [(plan.start, plan.length) for plan in plans if isinstance(plan, Prefill)] == [
        (0, 7),
        (7, 7),
        (14, 7),
    ]


def test_a_short_row_leaves_the_chunks_when_its_prompt_ends() -> None:
    short, long = rows(2, 12, max_tokens=1)
    first, second = play(State(10, deque([[short, long]])))
    assert first == Prefill([short, long], 0, 4)
    assert second == Prefill([long], 4, 8)


def test_chunks_and_decode_steps_take_turns() -> None:
    running, batch = rows(1, max_tokens=6), rows(30)
    state = State(10, deque([running]))
    advance(state, plan_step(state))  # type: ignore[arg-type]
    state.batches.append(batch)
    kinds = [type(plan).__name__[0] for plan in play(state)]
    assert "".join(kinds) == "DPDPDPDD"


def test_batches_are_prefilled_in_order_of_arrival() -> None:
    first, second = rows(15, max_tokens=1), rows(5, max_tokens=1)
    plans = play(State(10, deque([first, second])))
    assert [plan.rows for plan in plans] == [first, first, second]


def test_more_rows_than_tokens_go_in_parts() -> None:
    batch = rows(*[1] * 5, max_tokens=1)
    plans = play(State(2, deque([batch])))
    assert [plan.rows for plan in plans] == [batch[:2], batch[2:4], batch[4:]]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(st.lists(lengths, max_size=4), st.integers(1, 30))
def test_every_prompt_is_run_once_within_the_bound(batches: list[list[int]], max_tokens: int) -> None:
    state = State(max_tokens, deque(rows(*batch) for batch in batches))
    all_rows = [row for batch in state.batches for row in batch]
    seen = {id(row): 0 for row in all_rows}
    while not isinstance(plan := plan_step(state), Idle):
        if isinstance(plan, Prefill):
            assert plan.padded_tokens <= max_tokens
            for row in plan.rows:
                assert seen[id(row)] == plan.start < row.prompt_tokens
                seen[id(row)] = min(plan.start + plan.length, row.prompt_tokens)
        advance(state, plan)
    assert [seen[id(row)] for row in all_rows] == [row.prompt_tokens for row in all_rows]
    assert all(row.ending for row in all_rows)


def test_the_batch_of_the_lowest_rank_goes_first_and_passes_a_long_one_between_chunks() -> None:
    long, short = rows(30, max_tokens=1), rows(4, max_tokens=1)
    for batch, rank in ((long, 9.0), (short, 5.0)):
        for at, row in enumerate(batch):
            row.new = msgspec.structs.replace(row.new, rank=rank + at)
    state = State(10, deque([long]))
    advance(state, plan_step(state))  # type: ignore[arg-type]
    state.batches.append(short)
    plans = [plan for plan in play(state) if isinstance(plan, Prefill)]
    assert [plan.rows for plan in plans] == [short, long, long]


# Credit


def running(due_s: float, tpot_s: float = 0.1, at: int = 0) -> Sequence:
    """A row with a token, whose next one is due."""
    row = Sequence(NewRow(at, "t", 0, "o", [0], 0, 100, tpot_s=tpot_s))
    row.prefill(1)
    row.draw(0, 1000)
    row.due_s = due_s
    return row


def test_tokens_are_due_at_the_mean_pace_from_the_first_on() -> None:
    """0.095 s apart; never more than twice that after the one before, and not before it."""
    row = running(due_s=inf)
    due = []
    for now_s in (5.0, 5.01, 5.02, 9.0):
        row.pace(now_s)
        due.append(row.due_s)
    assert due == [pytest.approx(s) for s in (5.095, 5.19, 5.21, 9.0)]
    row.pace(9.05, tokens=9)
    assert row.due_s == pytest.approx(9.05 + 0.19)


def test_credit_is_the_time_until_the_first_row_needs_its_token() -> None:
    rows = [running(10.3), running(10.5, at=1)]
    # 10.3 less 50 ms of decoding and the time it is, at 1,000 tokens a second.
    assert spare_tokens(rows, 10.0, 0.05, 1000.0) == 250
    assert spare_tokens(rows, 10.4, 0.05, 1000.0) == 0
    assert spare_tokens([running(10.3, tpot_s=0.0)], 10.0, 0.05, 1000.0) is None
    assert spare_tokens(rows, 10.0, 0.05, 0.0) is None
    assert spare_tokens([], 10.0, 0.05, 1000.0) is None


@pytest.mark.parametrize(
    ("spare", "num_decodes", "tokens"),
    [(2000, 1, 1000), (600, 0, 500), (511, 1, 0), (0, 7, 0), (0, 8, 125), (None, 1, 1000), (None, 0, 0)],
    ids=["plenty", "after a chunk", "saved up", "none", "none for long", "no target", "no target, its turn"],
)
def test_a_chunk_takes_the_credit_there_is(spare: int | None, num_decodes: int, tokens: int) -> None:
    state = State(1000, deque([rows(1000)]), [running(1.0)], num_decodes, spare)
    plan = plan_step(state)
    assert (plan.length if isinstance(plan, Prefill) else 0) == tokens


def test_a_short_prompt_needs_no_more_credit_than_it_is_long() -> None:
    state = State(1000, deque([rows(80)]), [running(1.0)], 1, 80)
    assert plan_step(state) == Prefill(state.batches[0], 0, 80)
    state.spare_tokens = 79
    assert plan_step(state) == Decode(state.running)
