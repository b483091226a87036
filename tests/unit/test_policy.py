"""The pure decisions, against brute force where there is a truth to compare with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import admission, batch, bucket, priority
from gateway.request import Head, Profile, ServiceClass, Ticket
from triton_backend.memory import FuturePeak, Grouped, KVLayout, Paged, Row

PAGED = Paged(16, 10)
GROUPED = Grouped((64, 96, 128, 192, 256, 384, 512), 10)
LAYOUTS = pytest.mark.parametrize("layout", [PAGED, GROUPED], ids=["paged", "grouped"])


def ticket(prompt_tokens: int = 10, max_tokens: int = 10, number: int = 0) -> Ticket:
    return Ticket(
        id=f"c/{number}",
        origin="g",
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        profile=Profile(max_tokens, max_tokens),
        bin=bucket.bin_of(prompt_tokens),
        slack_s=1.0,
        cost_s=0.0,
        seconds=0.0,
        size_bytes=0,
    )


# Bins and buckets


def test_bins_are_exact_below_16_and_8_to_the_octave_above() -> None:
    assert [bucket.bin_of(tokens) for tokens in range(16)] == list(range(16))
    for octave in range(4, 17):
        bins = {bucket.bin_of(tokens) for tokens in range(1 << octave, 2 << octave)}
        assert len(bins) == 8


@given(st.integers(0, 1 << 20))
def test_a_bin_begins_at_its_first_length(tokens: int) -> None:
    bin = bucket.bin_of(tokens)
    assert bucket.first_tokens(bin) <= tokens < bucket.first_tokens(bin + 1)
    assert bucket.bin_of(bucket.first_tokens(bin)) == bin


def histogram(lengths: list[int]) -> dict[int, int]:
    queued: dict[int, int] = {}
    for tokens in lengths:
        queued[bucket.bin_of(tokens)] = queued.get(bucket.bin_of(tokens), 0) + 1
    return queued


def test_few_waiting_merge_into_one_bucket() -> None:
    assert bucket.paper((0, 20, 40), histogram([5, 300]), max_batch=3, longest_tokens=4096) == (0,)


def test_a_crowded_bucket_of_mostly_short_prompts_splits_at_its_middle() -> None:
    bounds = bucket.paper((0,), histogram([100] * 30 + [3000] * 10), max_batch=16, longest_tokens=4096)
    assert [bucket.first_tokens(bin) for bin in bounds] == [0, 2048]


def test_a_bucket_of_mostly_long_prompts_does_not_split_as_published() -> None:
    assert bucket.paper((0,), histogram([3000] * 40), max_batch=16, longest_tokens=4096) == (0,)


def test_one_level_of_splits_per_call_as_published() -> None:
    queued = histogram([70] * 400)
    bounds: tuple[int, ...] = (0,)
    counts = []
    for _ in range(6):
        bounds = bucket.paper(bounds, queued, max_batch=32, longest_tokens=4096)
        counts.append(len(bounds))
    assert counts == [2, 3, 4, 5, 6, 6]


@given(
    st.lists(st.integers(1, 5000), max_size=200),
    st.integers(1, 50),
    st.integers(0, 8),
)
def test_bounds_stay_a_table_of_buckets(lengths: list[int], max_batch: int, calls: int) -> None:
    bounds: tuple[int, ...] = (0,)
    for _ in range(calls):
        bounds = bucket.paper(bounds, histogram(lengths), max_batch, 5000)
        assert bounds[0] == 0
        assert list(bounds) == sorted(set(bounds))
        assert bounds[-1] <= bucket.bin_of(5000)


def test_the_bucket_with_the_earliest_head_goes_next() -> None:
    heads = [
        Head(3, ServiceClass.DEFAULT, "a", 5.0, 1),
        Head(12, ServiceClass.DEFAULT, "b", 4.0, 1),
        Head(13, ServiceClass.DEFAULT, "c", 9.0, 1),
    ]
    assert [head.ticket for head in bucket.next_bucket((0, 10), heads)] == ["b", "c"]


# Priorities


def test_classes_get_their_shares_of_the_tokens() -> None:
    shares = {ServiceClass.PRIORITY: 0.6, ServiceClass.DEFAULT: 0.3, ServiceClass.FLEX: 0.1}
    served: dict[ServiceClass, float] = {}
    claimed = dict.fromkeys(ServiceClass, 0)
    for _ in range(1000):
        turn = priority.next_class(list(ServiceClass), served)
        claimed[turn] += 100
        served = priority.charge(served, list(ServiceClass), turn, 100, shares)
    total = sum(claimed.values())
    assert {name: round(tokens / total, 2) for name, tokens in claimed.items()} == shares


def test_an_idle_class_saves_up_no_turns() -> None:
    shares = dict.fromkeys(ServiceClass, 1.0)
    served: dict[ServiceClass, float] = {}
    for _ in range(100):
        served = priority.charge(served, [ServiceClass.FLEX], ServiceClass.FLEX, 100, shares)
    turns = []
    for _ in range(10):
        turn = priority.next_class([ServiceClass.DEFAULT, ServiceClass.FLEX], served)
        turns.append(turn)
        served = priority.charge(served, [ServiceClass.DEFAULT, ServiceClass.FLEX], turn, 100, shares)
    assert turns.count(ServiceClass.FLEX) in (4, 5)


# Batch


def brute_force_peak(layout: KVLayout, rows: list[Row]) -> int:
    """Walk into the future step by step."""
    most = 0
    for step in range(max((row.left_tokens for row in rows), default=-1) + 1):
        alive = [row.held_tokens + step for row in rows if row.left_tokens >= step]
        most = max(most, sum(layout.room_tokens(tokens) for tokens in alive) * layout.bytes_per_token)
    return most


ROWS = st.builds(Row, st.integers(1, 300), st.integers(0, 300))


@LAYOUTS
@given(rows=st.lists(ROWS, max_size=6), lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200))))
def test_fit_takes_the_longest_prefix_whose_future_peak_fits(
    layout: KVLayout, rows: list[Row], lengths: list[tuple[int, int]]
) -> None:
    tickets = [ticket(prompt, left, number) for number, (prompt, left) in enumerate(lengths)]
    budget_bytes = 12_000
    chosen = batch.fit(tickets, rows, layout, budget_bytes, 8, 10**9)
    assert chosen == tickets[: len(chosen)]
    taken = rows + [batch.row_of(ticket) for ticket in chosen]
    is_lone_head = not rows and len(chosen) == 1
    assert brute_force_peak(layout, taken) <= budget_bytes or is_lone_head or not chosen
    if len(chosen) < min(len(tickets), 8):
        more = [*taken, batch.row_of(tickets[len(chosen)])]
        assert brute_force_peak(layout, more) > budget_bytes


@LAYOUTS
@given(rows=st.lists(ROWS, max_size=8), row=ROWS)
def test_the_future_peak_is_exact(layout: KVLayout, rows: list[Row], row: Row) -> None:
    peak = FuturePeak(layout, rows)
    assert peak.bytes == brute_force_peak(layout, rows)
    assert peak.bytes_with(row) == brute_force_peak(layout, [*rows, row])
    peak.add(row)
    assert peak.bytes == brute_force_peak(layout, [*rows, row])


def test_padding_counts_towards_the_prefill_bound() -> None:
    tickets = [ticket(prompt, 1) for prompt in (10, 30, 10)]
    assert len(batch.fit(tickets, [], PAGED, 10**9, 8, max_prefill_tokens=60)) == 2
    assert len(batch.fit(tickets, [], PAGED, 10**9, 8, max_prefill_tokens=90)) == 3
    assert len(batch.fit(tickets, [], PAGED, 10**9, 8, max_prefill_tokens=5)) == 1


@LAYOUTS
@given(budget_bytes=st.integers(0, 20_000))
def test_the_longest_row_just_fits(layout: KVLayout, budget_bytes: int) -> None:
    tokens = batch.longest_row_tokens(layout, budget_bytes)
    assert layout.room_tokens(tokens) * layout.bytes_per_token <= budget_bytes
    assert layout.room_tokens(tokens + 1) * layout.bytes_per_token > budget_bytes


# Admission


def test_without_a_limit_the_answer_may_fill_the_context() -> None:
    assert admission.answer_tokens(10, None, 100) == 90
    assert admission.answer_tokens(10, 90, 100) == 90
    assert admission.answer_tokens(10, 91, 100) == admission.TooLong(100, 101)
    assert admission.answer_tokens(100, None, 100) == admission.TooLong(100, 101)


@given(st.integers(0, 10**9), st.floats(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_refused_clients_return_within_two_minutes(tokens: int, rate: float, jitter: float) -> None:
    assert 1.0 <= admission.retry_after_s(tokens, rate, jitter) <= 120.0
