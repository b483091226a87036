"""One row's life: its transitions, its endings, and what is refused before it starts."""

import math
from collections.abc import Callable

import msgspec
import pytest

from triton_backend.contract import End, Ended, NewRow, Sampling
from triton_backend.sequence import IllegalTransition, Sequence, Status, flaw

NEW = NewRow(row=1, ticket="t", attempt=0, origin="o", prompt=[4, 5, 6], index=1, max_tokens=3, stop_ids=[9])


def test_a_row_runs_from_waiting_to_its_length() -> None:
    row = Sequence(NEW)
    assert (row.status, row.held_tokens, row.index) == (Status.WAITING, 3, 1)
    row.prefill(2)
    assert (row.status, row.prefilled_tokens) == (Status.PREFILL, 2)
    row.prefill(2)
    assert row.prefilled_tokens == 3
    row.draw(7, context_tokens=100)
    assert (row.status, row.held_tokens, row.index) == (Status.RUNNING, 4, 2)
    row.draw(7, context_tokens=100)
    row.draw(8, context_tokens=100)
    assert row.ending == Ended(1, End.LENGTH)


def test_a_stop_id_ends_the_row_and_is_kept() -> None:
    row = Sequence(NEW)
    row.prefill(3)
    row.draw(9, context_tokens=100)
    assert (row.tokens, row.ending) == ([9], Ended(1, End.STOP))


@pytest.mark.parametrize("context_tokens", [3, 4])
def test_a_full_context_ends_the_row(context_tokens: int) -> None:
    row = Sequence(NEW)
    row.prefill(3)
    row.draw(7, context_tokens)
    assert row.ending == Ended(1, End.LENGTH)


@pytest.mark.parametrize(
    "move",
    [
        lambda row: row.end(End.EVICTED),
        lambda row: row.draw(7, 100),
        lambda row: row.prefill(1),
    ],
    ids=["end", "draw", "prefill"],
)
def test_an_ended_row_does_not_move(move: Callable[[Sequence], None]) -> None:
    row = Sequence(NEW)
    row.end(End.CANCELLED)
    with pytest.raises(IllegalTransition, match="row 1: ended does not lead to"):
        move(row)


def test_a_row_does_not_run_before_its_prefill() -> None:
    with pytest.raises(IllegalTransition, match="waiting does not lead to running"):
        Sequence(NEW).draw(7, 100)


def test_a_snapshot_tells_what_is_left_to_draw() -> None:
    row = Sequence(NEW)
    row.prefill(3)
    row.draw(7, 100)
    live = row.live_row()
    assert (live.index, live.tokens, live.max_tokens, live.prompt_tokens, live.ended) == (1, [7], 2, 3, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": []}, "prompt has 0 tokens, must be 1 to 8"),
        ({"prompt": [1] * 9}, "prompt has 9 tokens, must be 1 to 8"),
        ({"prompt": [-1]}, "outside 0..95"),
        ({"prompt": [96]}, "outside 0..95"),
        ({"prompt": [2**64]}, "outside 0..95"),
        ({"stop_ids": [1, 96]}, "stop_ids has a token id outside 0..95"),
        ({"index": -1}, "index is -1"),
        ({"index": 4}, "index is 4, must be 0 to the prompt's 3 tokens"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"rank": math.nan}, "rank is nan"),
        ({"tpot_s": math.inf}, "tpot_s is inf"),
        ({"tpot_s": -0.1}, "tpot_s is -0.1"),
        ({"sampling": Sampling(temperature=math.nan)}, "temperature is nan"),
        ({"sampling": Sampling(temperature=math.inf)}, "temperature is inf"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature is -0.1"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p is 0.0"),
        ({"sampling": Sampling(top_p=math.nan)}, "top_p is nan"),
        ({"sampling": Sampling(top_k=-1)}, "top_k is -1"),
        ({"sampling": Sampling(logprobs=21)}, "logprobs is 21"),
    ],
)
def test_a_row_that_cannot_be_run_is_told_why(change: dict[str, object], words: str) -> None:
    found = flaw(msgspec.structs.replace(NEW, **change), context_tokens=8, vocabulary=96)
    assert found is not None
    assert words in found


@pytest.mark.parametrize(
    "change",
    [{}, {"stop_ids": []}, {"index": 3}, {"max_tokens": 1}, {"sampling": Sampling(logprobs=20)}],
)
def test_a_sound_row_has_no_flaw(change: dict[str, object]) -> None:
    assert flaw(msgspec.structs.replace(NEW, **change), context_tokens=8, vocabulary=96) is None
