"""Records and the figures made of them."""

import json

import hypothesis
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.load import gaps, occupancy, report
from gateway.load.record import Ending, Recorder, Records
from gateway.load.report import goodput_at, jain
from gateway.load.workload import TrafficClass, Workload

FAST = TrafficClass("fast", ttft_slo_s=1.0, tpot_slo_s=0.1)
ANY = TrafficClass("any")


def workload(*rows: tuple[float, int, int, int]) -> Workload:
    """Of (arrival, prompt tokens, output tokens, class)."""
    arrival, prompt, output, index = zip(*rows, strict=True)
    return Workload((FAST, ANY), np.array(index), np.array(arrival), np.array(prompt), np.array(output))


def answered(recorder: Recorder, request: int, *times_s: float) -> None:
    for time_s in times_s:
        recorder.token(request, time_s)
    recorder.end(request, Ending.FINISHED)


def example() -> Records:
    """Two in time, one late at the start, one slow, one refused, one failed half way, one still running."""
    recorder = Recorder(
        workload(
            (0.0, 100, 3, 0),
            (1.0, 100, 1, 0),
            (2.0, 100, 2, 0),
            (3.0, 100, 3, 0),
            (4.0, 100, 9, 0),
            (5.0, 100, 9, 0),
            (6.0, 50, 2, 1),
            (7.0, 50, 2, 1),
        )
    )
    answered(recorder, 0, 0.5, 0.6, 0.7)
    answered(recorder, 1, 2.0)
    answered(recorder, 2, 3.01, 3.02)
    answered(recorder, 3, 3.5, 3.55, 3.75)
    recorder.end(4, Ending.REJECTED)
    recorder.token(5, 5.5)
    recorder.token(5, 6.0)
    recorder.end(5, Ending.FAILED)
    answered(recorder, 6, 9.0, 10.0)
    recorder.token(7, 9.5)
    return recorder.records()


def test_latencies() -> None:
    records = example()
    np.testing.assert_allclose(records.ttft_s, [0.5, 1.0, 1.01, 0.5, np.nan, 0.5, 3.0])
    np.testing.assert_allclose(records.tpot_s, [0.1, 0.0, 0.01, 0.125, np.nan, 0.5, 1.0])
    np.testing.assert_allclose(records.e2e_s, [0.7, 1.0, 1.02, 0.75, np.nan, 1.0, 4.0])
    np.testing.assert_allclose(records.max_gap_s, [0.1, 0.0, 0.01, 0.2, 0.0, 0.5, 1.0])


def test_a_target_is_met_up_to_the_limit_and_by_finished_requests_only() -> None:
    recorder = Recorder(workload((0.0, 1, 2, 0), (0.0, 1, 2, 0), (0.0, 1, 2, 0), (0.0, 1, 2, 1)))
    answered(recorder, 0, 1.0, 1.0625)
    answered(recorder, 1, 0.5, 1.0)
    recorder.token(2, 0.5)
    recorder.end(2, Ending.EXPIRED)
    answered(recorder, 3, 1000.0, 2000.0)
    assert recorder.records().meets().tolist() == [True, False, False, True]


def test_figures() -> None:
    made = report.make(example(), padded_tokens=1000, useful_tokens=750)
    assert made.duration_s == 10.0
    assert made.offered_per_s == 1.0
    total = made.total
    assert (total.requests, total.finished, total.rejected, total.failed, total.expired) == (7, 5, 1, 1, 0)
    assert total.requests_per_s == pytest.approx(0.5)
    assert total.output_tokens_per_s == pytest.approx(1.3)
    assert total.tokens_per_s == pytest.approx((13 + 450) / 10)
    assert total.goodput_per_s == pytest.approx(0.3)
    assert total.attainment == pytest.approx(3 / 7)
    assert total.max_gap_s == pytest.approx(1.0)
    assert made.padding_waste == pytest.approx(0.25)
    fast, other = made.classes["fast"], made.classes["any"]
    assert (fast.requests, other.requests, other.attainment) == (6, 1, 1.0)
    assert fast.attainment == pytest.approx(2 / 6)
    assert fast.ttft_s is not None and fast.ttft_s.p50 == pytest.approx(0.75)
    assert other.itl_s is not None and other.itl_s.p50 == pytest.approx(1.0, rel=0.011)
    # All that was asked of `any` was served, of `fast` 411 of 627 tokens.
    assert made.fairness == pytest.approx(jain(np.array([411 / 627, 1.0])))
    assert json.loads(msgspec.json.encode(made))["total"]["finished"] == 5


def test_nothing_gives_no_figures_and_no_error() -> None:
    made = report.make(Recorder(workload((0.0, 1, 1, 0))).records())
    assert (made.total.requests, made.total.attainment, made.total.ttft_s, made.total.itl_s) == (
        0,
        0.0,
        None,
        None,
    )
    assert (made.duration_s, made.offered_per_s, made.fairness, made.padding_waste) == (0.0, 0.0, 1.0, None)
    assert made.slo_scale[0][1] == 0.0


def test_an_answer_without_a_token_has_no_latency_and_leaves_the_others_theirs() -> None:
    recorder = Recorder(workload((0.0, 10, 2, 0), (1.0, 10, 2, 0)))
    answered(recorder, 0, 0.5, 0.6)
    recorder.counted(1, 10, 1)
    recorder.end(1, Ending.FINISHED)
    total = report.make(recorder.records()).total
    assert (total.finished, total.attainment) == (2, 0.5)
    assert total.ttft_s is not None and total.tpot_s is not None and total.e2e_s is not None
    assert (total.ttft_s.p50, total.e2e_s.p99) == pytest.approx((0.5, 0.6))
    assert report.spread(np.array([np.nan])) is None


