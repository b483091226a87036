"""The planner alone: chunks, turns and order.  No model, no memory."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from triton_backend.contract import NewRow
from triton_backend.plan import Decode, Idle, Prefill, State, plan_step
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
