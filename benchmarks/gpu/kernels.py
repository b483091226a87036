"""The kernels of this device against plain torch: attention over blocks in any order, in float64, and noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from triton_backend.attention import Scores
from triton_backend.cache import LayerShape
from triton_backend.contract import Sampling
from triton_backend.memory import Paged
from triton_backend.paged_attention import NewestKV, PackedKV, Span, attend
from triton_backend.paged_cache import BLOCK_TOKENS, PagedCache
from triton_backend.sampling import Pick, noise

LENGTHS = (1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 300, 700)


class Case(NamedTuple):
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    softcap: float | None


CASES = (
    Case(32, 8, 128, 128, None, None),
    Case(12, 2, 128, 128, None, None),
    Case(4, 4, 64, 64, 100, None),
    Case(8, 2, 256, 256, 100, 30.0),
    Case(4, 4, 192, 128, None, None),
    Case(4, 2, 8, 8, 12, 5.0),
    Case(4, 2, 16, 16, 2, None),
)


def largest_error(device: str, dtype: torch.dtype, case: Case, num_copies: int) -> float:
    """Relative to the largest value, over a decode step and chunks of prompts; rows are LENGTHS, so many times."""
    torch.manual_seed(2)
    shape = LayerShape(case.kv_heads, case.key_dim, case.value_dim)
    layout = Paged(BLOCK_TOKENS, shape.elements * dtype.itemsize)
    lengths = LENGTHS * num_copies
    rooms = dict(enumerate(map(layout.room_tokens, lengths)))
    budget_bytes = (sum(rooms.values()) + 5 * BLOCK_TOKENS) * layout.bytes_per_token
    cache = PagedCache([shape], layout, budget_bytes, 1024, dtype, torch.device(device))
    cache.arrange({-1: 5 * BLOCK_TOKENS})
    cache.arrange(dict(reversed(rooms.items())))
    # What nobody wrote must not be seen, whatever it is.
    for tensor in (cache.keys(0), cache.values(0)):
        tensor[1:] = float("nan")
    tables = torch.from_numpy(cache.table(range(len(lengths)))).to(device)
    scores = Scores(case.key_dim**-0.5, case.window, case.softcap)
    keys, values = (
        [torch.randn(length, case.kv_heads, dim, device=device).to(dtype) for length in lengths]
        for dim in (case.key_dim, case.value_dim)
    )
    queries = [torch.randn(length, case.heads, case.key_dim, device=device).to(dtype) for length in lengths]
    want = torch.cat([_exact(*row, scores) for row in zip(queries, keys, values, strict=True)])
    got = torch.cat(_run(cache, tables, queries, keys, values, scores))
    return float((got - want).abs().max() / want.abs().max())


def noise_difference(device: str) -> float:
    """The largest, over some rows of a large vocabulary."""
    picks = [Pick(row, Sampling(seed=row * 2**58 + row), row, []) for row in range(32)]
    here, there = (noise(picks, 128_256, torch.device(kind)).cpu() for kind in (device, "cpu"))
    return float((here - there).abs().max())


def _exact(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    at = torch.arange(len(query), device=query.device)
    back = at[:, None] - at
    # `attend` has a float32 softmax; that is far below what is told apart here.
    return attend(query[None].double(), key[None].double(), value[None].double(), back[None], scores)[0]


def _run(
    cache: PagedCache,
    tables: Tensor,
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    scores: Scores,
) -> list[Tensor]:
    """Each row's output: all but its last token in two chunks of a prompt, that one in a decode step."""
    lengths = [len(query) for query in queries]
    outs: list[list[Tensor]] = [[] for _ in lengths]
    for start, limit in ((0, 100), (100, max(lengths))):
        rows = [at for at, length in enumerate(lengths) if start < length - 1]
        ends = [min(limit, lengths[at] - 1) for at in rows]
        parts = [end - start for end in ends]
        places = [_places(cache, tables[at], end) for at, end in zip(rows, ends, strict=True)]
        sums = torch.tensor([[0, *parts], [0, *ends]], device=tables.device).cumsum(1)
        kv = PackedKV(
            cache,
            writes=torch.cat([place[start:] for place in places]),
            reads=torch.cat(places) if start else None,
            ends=sums.int(),
            spans=[Span(sum(parts[:at]), part, ends[at]) for at, part in enumerate(parts)],
        )
        query, key, value = (
            torch.cat([one[at][start:end] for at, end in zip(rows, ends, strict=True)])[None].transpose(1, 2)
            for one in (queries, keys, values)
        )
        out = kv.attend(0, query, key, value, scores)[0]
        for at, part in zip(rows, torch.split(out, parts), strict=True):
            outs[at].append(part)
    positions = torch.tensor(lengths, dtype=torch.int32, device=tables.device)[:, None] - 1
    query, key, value = (torch.stack([row[-1] for row in one])[:, :, None] for one in (queries, keys, values))
    newest = NewestKV(cache, torch.cat([positions, tables], 1)).attend(0, query, key, value, scores)
    return [torch.cat([*before, out]) for before, out in zip(outs, newest, strict=True)]


def _places(cache: PagedCache, table: Tensor, length: int) -> Tensor:
    at = torch.arange(length, device=table.device)
    return table.long()[at // cache.block_tokens] * cache.block_tokens + at % cache.block_tokens
