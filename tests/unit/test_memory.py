"""KV memory counted one way: room, future peak, ledger.  What the engine allocates is in test_cache."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_backend.memory import FuturePeak, Grouped, KVLayout, Ledger, OverBudget, Paged, Row, used_bytes

LAYOUTS: list[KVLayout] = [Paged(4, 3), Grouped((4, 6, 8, 12), 5)]
layouts = st.sampled_from(LAYOUTS)
rows = st.lists(st.builds(Row, st.integers(0, 30), st.integers(0, 30)), max_size=8)


def brute_force_peak(layout: KVLayout, rows: list[Row]) -> int:
    """Play every step: each row grows by a token, and leaves after its last."""
    steps = range(max((row.left_tokens for row in rows), default=0) + 1)
    alive = ([Row(row.held_tokens + step, 0) for row in rows if row.left_tokens >= step] for step in steps)
    return max(used_bytes(layout, grown) for grown in alive)


@given(layouts, rows)
def test_future_peak_is_what_playing_every_step_finds(layout: KVLayout, rows: list[Row]) -> None:
    assert FuturePeak(layout, rows).bytes == brute_force_peak(layout, rows)


@given(layouts, rows, rows)
def test_rows_may_join_one_by_one(layout: KVLayout, first: list[Row], later: list[Row]) -> None:
    peak = FuturePeak(layout, first)
    for row in later:
        before = peak.bytes
        with_it = peak.joined(row)
        assert with_it.bytes >= before == peak.bytes
        peak = with_it
    assert peak.bytes == brute_force_peak(layout, first + later)


@given(layouts, st.lists(st.integers(0, 300)))
def test_room_of_many_is_room_of_each(layout: KVLayout, tokens: list[int]) -> None:
    assert layout.room_array(np.array(tokens, int)).tolist() == [layout.room_tokens(t) for t in tokens]


@given(layouts, st.integers(1, 200))
def test_room_is_enough_monotone_and_stable(layout: KVLayout, tokens: int) -> None:
    room = layout.room_tokens(tokens)
    assert layout.room_tokens(tokens - 1) <= room >= tokens
    assert layout.room_tokens(room) == room


def test_no_tokens_need_no_room() -> None:
    assert [layout.room_tokens(0) for layout in LAYOUTS] == [0, 0]


@given(layouts, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=30))
def test_ledger_holds_what_it_granted_and_nothing_when_all_is_released(
    layout: KVLayout, asks: list[tuple[int, int]]
) -> None:
    ledger = Ledger(layout, 300)
    held: dict[int, int] = {}
    for row, tokens in asks:
        grown = held | {row: tokens}
        if used_bytes(layout, [Row(tokens, 0) for tokens in grown.values()]) <= 300:
            ledger.reserve({row: tokens})
            held = grown
        else:
            with pytest.raises(OverBudget) as caught:
                ledger.reserve({row: tokens})
            assert caught.value.needed_bytes > caught.value.free_bytes == ledger.free_bytes
        assert ledger.used_bytes == used_bytes(layout, [Row(tokens, 0) for tokens in held.values()]) <= 300
        assert ledger.rooms == {row: layout.room_tokens(tokens) for row, tokens in held.items()}
    for row in held:
        ledger.release(row)
    ledger.check_idle()


def test_reserving_is_all_or_none() -> None:
    ledger = Ledger(Paged(1, 1), 10)
    ledger.reserve({1: 4})
    with pytest.raises(OverBudget, match="needs 7 bytes of KV memory, 6 are free"):
        ledger.reserve({1: 5, 2: 6})
    assert ledger.rooms == {1: 4}


def test_a_leak_is_found_when_idle() -> None:
    ledger = Ledger(Paged(1, 1), 10)
    ledger.reserve({1: 4})
    with pytest.raises(AssertionError, match="ledger not empty"):
        ledger.check_idle()
