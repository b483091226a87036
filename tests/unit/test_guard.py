"""Skipping without starving, running suspects alone, making room, keeping the pace."""

from collections.abc import Sequence
from math import inf
from typing import Any, ClassVar

import msgspec
import pytest

from gateway.policy import guard, preempt
from gateway.policy.batch import Room, ToTheEnd
from gateway.policy.guard import MAX_PASSED, Guard
from gateway.policy.pace import UNKNOWN, Pace, Stopwatch
from gateway.policy.preempt import Victim
from gateway.request import Profile, ServiceClass, Ticket
from triton_backend.memory import Paged, Row

PRIORITY, DEFAULT, FLEX = ServiceClass
LAYOUT = Paged(1, 1)
RULE = ToTheEnd()


def ticket(id: str, tokens: int, **overrides: Any) -> Ticket:
    """Of so many tokens at its end."""
    fields: dict[str, Any] = {
        "id": id,
        "origin": "g",
        "prompt_tokens": tokens,
        "max_tokens": 1,
        "profile": Profile(1, 1),
        "bin": 0,
        "slack_s": 10.0,
        "cost_s": 0.0,
        "seconds": 0.0,
        "size_bytes": 0,
    }
    return Ticket(**fields | overrides)


def room(*running: int, budget: int = 100, max_rows: int = 8, tpot_s: float = inf) -> Room:
    return Room([Row(tokens, 0) for tokens in running], LAYOUT, budget, max_rows, 10**9, (), UNKNOWN, tpot_s)


BIG, SMALL, TINY = ticket("big", 80), ticket("small", 30), ticket("tiny", 10)


def select(tickets: list[Ticket], room: Room, watch: Guard | None = None) -> list[str]:
    return [chosen.id for chosen in (watch or Guard()).select(RULE, tickets, room, now_s=9.0)]


def holding(held: Ticket) -> Guard:
    watch = Guard()
    watch.note([held], [], 0.0)
    return watch


def test_what_does_not_fit_is_skipped() -> None:
    assert select([BIG, SMALL, TINY], room(50)) == ["small", "tiny"]
    assert [t.id for t in guard.passed([BIG, SMALL, TINY], [SMALL])] == ["big"]
    assert guard.passed([BIG, SMALL], []) == []


def test_the_held_starts_as_soon_as_it_fits_even_if_it_was_not_looked_at() -> None:
    assert select([SMALL, TINY], room(30), holding(BIG)) == ["tiny"]
    assert select([SMALL, TINY], room(20), holding(BIG)) == ["big"]


def test_only_what_fits_beside_the_held_starts_and_only_once() -> None:
    """20 of 100 are left beside 80: the first TINY and a second one, whatever else has room now."""
    watch = holding(BIG)
    assert select([SMALL, TINY], room(30), watch) == ["tiny"]
    assert select([SMALL, ticket("tiny2", 10)], room(30), watch) == ["tiny2"]
    assert select([SMALL, ticket("tiny3", 10)], room(30), watch) == []
    # What has ended leaves its place.
    watch.ended(lambda started: started != "tiny")
    assert select([SMALL, ticket("tiny4", 10)], room(30), watch) == ["tiny4"]
    # Once another is held for, the count begins anew.
    watch.note([ticket("other", 75, score=-1.0)], [BIG], 0.0)
    assert select([SMALL, ticket("tiny3", 10)], room(30), watch) == ["tiny3"]


def test_passed_too_often_or_for_too_long_is_held() -> None:
    def starts(watch: Guard, now_s: float, budget: int = 100) -> list[str]:
        return [t.id for t in watch.select(RULE, [SMALL], room(30, budget=budget), now_s)]

    watch = Guard()
    for _ in range(MAX_PASSED - 1):
        watch.note([BIG], [], 0.0)
    assert starts(watch, 0.9) == ["small"]
    assert starts(watch, 1.0) == []
    watch.note([BIG], [], 0.0)
    assert starts(watch, 0.5) == []
    assert starts(watch, 0.5, budget=79) == ["small"]
    watch.note([], [BIG], 0.0)
    assert starts(watch, 2.0) == ["small"]


def test_the_held_is_the_earliest() -> None:
    watch = Guard()
    watch.note([ticket("a", 10, score=5.0), ticket("b", 10, score=4.0)], [], 0.0)
    assert select([], room(), watch) == ["b"]


def test_a_suspect_runs_alone() -> None:
    suspect = ticket("suspect", 10, deaths=guard.SUSPECT_DEATHS)
    assert select([suspect, SMALL], room()) == ["suspect"]
    assert select([suspect, SMALL], room(10)) == ["small"]
    assert select([SMALL, suspect, TINY], room()) == ["small", "tiny"]
    # Held for, it waits for an empty engine, and nothing else starts.
    assert select([SMALL], room(10), holding(suspect)) == []
    assert select([SMALL], room(), holding(suspect)) == ["suspect"]


# Making room


