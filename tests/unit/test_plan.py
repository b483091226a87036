"""The planner alone: chunks, turns and order.  No model, no memory."""

from collections import deque
from math import inf

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_backend.contract import NewRow
from triton_backend.plan import Plan, Prefill, Spare, State, plan_step, spare
from triton_backend.prefill_pace import PrefillPace
from triton_backend.sequence import Sequence


def rows(*lengths: int, max_tokens: int = 3) -> list[Sequence]:
    return [Sequence(NewRow(at, "t", 0, "o", [0] * length, 0, max_tokens)) for at, length in enumerate(lengths)]


def advance(state: State, plan: Plan) -> None:
    """What the engine does after a step."""
    state.num_decodes = 0 if plan.prefill else state.num_decodes + 1
    drawing = list(plan.decode)
    if plan.prefill:
        drawing += plan.prefill.finishing
        for row in plan.prefill.rows:
            row.prefill(plan.prefill.length)
    for row in drawing:
        row.draw(0, context_tokens=1000)
    state.settle()


def play(state: State) -> list[Plan]:
    plans = []
    while not (plan := plan_step(state)).is_idle:
        plans.append(plan)
        advance(state, plan)
    return plans


def play_chunks(state: State) -> list[Prefill]:
    return [plan.prefill for plan in play(state) if plan.prefill]


def test_nothing_to_run_is_idle() -> None:
    assert plan_step(State(10)).is_idle


def test_prompts_of_like_length_are_one_chunk() -> None:
    batch = rows(4, 5)
    assert plan_step(State(10, deque([batch]))) == Plan(Prefill(batch, start=0, length=5))


def test_chunks_are_even() -> None:
    chunks = play_chunks(State(10, deque([rows(21, max_tokens=1)])))
    assert [(chunk.start, chunk.length) for chunk in chunks] == [(0, 7), (7, 7), (14, 7)]


def test_a_short_prompt_does_not_pay_for_a_long_one() -> None:
    short, long = rows(30, 80, max_tokens=1)
    assert play_chunks(State(200, deque([[long, short]]), pads=True)) == [
        Prefill([long], 0, 80, True),
        Prefill([short], 0, 30, True),
    ]
    short, long = rows(10, 64, max_tokens=1)
    assert play_chunks(State(200, deque([[long, short]]), pads=True)) == [Prefill([long, short], 0, 64, True)], (
        "a small chunk is no dearer"
    )


def test_prompts_of_like_length_run_together_whichever_batch_they_came_in() -> None:
    first, second = rows(90, 30, 80, max_tokens=1), rows(100, 90, max_tokens=1)
    chunks = play_chunks(State(400, deque([first, second]), pads=True))
    assert chunks == [Prefill([first[0], first[2], *second], 0, 100, True), Prefill([first[1]], 0, 30, True)]


def test_prompts_join_only_where_their_padding_stays_small() -> None:
    """Of 3 x 100 tokens 60 may be padding."""
    first, second, third = rows(100, 80, 60, max_tokens=1)
    assert play_chunks(State(400, deque([[first, second, third]]), pads=True)) == [
        Prefill([first, second, third], 0, 100, True)
    ]
    first, second, third = rows(100, 80, 59, max_tokens=1)
    assert play_chunks(State(400, deque([[first, second, third]]), pads=True))[0] == Prefill(
        [first, second], 0, 100, True
    )


def test_a_chunk_and_the_running_rows_share_a_step() -> None:
    running, batch = rows(1, max_tokens=6), rows(30)
    state = State(10, deque([running]))
    advance(state, plan_step(state))
    state.batches.append(batch)
    plans = play(state)
    assert [plan.prefill is not None for plan in plans] == [True, True, True, False, False]
    assert [plan.decode for plan in plans] == [running, running, running, running + batch, running + batch]
    assert plans[0].rows == batch + running


