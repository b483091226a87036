"""The pure decisions, against brute force where there is a truth to compare with."""

from math import inf
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import batch, bucket, priority
from gateway.policy.batch import Room, ToTheEnd
from gateway.policy.caution import Caution
from gateway.policy.pace import Pace
from gateway.request import Head, Profile, ServiceClass, Ticket
from triton_backend.memory import Grouped, KVLayout, Paged, Row

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


def paper(bounds: bucket.Bounds, lengths: list[int], max_batch: int, longest_tokens: int = 4096) -> bucket.Bounds:
    queued = histogram(lengths)
    return bucket.Paper().bounds(bucket.Traffic(bounds, queued, queued, max_batch, longest_tokens, 0.0))


def test_few_waiting_merge_into_one_bucket() -> None:
    assert paper((0, 20, 40), [5, 300], max_batch=3) == (0,)


def test_a_crowded_bucket_of_mostly_short_prompts_splits_at_its_middle() -> None:
    bounds = paper((0,), [100] * 30 + [3000] * 10, max_batch=16)
    assert [bucket.first_tokens(bin) for bin in bounds] == [0, 2048]


def test_a_bucket_of_mostly_long_prompts_does_not_split_as_published() -> None:
    assert paper((0,), [3000] * 40, max_batch=16) == (0,)


def test_one_level_of_splits_per_call_as_published() -> None:
    bounds: tuple[int, ...] = (0,)
    counts = []
    for _ in range(6):
        bounds = paper(bounds, [70] * 400, max_batch=32)
        counts.append(len(bounds))
    assert counts == [2, 3, 4, 5, 6, 6]


@given(st.lists(st.integers(1, 5000), max_size=200), st.integers(1, 50), st.integers(0, 8))
def test_bounds_stay_a_table_of_buckets(lengths: list[int], max_batch: int, calls: int) -> None:
    bounds: tuple[int, ...] = (0,)
    for _ in range(calls):
        bounds = paper(bounds, lengths, max_batch, 5000)
        assert bounds[0] == 0
        assert list(bounds) == sorted(set(bounds))
        assert bounds[-1] <= bucket.bin_of(5000)


def test_the_bucket_with_the_earliest_head_goes_next() -> None:
    heads = [
        Head(3, ServiceClass.DEFAULT, "a", 5.0, 1),
        Head(12, ServiceClass.DEFAULT, "b", 4.0, 1),
        Head(13, ServiceClass.DEFAULT, "c", 9.0, 1),
    ]
    order = bucket.groups((0, 10), heads)
    assert [[head.ticket for head in group] for group in order] == [["b", "c"], ["a"]]


# Priorities

SHARES = {ServiceClass.PRIORITY: 0.6, ServiceClass.DEFAULT: 0.3, ServiceClass.FLEX: 0.1}


def test_classes_get_their_shares_of_the_tokens() -> None:
    served: dict[ServiceClass, float] = {}
    claimed = dict.fromkeys(ServiceClass, 0)
    for _ in range(1000):
        (turn,) = priority.Fair().turns(list(ServiceClass), served)[0]
        claimed[turn] += 100
        served = priority.charge(served, list(ServiceClass), {turn: 100}, SHARES)
    total = sum(claimed.values())
    assert {name: round(tokens / total, 2) for name, tokens in claimed.items()} == SHARES


def test_an_idle_class_saves_up_no_turns() -> None:
    shares = dict.fromkeys(ServiceClass, 1.0)
    served: dict[ServiceClass, float] = {}
    for _ in range(100):
        served = priority.charge(served, [ServiceClass.FLEX], {ServiceClass.FLEX: 100}, shares)
    turns = []
    waiting = [ServiceClass.DEFAULT, ServiceClass.FLEX]
    for _ in range(10):
        (turn,) = priority.Fair().turns(waiting, served)[0]
        turns.append(turn)
        served = priority.charge(served, waiting, {turn: 100}, shares)
    assert turns.count(ServiceClass.FLEX) in (4, 5)