def test_wider_targets_are_met_by_more() -> None:
    scales = dict(report.attainment_at_scales(example(), [0.5, 1.0, 1.01, 1.25, 10.0]))
    assert scales == pytest.approx({0.5: 1 / 7, 1.0: 3 / 7, 1.01: 4 / 7, 1.25: 5 / 7, 10.0: 5 / 7}, abs=1e-9)


def test_tenants_are_compared_where_there_are_several() -> None:
    recorder = Recorder(workload((0.0, 10, 2, 0), (0.0, 28, 2, 1)), ("a", "b"), np.array([0, 1]))
    answered(recorder, 0, 1.0, 2.0)
    answered(recorder, 1, 1.0, 2.0)
    assert report.fairness(recorder.records()) == pytest.approx(jain(np.array([12.0, 30.0])))


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20))
@hypothesis.example([4e-161, 4e-161])
def test_jain_lies_between_one_nth_and_1(amounts: list[float]) -> None:
    index = jain(np.array(amounts))
    assert 1 / len(amounts) - 1e-9 <= index <= 1 + 1e-9


def test_jain_of_known_cases() -> None:
    assert jain(np.array([3.0, 3.0, 3.0])) == pytest.approx(1.0)
    assert jain(np.array([5.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("curve", "rate"),
    [
        ([(1, 1.0), (2, 0.8), (3, 0.5)], 1.5),
        ([(3, 0.5), (1, 1.0), (2, 0.8)], 1.5),
        ([(1, 0.9), (2, 0.9)], 2.0),
        ([(1, 0.89), (2, 0.95)], None),
        # It must stay there: the second rise does not count.
        ([(1, 1.0), (2, 0.8), (3, 1.0), (4, 0.0)], 1.5),
        ([], None),
    ],
)
def test_goodput_is_read_off_where_the_curve_first_falls(
    curve: list[tuple[float, float]], rate: float | None
) -> None:
    assert goodput_at(curve, 0.9) == (None if rate is None else pytest.approx(rate))


# Recording


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=12))
def test_a_step_of_many_is_the_same_as_many_tokens(steps: list[set[int]]) -> None:
    load = workload(*((0.0, 5, 20, number % 2) for number in range(5)))
    together, singly = Recorder(load), Recorder(load)
    for number, rows in enumerate(steps):
        together.tokens(np.array(sorted(rows)), 0.3 * number)
        for row in rows:
            singly.token(row, 0.3 * number)
    for recorder in (together, singly):
        for row in range(5):
            recorder.end(row, Ending.FINISHED)
    first, second = together.records(), singly.records()
    for name in ("first_token_s", "last_token_s", "output_tokens", "max_gap_s", "gap_counts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_tokens_that_come_together_are_one_gap_and_the_servers_count_goes_first() -> None:
    recorder = Recorder(workload((0.0, 5, 6, 0)))
    recorder.token(0, 1.0, 3)
    recorder.token(0, 2.0, 2)
    recorder.counted(0, 9, 6)
    recorder.end(0, Ending.FINISHED)
    records = recorder.records()
    assert records.gap_counts.sum() == 1
    assert (records.prompt_tokens[0], records.output_tokens[0], records.tpot_s[0]) == (9, 6, 0.2)


@given(st.lists(st.floats(2e-5, 9e3), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_gap_percentiles_are_within_a_hundredth(gaps_s: list[float], part: float) -> None:
    counts = np.bincount(gaps.bins_of(np.array(gaps_s)), minlength=gaps.NUM_BINS)
    assert (
        counts.tolist() == np.bincount([gaps.bin_of(gap_s) for gap_s in gaps_s], minlength=gaps.NUM_BINS).tolist()
    )
    exact = np.quantile(gaps_s, part, method="lower")
    assert gaps.quantile_s(counts, part) == pytest.approx(exact, rel=0.0102)
    assert gaps.mean_s(counts) == pytest.approx(np.mean(gaps_s), rel=0.0102)


def test_extreme_gaps_are_counted_at_the_ends() -> None:
    assert (gaps.bin_of(0.0), gaps.bin_of(1e9)) == (0, gaps.NUM_BINS - 1)


# Occupancy


def test_waiting_requests_are_counted_by_length() -> None:
    recorder = Recorder(workload((0.0, 10, 1, 0), (0.0, 10, 1, 0), (1.0, 1000, 1, 0), (2.0, 10, 1, 0)))
    answered(recorder, 0, 2.0)
    answered(recorder, 1, 4.0)
    answered(recorder, 2, 3.0)
    recorder.end(3, Ending.REJECTED)
    seen = occupancy.of(recorder.records())
    short, long = seen.waiting.values()
    assert list(seen.waiting) == ["10 to 10 tokens", "1000 to 1000 tokens"]
    at = dict(
        zip(np.round(seen.times_s, 2).tolist(), zip(short.tolist(), long.tolist(), strict=True), strict=True)
    )
    assert (at[0.5], at[1.5], at[2.5], at[3.5], at[4.0]) == ((2, 0), (2, 1), (1, 1), (1, 0), (0, 0))


def test_nothing_waits_where_nothing_was_served() -> None:
    assert not occupancy.of(Recorder(workload((0.0, 1, 1, 0))).records()).waiting
