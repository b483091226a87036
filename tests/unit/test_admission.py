"""Letting in what can be kept, and telling the others honestly when to come back."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import card
from gateway.policy import admission
from gateway.policy.admission import Asked, ByTarget, Everybody, Load
from gateway.policy.demand import Demand, tighter
from gateway.policy.drain import Drain
from gateway.policy.line import MAX_RETRY_S, SPEED, Line, guess
from gateway.policy.margin import Margin
from gateway.request import Profile, ServiceClass, Slot, Ticket, slot_bounds, slot_of

PRIORITY, DEFAULT, FLEX = ServiceClass
SHARES = {PRIORITY: 0.6, DEFAULT: 0.3, FLEX: 0.1}


def load(*slots: tuple[ServiceClass, int, float], rate: float = 1.0, now_s: float = 100.0, **more: object) -> Load:
    """Slots of half a second, counted from now."""
    waiting = {(name, 4 * (200 + slot)): Slot(10, seconds) for name, slot, seconds in slots}
    return Load(waiting, now_s, rate, 0.0, SHARES, **more)  # type: ignore[arg-type]


def asked(ttft_s: float = 2.0, seconds: float = 0.4, first_s: float = 0.1) -> Asked:
    return Asked(DEFAULT, ttft_s, ttft_s, 0.0, seconds, first_s)


def late_s(asked: Asked, load: Load, margin: float = 1.0) -> float:
    """0 if it is let in."""
    return max(0.0, ByTarget().forecast(asked, load._replace(margin=margin)).late_s)


def test_without_a_limit_the_answer_may_fill_the_context() -> None:
    assert admission.answer_tokens(10, None, 100) == 90
    assert admission.answer_tokens(10, 90, 100) == 90
    assert admission.answer_tokens(10, 91, 100) == admission.TooLong(100, 101)
    assert admission.answer_tokens(100, None, 100) == admission.TooLong(100, 101)


def test_an_empty_queue_lets_everybody_in_who_can_make_it_alone() -> None:
    assert late_s(asked(), load()) == 0
    assert late_s(asked(ttft_s=0.05), load()) == pytest.approx(0.05)


def test_work_before_it_counts_and_work_after_it_does_not() -> None:
    before = load((DEFAULT, 1, 1.5), (DEFAULT, 3, 1.0))
    assert late_s(asked(), before) == pytest.approx(2.5 + 0.1 - 2.0)
    assert late_s(asked(), load((DEFAULT, 1, 1.5), (DEFAULT, 30, 1.0))) == 0


def test_a_promise_given_to_somebody_else_is_not_broken() -> None:
    """Work due in the sixth second fills the time until then; a tighter request would push it out."""
    assert late_s(asked(), load((DEFAULT, 11, 5.9))) == pytest.approx(5.9 + 0.4 - 6.0)
    assert late_s(asked(), load((DEFAULT, 11, 5.5))) == 0


def test_a_tenant_with_much_work_waiting_stands_behind_it() -> None:
    """Its work is due later than its next request's target, and goes before it all the same."""
    mine = (DEFAULT, 5, 2.5)
    assert late_s(asked(), load(mine)) == 0
    behind = Asked(DEFAULT, 2.0, 2.0, 2.0, 0.4, 0.1)
    assert late_s(behind, load(mine)) == pytest.approx(2.5 + 0.1 - 2.0)


def test_more_replicas_do_more() -> None:
    work = [(DEFAULT, 1, 6.0)]
    assert late_s(asked(), load(*work, rate=1.0)) > 4
    assert late_s(asked(), load(*work, rate=4.0)) == 0


def test_a_class_counts_on_its_share_only_while_others_have_work() -> None:
    mine = (DEFAULT, 1, 1.5)
    assert late_s(asked(), load(mine)) == 0
    assert late_s(asked(), load(mine, (PRIORITY, 0, 0.1))) == pytest.approx(1.5 * 3 + 0.1 - 2.0)