def victim(number: int, tokens: int, drawn: int = 0, **overrides: Any) -> Victim:
    overrides = {"service_class": FLEX} | overrides
    return Victim(number, ticket(str(number), tokens, **overrides), drawn, Row(tokens, 0))


def victims(urgent: Ticket, *running: Victim, now_s: float = 9.0) -> list[int]:
    if not preempt.is_due(urgent, now_s):
        return []
    given = room(*(v.memory.held_tokens for v in running))
    return [v.number for v in preempt.victims(RULE, urgent, running, given)]


URGENT = ticket("urgent", 50, service_class=DEFAULT, score=10.0)


def test_flex_makes_room_the_unstarted_and_young_first() -> None:
    assert victims(URGENT, victim(1, 30, drawn=9), victim(2, 30), victim(3, 30)) == [3, 2]
    assert victims(URGENT, victim(1, 60, drawn=9), victim(2, 30)) == [2, 1]


def test_nobody_makes_room_in_vain() -> None:
    huge = msgspec.structs.replace(URGENT, prompt_tokens=98)
    assert victims(huge, victim(1, 30), victim(2, 30, service_class=DEFAULT)) == []


@pytest.mark.parametrize(
    ("urgent", "row", "now_s"),
    [
        (msgspec.structs.replace(URGENT, service_class=FLEX), victim(1, 80), 9.0),
        (URGENT, victim(1, 80, service_class=DEFAULT), 9.0),
        (URGENT, victim(1, 80, evictions=preempt.MAX_EVICTIONS), 9.0),
        (URGENT, victim(1, 80), 4.0),
    ],
    ids=["flex for flex", "default for default", "evicted twice", "time enough"],
)
def test_nobody_has_to_make_room_without_need(urgent: Ticket, row: Victim, now_s: float) -> None:
    assert victims(urgent, row, now_s=now_s) == []


class Counted:
    """A rule that counts how often it is asked."""

    runs_to_completion: ClassVar[bool] = False
    keeps_pace: ClassVar[bool] = True

    def __init__(self) -> None:
        self.num_asked = 0

    def choose(self, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
        self.num_asked += 1
        return RULE.choose(tickets, room)


@pytest.mark.parametrize("tokens", [1, 30, 500, 2000, 5000])
def test_many_are_not_asked_one_by_one_whether_they_are_enough(tokens: int) -> None:
    """Each question adds up the memory of all rows, and the gateway does nothing else meanwhile."""
    running = [victim(number, 10 + number % 7) for number in range(256)]
    budget = sum(v.memory.held_tokens for v in running)
    given = room(*(v.memory.held_tokens for v in running), budget=budget)
    given = msgspec.structs.replace(given, alone_bytes=budget)
    urgent = msgspec.structs.replace(URGENT, prompt_tokens=tokens)
    rule = Counted()
    gone = preempt.victims(rule, urgent, running, given)
    freed = sum(v.memory.held_tokens for v in gone)
    if tokens > budget:
        assert not gone
    else:
        assert freed - gone[-1].memory.held_tokens < tokens <= freed
    assert rule.num_asked <= 10


# Pace


def test_decode_steps_are_fitted() -> None:
    watch = Stopwatch()
    for number in range(200):
        rows = 1 + number % 16
        watch.note_decode(rows, 0.010 + 0.002 * rows)
    pace = watch.pace(1000.0)
    assert pace.fixed_s == pytest.approx(0.010)
    assert pace.per_row_s == pytest.approx(0.002)
    assert pace.decode_s(32) == pytest.approx(0.074)
    assert pace.step_tokens == pytest.approx(10.0)


def test_steps_of_one_size_are_all_fixed_cost() -> None:
    watch = Stopwatch()
    for _ in range(50):
        watch.note_decode(4, 0.020)
    assert watch.pace(1.0).fixed_s == pytest.approx(0.020)
    assert watch.pace(1.0).per_row_s == 0.0


def test_a_fit_is_never_negative() -> None:
    watch = Stopwatch()
    for number in range(50):
        rows = 1 + number % 8
        watch.note_decode(rows, 0.020 - 0.002 * rows)
    assert watch.pace(1.0).per_row_s == 0.0
    steep = Stopwatch()
    for number in range(50):
        rows = 8 + number % 2
        steep.note_decode(rows, 0.001 + 0.1 * (rows - 8))
    assert steep.pace(1.0).fixed_s >= 0.0


def test_unmeasured_nothing_is_bounded() -> None:
    assert UNKNOWN.keeps(0.001, 1000)
    assert UNKNOWN.decode_part(0.001, 1000) == 0.0


def test_decode_steps_take_their_part_of_the_time() -> None:
    pace = Pace(0.010, 0.001, prefill_tokens_per_s=1000.0)
    assert pace.decode_part(0.1, 10) == pytest.approx(0.2)
    assert pace.decode_part(0.1, 90) == pytest.approx(0.8)
    assert pace.decode_part(0.1, 0) == pace.decode_part(inf, 10) == 0.0