def test_a_class_without_room_passes_its_turn_on() -> None:
    served = {ServiceClass.DEFAULT: 10.0, ServiceClass.FLEX: 5.0}
    turns = priority.Fair().turns([ServiceClass.DEFAULT, ServiceClass.FLEX], served)
    assert turns == [(ServiceClass.FLEX,), (ServiceClass.DEFAULT,)]


def test_bulk_goes_shortest_first_but_never_late() -> None:
    flex = [
        msgspec.structs.replace(ticket(length, number=length), service_class=ServiceClass.FLEX, score=score)
        for length, score in ((300, 1.0), (200, 5.0), (100, 6.0), (400, 7.0))
    ]
    assert [t.prompt_tokens for t in priority.Fair().order(flex, now_s=2.0)] == [300, 100, 200, 400]
    longest = priority.Fair(priority.longest_first)
    assert [t.prompt_tokens for t in longest.order(flex, now_s=2.0)] == [300, 400, 200, 100]
    default = [msgspec.structs.replace(t, service_class=ServiceClass.DEFAULT) for t in flex]
    assert priority.Fair().order(default, now_s=2.0) == default


@given(st.floats(0, 1e5), st.floats(0.1, 100))
def test_nobody_is_served_for_a_target_far_below_the_class(asked_s: float, class_s: float) -> None:
    assert priority.ttft_s(asked_s, class_s, 100.0) >= class_s / 4
    assert priority.tpot_s(asked_s, class_s) >= class_s / 2
    assert priority.slack_s(class_s, asked_s, 10.0) >= class_s / 4
    assert priority.slack_s(class_s, None, 10.0) == class_s
    assert priority.slack_s(100.0, 60.0, 20.0) == 40.0
    assert priority.slack_s(30.0, 60.0, 20.0) == 30.0
    assert priority.ttft_s(None, class_s, class_s / 8) == class_s
    assert priority.ttft_s(None, class_s, class_s) == 4 * class_s


# Batch


def brute_force_peak(layout: KVLayout, rows: list[Row]) -> int:
    """Walk into the future step by step."""
    most = 0
    for step in range(max((row.left_tokens for row in rows), default=-1) + 1):
        alive = [row.held_tokens + step for row in rows if row.left_tokens >= step]
        most = max(most, sum(layout.room_tokens(tokens) for tokens in alive) * layout.bytes_per_token)
    return most


ROWS = st.builds(Row, st.integers(1, 300), st.integers(0, 300))


def room(rows: list[Row], layout: KVLayout = PAGED, **overrides: Any) -> Room:
    fields: dict[str, Any] = {"budget_bytes": 12_000, "max_rows": 8, "max_prefill_tokens": 10**9}
    return Room(rows, layout, **fields | overrides)


@LAYOUTS
@given(rows=st.lists(ROWS, max_size=6), lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200))))
def test_what_starts_fits_to_its_end_and_what_does_not_is_skipped(
    layout: KVLayout, rows: list[Row], lengths: list[tuple[int, int]]
) -> None:
    tickets = [ticket(prompt, left, number) for number, (prompt, left) in enumerate(lengths)]
    chosen = ToTheEnd().choose(tickets, room(rows, layout))
    ids = {t.id for t in chosen}
    assert [t for t in tickets if t.id in ids] == chosen
    taken = list(rows)
    for t in tickets:
        with_it = [*taken, batch.row_of(t)]
        fits = brute_force_peak(layout, with_it) <= 12_000 or len(with_it) == 1
        assert (t.id in ids) == (fits and len(taken) - len(rows) < 8)
        taken = with_it if t.id in ids else taken


def test_a_row_alone_waits_for_memory_that_may_come_back() -> None:
    """160 tokens of prompt and answer, 10 bytes each."""
    chosen = {
        limit: len(ToTheEnd().choose([ticket(100, 61, 0)], room([], budget_bytes=800, alone_bytes=limit)))
        for limit in (1590, 1600, inf)
    }
    assert chosen == {1590: 0, 1600: 1, inf: 1}