def test_nothing_measured_refuses_nobody() -> None:
    assert late_s(asked(), load((DEFAULT, 1, 100.0), rate=0.0)) == 0
    assert Everybody().forecast(asked(), load((DEFAULT, 1, 100.0))).late_s <= 0


def test_part_of_the_target_is_kept_in_reserve() -> None:
    assert late_s(asked(), load((DEFAULT, 1, 1.6)), margin=1.0) == 0
    assert late_s(asked(), load((DEFAULT, 1, 1.6)), margin=0.8) == pytest.approx(1.7 - 1.6)


def test_promised_places_keep_newcomers_out() -> None:
    assert late_s(asked(), load(promised=[(0.5, 1.5), (1.5, 1.5)])) == pytest.approx(1.1)
    assert late_s(asked(), load(promised=[(0.5, 1.5), (5.0, 1.5)])) == 0


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.01, 3)), max_size=20), st.floats(0.1, 10))
def test_who_is_let_in_could_be_served_in_deadline_order(work: list[tuple[int, float]], ttft_s: float) -> None:
    """Played out: earliest deadline first at the measured rate, nobody's deadline slot is overrun."""
    due = dict(work)
    given = load(*((DEFAULT, slot, seconds) for slot, seconds in due.items()))
    mine = asked(ttft_s=ttft_s)
    if ByTarget().forecast(mine, given).late_s > 0:
        return
    clock_s = 0.0
    for slot in sorted(due):
        if slot * 0.5 <= ttft_s:
            clock_s += due[slot]
    assert clock_s + mine.first_s <= ttft_s + 1e-9
    clock_s += mine.seconds
    for slot in sorted(due):
        if slot * 0.5 > ttft_s:
            clock_s += due[slot]
            assert clock_s <= (slot + 1) * 0.5 + 1e-9


@given(st.floats(-1e9, 1e9, allow_subnormal=False), st.floats(0, 1e6))  # No clock tells 5e-324 s from 0.
def test_a_deadline_lies_in_its_slot(score: float, slack_s: float) -> None:
    begins_s, lasts_s = slot_bounds(slot_of(score, slack_s))
    assert begins_s <= score <= begins_s + lasts_s
    assert lasts_s <= max(0.5, slack_s / 4)


# The line of the refused


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 5), st.floats(0, 0.999)), max_size=60))
def test_refused_clients_return_within_two_minutes(bookings: list[tuple[float, float, float]]) -> None:
    line = Line()
    for late, seconds, jitter in bookings:
        assert 1.0 <= line.book(0.0, late, seconds, 1.0, jitter) <= 120.0
        assert 1.0 <= guess(late * 10, jitter) <= 120.0


def test_the_line_advances_as_fast_as_work_is_done() -> None:
    line = Line()
    told = [line.book(0.0, 3.0, seconds=2.0, rate=0.5 / SPEED, jitter=0.0) for _ in range(4)]
    assert told == [pytest.approx(s) for s in (3.0, 7.0, 11.0, 15.0)]


@pytest.mark.parametrize(("late_s", "seconds"), [(5.0, 700.0), (700.0, 5.0)], ids=["long", "late"])
def test_one_large_call_fills_the_line_for_as_long_as_anybody_is_told_to_wait(
    late_s: float, seconds: float
) -> None:
    line = Line()
    line.book(0.0, late_s, seconds, 1.0, jitter=0.0)
    assert line.end_in_s(0.0) <= MAX_RETRY_S
    assert line.book(MAX_RETRY_S, 2.0, 0.1, 1.0, jitter=0.0) == pytest.approx(2.0)


def due(line: Line, now_s: float) -> list[float]:
    """When those who were refused are expected, from now."""
    return [due_s for due_s, _ in line.promised(now_s)]


