"""The paged cache: what a row wrote stays with it through any history and any size of the pool."""

import random

import pytest
import torch

from triton_backend.cache import LayerShape
from triton_backend.memory import OverBudget, Paged
from triton_backend.paged_cache import PagedCache

SHAPES = [LayerShape(2, 4, 4), LayerShape(1, 8, 2)]
LAYOUT = Paged(4, bytes_per_token=4 * sum(shape.elements for shape in SHAPES))
CONTEXT_TOKENS = 22


def budget(num_blocks: int) -> int:
    return num_blocks * LAYOUT.block_tokens * LAYOUT.bytes_per_token


def new_cache(num_blocks: int) -> PagedCache:
    return PagedCache(SHAPES, LAYOUT, budget(num_blocks), CONTEXT_TOKENS, torch.float32, torch.device("cpu"))


def rooms(lengths: dict[int, int]) -> dict[int, int]:
    return {row: LAYOUT.room_tokens(length) for row, length in lengths.items()}


def places(cache: PagedCache, row: int, length: int) -> torch.Tensor:
    """Of the row's first tokens in the pool."""
    (blocks,) = cache.table([row])
    at = torch.arange(length)
    return torch.from_numpy(blocks).long()[at // 4] * 4 + at % 4


def mark(row: int, length: int, shape: torch.Size) -> torch.Tensor:
    return (100.0 * row + torch.arange(length))[:, None, None].expand(shape)


def write(cache: PagedCache, row: int, start: int, length: int) -> None:
    at = places(cache, row, length)
    for layer, (heads, key_dim, value_dim) in enumerate(SHAPES):
        key = mark(row, length, torch.Size((length, heads, key_dim)))[start:]
        value = -mark(row, length, torch.Size((length, heads, value_dim)))[start:]
        cache.write(layer, at[start:], key, value)
    cache.newest[cache.table([row])[0, 0]] = 1000 + row


def check(cache: PagedCache, lengths: dict[int, int]) -> None:
    for row, length in lengths.items():
        (blocks,) = cache.table([row])
        num_blocks = LAYOUT.room_tokens(length) // 4
        assert blocks[:num_blocks].all()
        assert not blocks[num_blocks:].any()
        for layer in range(len(SHAPES)):
            key, value = cache.read(layer, places(cache, row, length))
            assert torch.equal(key, mark(row, length, key.shape))
            assert torch.equal(value, -mark(row, length, value.shape))
        assert cache.newest[blocks[0]] == 1000 + row
    owned = [block for row in lengths for block in cache.table([row])[0] if block]
    assert len(owned) == len(set(owned)) <= cache.num_blocks
    assert max(owned, default=0) <= cache.num_blocks


@pytest.mark.parametrize("seed", range(8))
def test_rows_keep_what_they_wrote_through_any_history(seed: int) -> None:
    """Rows join, grow and leave at random, and the pool is resized under them, often to the last block."""
    rng = random.Random(seed)
    cache = new_cache(12)
    lengths: dict[int, int] = {}
    for row in range(150):
        wanted = dict(lengths)
        for gone in rng.sample(sorted(wanted), k=min(len(wanted), rng.choice([0, 0, 1, 2]))):
            del wanted[gone]
        grown = {at: min(length + rng.choice([0, 1, 1, 5]), CONTEXT_TOKENS) for at, length in wanted.items()}
        grown[row] = rng.randint(1, 12)
        if sum(rooms(grown).values()) > cache.num_blocks * 4:
            grown = wanted
        cache.arrange(rooms(grown))
        for at, length in grown.items():
            write(cache, at, lengths.get(at, 0), length)
        lengths = grown
        check(cache, lengths)
        if rng.random() < 0.2:
            used = sum(rooms(lengths).values()) // 4
            cache.resize(budget(rng.randint(used, used + 10)))
            check(cache, lengths)
    cache.arrange({})
    cache.arrange(dict.fromkeys(range(cache.num_blocks), 4))


def test_more_than_the_budget_is_refused() -> None:
    cache = new_cache(3)
    cache.arrange({1: 8})
    with pytest.raises(OverBudget):
        cache.arrange({1: 8, 2: 8})
    with pytest.raises(OverBudget):
        cache.resize(budget(1))
    assert cache.num_blocks == 3


def test_all_of_the_pool_is_taken_from_the_device() -> None:
    cache = new_cache(5)
    assert cache.allocated_bytes == budget(5)
    cache.resize(budget(7) + 10)
    assert cache.allocated_bytes == budget(7)
    # One block more is there for padding.
    assert sum(cache.keys(at).nbytes + cache.values(at).nbytes for at in range(len(SHAPES))) == budget(8)


def test_a_pool_that_no_memory_is_left_for_is_empty_and_can_be_made_again() -> None:
    cache = new_cache(3)
    cache.arrange({1: 8})
    with pytest.raises(RuntimeError):
        cache.resize(2**60)
    assert (cache.num_blocks, cache.allocated_bytes) == (0, 0)
    with pytest.raises(OverBudget):
        cache.arrange({1: 8})
    cache.arrange({})
    cache.resize(budget(2))
    cache.arrange({1: 8})
    write(cache, 1, 0, 7)
    check(cache, {1: 7})
