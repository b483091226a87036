"""The grouped cache: what a row wrote stays with it wherever it moves, within the budget."""

import os
import random
from pathlib import Path

import pytest
import torch

from triton_backend.cache import KVCache, LayerShape, ladder_tokens
from triton_backend.memory import Grouped, OverBudget
from triton_backend.shortage import OutOfMemory, is_shortage

SHAPES = [LayerShape(2, 4, 4), LayerShape(1, 8, 2)]
LAYOUT = Grouped((4, 6, 8, 12), bytes_per_token=4 * sum(shape.elements for shape in SHAPES))


def new_cache(budget_tokens: int) -> KVCache:
    budget_bytes = budget_tokens * LAYOUT.bytes_per_token
    return KVCache(SHAPES, LAYOUT, budget_bytes, torch.float32, torch.device("cpu"))


def rooms(lengths: dict[int, int]) -> dict[int, int]:
    return {row: LAYOUT.room_tokens(length) for row, length in lengths.items()}


def slot(cache: KVCache, row: int) -> list[torch.Tensor]:
    """The row's own part of every tensor, [kv heads, capacity, dim] each."""
    group = cache.alone(row)
    assert group.rows == [row]
    return [tensor[0] for tensor in group.tensors]


def write(cache: KVCache, row: int, position: int) -> None:
    for tensor in slot(cache, row):
        tensor[:, position] = 100 * row + position


def check(cache: KVCache, lengths: dict[int, int], running: set[int]) -> None:
    for row, length in lengths.items():
        for tensor in slot(cache, row):
            written = torch.arange(length) + 100.0 * row
            assert torch.equal(tensor[:, :length], written[None, :, None].expand_as(tensor[:, :length]))
            assert not tensor[:, length:].any()
    for group in cache.groups:
        front = group.rows[: group.num_running]
        assert set(front) == running.intersection(group.rows)
    tensors = [tensor for group in cache.groups for tensor in group.tensors]
    assert sum(tensor.nbytes for tensor in tensors) <= cache.allocated_bytes


@pytest.mark.parametrize("seed", range(8))
def test_rows_keep_what_they_wrote_through_any_history(seed: int) -> None:
    """Rows join, start running, grow and leave at random; the budget is so tight that slack must move."""
    rng = random.Random(seed)
    budget_tokens = 60
    cache = new_cache(budget_tokens)
    lengths: dict[int, int] = {}
    running: set[int] = set()
    for row in range(120):
        wanted = dict(lengths)
        for gone in rng.sample(sorted(wanted), k=min(len(wanted), rng.choice([0, 0, 1, 2]))):
            del wanted[gone]
        grown = {at: length + rng.choice([0, 1, 1, 3]) for at, length in wanted.items()}
        grown[row] = rng.randint(1, 12)
        if sum(rooms(grown).values()) > budget_tokens or max(grown.values()) > 12:
            grown = wanted
        running = (running | {at for at in grown if rng.random() < 0.4}) & grown.keys()
        cache.arrange(rooms(grown), running)
        for at, length in grown.items():
            for position in range(lengths.get(at, 0), length):
                write(cache, at, position)
        lengths = grown
        check(cache, lengths, running)
        assert cache.allocated_bytes <= budget_tokens * LAYOUT.bytes_per_token
    cache.arrange({}, [])
    assert cache.groups == []


def test_a_new_row_never_finds_what_an_old_one_left() -> None:
    cache = new_cache(100)
    cache.arrange({1: 4}, [1])
    for tensor in slot(cache, 1):
        tensor.fill_(float("nan"))
    cache.arrange({2: 4}, [])
    assert not any(tensor.any() for tensor in slot(cache, 2))


def test_joining_within_the_slack_copies_nothing() -> None:
    cache = new_cache(1000)
    cache.arrange(dict.fromkeys(range(8), 4), [])
    before = cache.groups[0].tensors[0]
    cache.arrange(dict.fromkeys(range(10), 4), range(8))
    assert cache.groups[0].tensors[0] is before


def test_slack_is_given_up_for_another_group() -> None:
    cache = new_cache(50)
    cache.arrange(dict.fromkeys(range(8), 4), [])
    assert cache.allocated_bytes == 40 * LAYOUT.bytes_per_token
    cache.arrange({**dict.fromkeys(range(8), 4), 9: 12}, [])
    assert cache.allocated_bytes == 44 * LAYOUT.bytes_per_token


def test_more_than_the_budget_is_refused_and_changes_nothing() -> None:
    cache = new_cache(10)
    cache.arrange({1: 4}, [])
    write(cache, 1, 0)
    with pytest.raises(OverBudget):
        cache.arrange({1: 4, 2: 8}, [])
    check(cache, {1: 1}, set())


def test_without_memory_nothing_has_changed() -> None:
    """The system itself refuses: no machine has that much."""
    cache = new_cache(2**50)
    cache.arrange({1: 4}, [])
    write(cache, 1, 0)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is what is_shortage tells
        cache.arrange({1: 4, 2: 2**45}, [])
    assert is_shortage(caught.value)
    assert is_shortage(OutOfMemory()), "what a runner has made of it"
    check(cache, {1: 1}, set())


def test_a_smaller_budget_takes_the_slack() -> None:
    cache = new_cache(1000)
    cache.arrange(dict.fromkeys(range(8), 4), [])
    write(cache, 7, 0)
    assert cache.allocated_bytes == 40 * LAYOUT.bytes_per_token
    cache.budget_bytes = 33 * LAYOUT.bytes_per_token
    cache.arrange(dict.fromkeys(range(8), 4), [])
    assert cache.allocated_bytes == 32 * LAYOUT.bytes_per_token
    check(cache, {7: 1}, set())


def test_what_a_cache_gives_up_is_the_systems_at_once() -> None:
    """96 MiB in tensors of 1 MiB, which the heap would keep."""
    before_bytes = resident_bytes()
    layout = Grouped((1024,), bytes_per_token=4 * 256 * 96)
    cache = KVCache([LayerShape(1, 256, 256)] * 48, layout, 2**40, torch.float32, torch.device("cpu"))
    cache.arrange({1: 1024}, [])
    assert resident_bytes() - before_bytes > 90 * 2**20
    cache.budget_bytes = 0
    cache.arrange({}, [])
    assert resident_bytes() - before_bytes < 20 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("context_tokens", "ladder"),
    [(40, (40,)), (64, (64,)), (100, (64, 96, 100)), (512, (64, 96, 128, 192, 256, 384, 512))],
)
def test_the_ladder_ends_at_the_context(context_tokens: int, ladder: tuple[int, ...]) -> None:
    assert ladder_tokens(context_tokens) == ladder