def test_prompts_are_run_in_order_of_arrival() -> None:
    first, second = rows(15, max_tokens=1), rows(5, max_tokens=1)
    chunks = play_chunks(State(10, deque([first, second])))
    assert [chunk.rows for chunk in chunks] == [first, first, second]


def test_where_nothing_is_padded_prompts_of_any_lengths_run_together() -> None:
    first, second = rows(30, 200, max_tokens=1), rows(90, 5, max_tokens=1)
    one, other = play_chunks(State(300, deque([first, second])))
    assert (one.rows, one.tokens, one.squares) == ([first[0], first[1], second[1]], 235, 30**2 + 200**2 + 5**2)
    assert (other.rows, other.tokens) == ([second[0]], 90)


@pytest.mark.parametrize(("pads", "tokens", "squares"), [(False, 12, 344), (True, 20, 600)])
def test_a_later_chunk_costs_what_it_adds(pads: bool, tokens: int, squares: int) -> None:
    """Tokens 10 to 20 of one prompt, and the last two of another."""
    chunk = Prefill(rows(30, 12), 10, 10, pads)
    assert (chunk.tokens, chunk.squares) == (tokens, squares)


def test_more_rows_than_tokens_go_in_parts() -> None:
    batch = rows(*[1] * 5, max_tokens=1)
    chunks = play_chunks(State(2, deque([batch])))
    assert [chunk.rows for chunk in chunks] == [batch[:2], batch[2:4], batch[4:]]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(st.lists(lengths, max_size=4), st.integers(1, 30))
def test_every_prompt_is_run_once_within_the_bound(batches: list[list[int]], max_tokens: int) -> None:
    state = State(max_tokens, deque(rows(*batch) for batch in batches))
    all_rows = [row for batch in state.batches for row in batch]
    seen = {id(row): 0 for row in all_rows}
    while not (plan := plan_step(state)).is_idle:
        if chunk := plan.prefill:
            assert chunk.tokens <= max_tokens
            for row in chunk.rows:
                assert seen[id(row)] == chunk.start < row.prompt_tokens
                seen[id(row)] = min(chunk.start + chunk.length, row.prompt_tokens)
        advance(state, plan)
    assert [seen[id(row)] for row in all_rows] == [row.prompt_tokens for row in all_rows]
    assert all(row.ending for row in all_rows)


def test_the_prompt_of_the_lowest_rank_goes_first_and_passes_a_long_one_between_chunks() -> None:
    long, short = rows(30, max_tokens=1), rows(4, max_tokens=1)
    for batch, rank in ((long, 9.0), (short, 5.0)):
        for at, row in enumerate(batch):
            row.new = msgspec.structs.replace(row.new, rank=rank + at)
    state = State(10, deque([long]))
    advance(state, plan_step(state))
    state.batches.append(short)
    assert [chunk.rows for chunk in play_chunks(state)] == [short, long, long]


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
    pace = PrefillPace()
    assert spare(rows, 10.0, 0.05, pace) is None
    pace.note(1000, 1.0)
    # At most there would be 190 ms.
    assert spare(rows, 10.0, 0.05, pace) == Spare(250, 140)
    assert spare(rows, 10.4, 0.05, pace) == Spare(0, 140)
    # A row with time to spare gives its neighbour none.
    assert spare([rows[0], running(20.0, tpot_s=9.0, at=1)], 10.0, 0.05, pace) == Spare(250, 140)
    assert spare([running(10.3, tpot_s=0.0)], 10.0, 0.05, pace) is None
    assert spare([], 10.0, 0.05, pace) is None


def test_a_row_whose_first_token_is_in_flight_leaves_time_for_its_second() -> None:
    """95 ms after the first, which comes now at the earliest."""
    pace = PrefillPace()
    pace.note(1000, 1.0)
    first = running(due_s=inf)
    assert spare([first], 10.0, 0.0495, pace) == Spare(45, 140)
    assert spare([first, running(10.08, at=1)], 10.0, 0.0495, pace) == Spare(30, 140)