def test_places_are_work_to_be_expected_until_they_are_taken_or_lost() -> None:
    line = Line()
    for _ in range(3):
        line.book(0.0, 3.0, seconds=2.0, rate=0.5 / SPEED, jitter=0.0)
    assert due(line, 1.0) == [pytest.approx(s) for s in (2.0, 6.0, 10.0)]
    assert [seconds for _, seconds in line.promised(1.0)] == [2.0] * 3
    line.returned(3.0)
    assert due(line, 3.0) == [pytest.approx(s) for s in (4.0, 8.0)]
    (place,) = line.promised(17.5)
    assert place[0] == pytest.approx(-6.5)
    assert place[1] == pytest.approx(2.0 * 0.98)


def test_places_of_clients_that_never_return_stop_counting() -> None:
    line = Line()
    now_s = 0.0
    for _ in range(300):
        now_s += 1.0
        line.book(now_s, 1.0, seconds=1.0, rate=0.7 / SPEED, jitter=0.0)
    assert sum(seconds for _, seconds in line.promised(now_s)) < 2.0


# The measured rate


def work(seconds: float, count: int = 1) -> list[Ticket]:
    one = Ticket(
        id="c/0",
        origin="g",
        prompt_tokens=1,
        max_tokens=1,
        profile=Profile(1, 1),
        bin=0,
        slack_s=1.0,
        cost_s=0.0,
        seconds=seconds,
        size_bytes=0,
    )
    return [one] * count


def test_the_rate_is_what_leaves_the_queue_while_more_waits() -> None:
    drain = Drain()
    for half_second in range(200):
        drain.note(work(0.5, 3), True, 10.0, half_second / 2)
    assert drain.rate == pytest.approx(3.0, rel=0.01)


def test_few_large_ones_are_no_measurement() -> None:
    drain = Drain()
    for second in range(8):
        drain.note(work(5.0), True, 10.0, float(second))
    assert drain.rate == 1.0
    drain.note(work(5.0), True, 10.0, 8.0)
    assert drain.rate == pytest.approx(1.0 + 0.3 * (5.0 - 1.0))


def test_an_engine_that_takes_nothing_is_slow() -> None:
    drain = Drain()
    for second in range(300):
        drain.note([], True, 10.0, float(second))
    assert drain.rate == pytest.approx(0.0, abs=0.01)


def test_a_queue_that_runs_empty_measures_nothing() -> None:
    drain = Drain()
    for second in range(100):
        drain.note(work(0.01, 20), second % 2 == 0, 10.0, float(second))
    assert drain.rate == 1.0


def test_what_leaves_a_queue_that_runs_empty_is_the_least_that_can() -> None:
    """Or a replica that was slow once would let nothing wait, and so never be found to be fast again."""
    drain = Drain()
    drain.rate = 0.01
    for second in range(61):
        drain.note(work(0.1, 5), False, 2.0, float(second))
    assert drain.rate == pytest.approx(0.5)
    # A quiet time is no sign of slowness.
    drain.note([], False, 0.0, 200.0)
    assert drain.rate == pytest.approx(0.5)


def test_what_is_measured_while_more_waits_says_more() -> None:
    drain = Drain()
    drain.rate = 0.5
    for second in range(300):
        # Ten seconds of each: twice the work is done while nothing waits.
        more_waits = second % 20 < 10
        drain.note(work(0.1, 5 if more_waits else 10), more_waits, 2.0, float(second))
    assert drain.rate == pytest.approx(0.5)


def test_what_fills_an_empty_engine_is_not_done() -> None:
    drain = Drain()
    drain.rate = 0.01
    drain.note(work(0.5, 120), False, 0.0, 0.0)
    drain.note([], False, 51.0, 30.0)
    assert drain.rate == pytest.approx((60.0 - 51.0) / 30.0)


def test_what_leaves_while_nobody_counts_is_no_measurement() -> None:
    drain = Drain()
    drain.note(work(0.5, 1000), False, 0.0, 0.0)
    drain.pause()
    drain.note([], False, 0.0, 100.0)
    assert drain.rate == 1.0


# What is to be expected