def test_out_of_memory_makes_cautious_for_a_while() -> None:
    caution = Caution(0.8, errors_total=5)
    caution.heard(5, 100.0)
    assert caution.factor == 0.8
    caution.heard(7, 101.0)
    assert caution.factor == pytest.approx(0.6)
    caution.heard(8, 101.9)  # The same rows are still there.
    assert caution.factor == pytest.approx(0.609)
    caution.heard(9, 102.0)
    assert caution.factor == pytest.approx(0.61 * 0.75)
    caution.heard(9, 112.0)
    assert caution.factor == pytest.approx(0.61 * 0.75 + 0.1)
    caution.heard(9, 1000.0)
    assert caution.factor == 0.8


def test_padding_counts_towards_the_prefill_bound() -> None:
    tickets = [ticket(prompt, 1, number) for number, prompt in enumerate((10, 30, 10))]

    def sizes(max_prefill_tokens: int) -> list[int]:
        chosen = ToTheEnd().choose(tickets, room([], budget_bytes=10**9, max_prefill_tokens=max_prefill_tokens))
        return [t.prompt_tokens for t in chosen]

    assert sizes(59) == [10, 10]
    assert sizes(60) == [10, 30]
    assert sizes(90) == [10, 30, 10]
    assert sizes(5) == [10]


def test_rows_are_bounded_by_the_tightest_target() -> None:
    tickets = [ticket(10, 1, number) for number in range(8)]
    tight = msgspec.structs.replace(ticket(10, 1, 99), tpot_s=0.05)
    pace = Pace(fixed_s=0.005, per_row_s=0.01)
    running = [Row(10, 10)] * 2

    def started(tickets: list[Ticket], tpot_s: float) -> int:
        wide = room(running, budget_bytes=10**9, pace=pace, tpot_s=tpot_s)
        return len(ToTheEnd().choose(tickets, wide))

    # 0.8 of 100 ms carry 7 rows; of 50 ms, three.
    assert started(tickets, 0.1) == 5
    assert started(tickets, 0.05) == 1
    assert started([tight, *tickets], 0.1) == 1
    assert started(tickets, inf) == 8


def test_published_rule_counts_prompts_as_long_as_the_longest() -> None:
    tickets = [ticket(prompt, 500, number) for number, prompt in enumerate((15, 15, 31, 15))]
    # 96 tokens of room: three rows of 32, and answers do not count.
    chosen = batch.ByPrompt().choose(tickets, room([], budget_bytes=960))
    assert [t.prompt_tokens for t in chosen] == [15, 15, 31]


def test_first_come_first_served_stops_at_what_does_not_fit() -> None:
    tickets = [ticket(prompt, 1, number) for number, prompt in enumerate((100, 5000, 10))]
    assert len(batch.InOrder(max_tokens=8192).choose(tickets, room([], budget_bytes=10**9))) == 3
    assert len(batch.InOrder(max_tokens=4096).choose(tickets, room([], budget_bytes=10**9))) == 1
    assert len(batch.InOrder(max_tokens=4096).choose(tickets[1:], room([], budget_bytes=10**9))) == 1
    assert len(batch.InOrder().choose(tickets, room([Row(90, 10)], budget_bytes=2000))) == 0


@pytest.mark.parametrize("rule", [batch.Fixed(2), batch.SloOdbs(cap=2)])
def test_some_rules_run_a_batch_to_its_end(rule: batch.BatchRule) -> None:
    tickets = [ticket(10, 1, number) for number in range(5)]
    assert rule.choose(tickets, room([])) == tickets[:2]
    assert rule.choose(tickets, room([Row(1, 1)])) == []


def test_slo_odbs_cuts_where_the_length_jumps() -> None:
    tickets = [ticket(10, expected, number) for number, expected in enumerate((100, 200, 9000))]
    assert len(batch.SloOdbs().choose(tickets, room([]))) == 2
    assert [priority.slo_odbs_key(t) for t in tickets] == [3600 + 50, 3600 + 100, 3600 + 4500]


@LAYOUTS
@given(budget_bytes=st.integers(0, 20_000))
def test_the_longest_row_just_fits(layout: KVLayout, budget_bytes: int) -> None:
    tokens = batch.longest_row_tokens(layout, budget_bytes)
    assert layout.room_tokens(tokens) * layout.bytes_per_token <= budget_bytes
    assert layout.room_tokens(tokens + 1) * layout.bytes_per_token > budget_bytes