def test_a_chunk_has_a_fixed_cost_once_chunks_of_several_sizes_have_told() -> None:
    """20 ms and 0.1 ms a token: ten prompts of 50 tokens take 70 ms together, not 250."""
    pace = PrefillPace()
    assert pace.tokens_within(1.0) is None
    for _ in range(3):
        pace.note(50, 0.025)
    assert pace.tokens_within(0.07) == 140, "all of one size: each token costs its part"
    for tokens in (100, 400, 50, 200):
        pace.note(tokens, 0.02 + tokens * 1e-4)
    assert pace.tokens_within(0.07) == pytest.approx(500, abs=1)
    assert pace.tokens_within(0.01) == 0
    assert 50 / 0.025 < pace.tokens_per_s < 400 / 0.06


def test_of_a_shared_step_a_chunk_took_what_it_added() -> None:
    pace = PrefillPace()
    pace.note(100, 0.08, decode_s=0.03)
    assert pace.tokens_per_s == pytest.approx(100 / 0.05)
    pace = PrefillPace()
    pace.note(100, 0.05, decode_s=0.08)
    assert pace.tokens_per_s == pytest.approx(100 / 0.025), "what is known of the rest may be old"


def test_chunks_whose_times_are_noise_grant_no_chunk_of_any_size() -> None:
    pace = PrefillPace()
    for tokens, seconds in ((100, 0.05), (200, 0.03), (300, 0.02)):
        pace.note(tokens, seconds)
    assert 0 < (pace.tokens_within(1.0) or 0) <= 10 * pace.tokens_per_s
    pace = PrefillPace()
    for tokens, seconds in ((100, 0.05), (105, 0.03)):
        pace.note(tokens, seconds)
    assert pace.tokens_within(1.0) == pytest.approx(pace.tokens_per_s, abs=1), "too much alike to tell"


def test_where_long_chunks_are_dearer_by_the_token_no_time_is_still_no_chunk() -> None:
    pace = PrefillPace()
    for tokens in (100, 400, 200):
        pace.note(tokens, 1e-6 * tokens**2)
    assert pace.tokens_within(0.0) == 0
    assert pace.tokens_within(1.0) == pytest.approx(pace.tokens_per_s, abs=1)


@pytest.mark.parametrize(
    ("spare", "num_decodes", "tokens"),
    [
        (Spare(2000, 2000), 1, 1000),
        (Spare(600, 2000), 0, 500),
        (Spare(511, 2000), 1, 0),
        (Spare(250, 500), 1, 250),
        (Spare(249, 500), 1, 0),
        (Spare(0, 2000), 7, 0),
        (Spare(0, 2000), 8, 125),
        (Spare(0, 0), 1, 0),
        (None, 0, 1000),
    ],
    ids=[
        *("plenty", "after a chunk", "saved up", "half of the most", "less than half of it"),
        *("none", "none for long", "never any", "no target"),
    ],
)
def test_a_chunk_takes_the_credit_there_is(spare: Spare | None, num_decodes: int, tokens: int) -> None:
    state = State(1000, deque([rows(1000)]), [running(1.0)], num_decodes, spare)
    plan = plan_step(state)
    assert (plan.prefill.length if plan.prefill else 0) == tokens
    assert plan.decode == state.running


def test_a_short_prompt_needs_no_more_credit_than_it_is_long() -> None:
    state = State(1000, deque([rows(80)]), [running(1.0)], 1, Spare(80, 2000))
    assert plan_step(state) == Plan(Prefill(state.batches[0], 0, 80), state.running)
    state.batches.append(rows(70, 75))
    state.spare = Spare(160, 2000)
    two = [state.batches[0][0], state.batches[1][0]]
    assert plan_step(state) == Plan(Prefill(two, 0, 80), state.running), "as far as it reaches"
    state.spare = Spare(79, 2000)
    assert plan_step(state) == Plan(None, state.running)
