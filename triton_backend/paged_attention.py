"""Attention over the paged cache: many prompts of any lengths packed into one row, or one token of every row.

Prompts go through torch's varlen attention, newest tokens through decode_kernel.py; what those do not take, and
everything on a CPU, through plain torch.
"""

from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from triton_backend.attention import QUERY_BLOCK, Scores
from triton_backend.paged_cache import PagedCache

_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
"""Before torch 2.12 it took fewer KV heads than heads without being told."""


FLASH_TYPES = torch.float16, torch.bfloat16


class Span(NamedTuple):
    """A row's chunk in the pack."""

    start: int
    length: int
    seen: int
    """Tokens of the row up to the chunk's end."""


class PackedKV:
    """Chunks of prompts, one after the other without padding: query, key and value come as one row."""

    def __init__(
        self,
        cache: PagedCache,
        writes: Tensor,
        reads: Tensor | None,
        ends: Tensor,
        spans: list[Span] | None = None,
    ) -> None:
        """`writes`: where in the pool each token goes; `reads`: where all tokens of the rows lie that its chunk
        sees, row by row, None if those are the chunks themselves; `ends` [2, rows + 1] int32: sums of the rows'
        chunk lengths, and of the tokens seen.  `spans` say the same to the host; None: a step is recorded, with
        any rows in it and padding behind them."""
        self._cache = cache
        self._writes = writes
        self._reads = reads
        self._ends = ends
        self._spans = spans
        self._max_length = max(span.length for span in spans) if spans else len(writes)
        self._max_seen = max(span.seen for span in spans) if spans else len(writes if reads is None else reads)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        self._cache.write(layer, self._writes, key, value)
        if self._reads is not None:
            key, value = self._cache.read(layer, self._reads)
        attend = self._attend_flash if _flash_takes(query, value, scores) else self._attend_plain
        return attend(query, key, value, scores)[None]

    def _attend_flash(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        window = (-1, 0) if scores.window is None else (scores.window - 1, 0)
        out = varlen_attn(
            query,
            key,
            value,
            self._ends[0],
            self._ends[1],
            self._max_length,
            self._max_seen,
            scale=scores.scaling,
            window_size=window,
            **_GROUPED,
        )
        assert isinstance(out, Tensor)
        return out

    def _attend_plain(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        outs, seen_from = [], 0
        for start, length, seen in self._spans or _spans(self._ends):
            span = slice(seen_from, seen_from := seen_from + seen)
            for at in range(0, length, QUERY_BLOCK):
                positions = torch.arange(at, min(at + QUERY_BLOCK, length), device=query.device)
                back = (positions + seen - length)[:, None] - torch.arange(seen, device=query.device)
                block = query[start + at : start + at + len(positions)]
                outs.append(attend(block[None], key[None, span], value[None, span], back[None], scores)[0])
        if padding := len(query) - sum(map(len, outs)):
            outs.append(query.new_zeros(padding, query.shape[1], value.shape[2]))
        return torch.cat(outs)


def _spans(ends: Tensor) -> list[Span]:
    """Waits for the device, so that a step for which it is needed cannot be recorded."""
    starts, (lengths, seen) = ends[0, :-1].tolist(), ends.diff().tolist()
    return [Span(*span) for span in zip(starts, lengths, seen, strict=True) if span[1]]


class NewestKV:
    """The newest token of every row.  `inputs` [rows, 1 + blocks] int32: its position, and the row's blocks, as
    many as the longest row has or more."""

    def __init__(self, cache: PagedCache, inputs: Tensor) -> None:
        self._cache = cache
        self._inputs = inputs

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        keys, values = self._cache.keys(layer), self._cache.values(layer)
        newest = query[:, :, 0], key[:, :, 0], value[:, :, 0]
        if query.is_cuda:
            from triton_backend.decode_kernel import attend_newest  # Triton comes with torch for CUDA only.

            processors = _num_processors(query.device)
            return attend_newest(*newest, keys, values, self._inputs, scores, processors)[:, None]
        positions, table = self._inputs[:, :1].long(), self._inputs[:, 1:]
        size = self._cache.block_tokens
        self._cache.write(layer, (table.gather(1, positions // size) * size + positions % size)[:, 0], *newest[1:])
        back = positions[:, None] - torch.arange(table.shape[1] * size)
        return attend(query.transpose(1, 2), keys[table].flatten(1, 2), values[table].flatten(1, 2), back, scores)


@cache
def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _flash_takes(query: Tensor, value: Tensor, scores: Scores) -> bool:
    fits = query.shape[-1] == value.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    return query.is_cuda and query.dtype in FLASH_TYPES and fits and scores.softcap is None


def attend(query: Tensor, key: Tensor, value: Tensor, back: Tensor, scores: Scores) -> Tensor:
    """[rows, positions, heads, value dim], with a float32 softmax.

    query is [rows, positions, heads, key dim]; key and value are [rows, seen, kv heads, dim]; `back` [rows,
    positions, seen] is how far each key lies before each query.
    """
    visible = back >= 0 if scores.window is None else (back >= 0) & (back < scores.window)
    rows, positions, _, dim = query.shape
    grouped = query.reshape(rows, positions, key.shape[2], -1, dim)
    logits = torch.einsum("rpkgd,rskd->rkgps", grouped, key).float()
    logits = logits * scores.scaling
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    weights = torch.softmax(logits.masked_fill(~visible[:, None, None], float("-inf")), -1).to(value.dtype)
    # Nobody sees what an old row may have left there; as a NaN it would count even so.
    value = value.masked_fill(~visible.any(1)[:, :, None, None], 0)
    return torch.einsum("rkgps,rskd->rpkgd", weights, value).flatten(2, 3)