def test_demand_is_work_per_second_of_those_that_may_wait_less() -> None:
    demand = Demand()
    for tenth in range(3000):
        demand.note(1.0, 0.05, tenth / 10)
        demand.note(10.0, 0.2, tenth / 10)
    assert tighter(10.0, [demand.rates(300.0)]) == pytest.approx(0.5, rel=0.05)
    assert tighter(1.0, [demand.rates(300.0)]) == 0
    assert tighter(10.0, [demand.rates(305.0)]) == pytest.approx(0.25, rel=0.05)
    assert tighter(10.0, [demand.rates(3000.0)]) == pytest.approx(0.0, abs=1e-9)
    assert tighter(10.0, [demand.rates(300.0)] * 3) == pytest.approx(1.5, rel=0.05), "of three gateways"


def test_demand_is_known_soon_after_work_begins_to_come() -> None:
    demand = Demand()
    demand.note(1.0, 0.2, 0.0)
    assert demand.rates(0.0) == {1: 0.2}, "not at an infinite rate"
    for tenth in range(20_000, 20_020):
        demand.note(1.0, 0.05, tenth / 10)
    assert demand.rates(2002.0)[1] == pytest.approx(0.5, rel=0.05), "after a silence, too"


def test_a_patient_request_reckons_with_the_impatient_to_come() -> None:
    waiting = (DEFAULT, 1, 4.0)
    patient = Asked(DEFAULT, 10.0, 10.0, 0.0, 0.4, 0.1)
    assert late_s(patient, load(waiting)) == 0
    assert late_s(patient, load(waiting, impatient=0.3)) == 0
    assert late_s(patient, load(waiting, impatient=0.6)) == pytest.approx(4.0 / 0.4 + 0.1 - 10.0 * 0.82)
    assert late_s(patient, load(waiting, impatient=99.0)) == pytest.approx(4.0 / 0.3 + 0.1 - 10.0 * 0.7)


# The margin


@pytest.mark.parametrize("error", [0.5, 1.0, 1.6])
def test_the_margin_settles_where_promises_are_kept(error: float) -> None:
    """Predictions are off by a factor and by noise, and every request is planned as tightly as allowed."""
    rng = random.Random(1)
    margin = Margin()
    kept = []
    for _ in range(4000):
        planned = margin.part
        kept.append(planned * error * rng.uniform(0.6, 1.2) <= 1.0)
        margin.learn(planned, kept[-1])
    assert sum(kept[1000:]) / 3000 >= 0.96
    assert margin.part == pytest.approx(min(1.0, 1 / (1.18 * error)), abs=0.06)


def test_easy_promises_teach_nothing() -> None:
    margin = Margin()
    for _ in range(1000):
        margin.learn(0.1, kept=True)
    assert margin.part == 0.85
    margin.learn(0.1, kept=False)
    assert margin.part < 0.85


def test_what_a_gateway_tells_is_what_the_others_reckon_with() -> None:
    demand, line = Demand(), Line()
    demand.note(1.0, 4.0, 100.0)
    for _ in range(3):
        line.book(100.0, late_s=5.0, seconds=2.0, rate=1.0, jitter=0.0)
    said = card.encode({ServiceClass.DEFAULT: card.word(demand, line, 100.0)})
    cards = card.Cards()
    cards.read([said, b"nonsense", said], 200.0)
    assert cards.demand(ServiceClass.DEFAULT, 200.0) == [demand.rates(100.0)] * 2
    assert cards.demand(ServiceClass.FLEX, 200.0) == []
    promised = cards.promised(ServiceClass.DEFAULT, 201.0)
    assert sum(seconds for _, seconds in promised) == pytest.approx(2 * 3 * 2.0)
    assert min(in_s for in_s, _ in promised) == pytest.approx(5.0 - 1.0, abs=1.0)
    assert cards.end_in_s(ServiceClass.DEFAULT, 201.0) == pytest.approx(line.end_in_s(101.0))
    assert cards.promised(ServiceClass.DEFAULT, 210.0) == [], "gateways that fell silent are no more"
