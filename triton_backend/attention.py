"""Attention over the grouped cache, registered with transformers under one name.

transformers hands every attention layer's projected query, key and value to the function registered here,
together with the keyword arguments of the model call; one of them, `kv`, is what this step reads and writes.
No mask function is registered, so transformers builds no masks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from triton_backend.cache import Group, LayerShape

NAME = "bucketserve"
QUERY_BLOCK = 256
"""Query positions scored at once where scores are materialised: bounds a long chunk's score matrix."""


class UnsupportedModel(Exception):
    """The engine cannot run this model; the message says why and what to do."""


class Scores(NamedTuple):
    """How a layer scores keys."""

    scaling: float
    window: int | None
    """A query sees so many positions, its own included; None: all."""
    softcap: float | None


class KV(Protocol):
    """One step's view of the cache."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Write key and value, return the attention output [rows, positions, heads, value dim].

        query is [rows, heads, positions, key dim]; key and value have the KV heads.
        """


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kv: KV | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    name = type(module).__name__
    if s_aux is not None or position_bias is not None or attention_mask is not None:
        raise UnsupportedModel(f"{name} needs sinks, biases or masks; choose a model without")
    layer = getattr(module, "layer_idx", None)
    if layer is None or not getattr(module, "is_causal", True):
        raise UnsupportedModel(f"{name} is not causal self-attention; choose a decoder-only model")
    if kv is None:
        raise UnsupportedModel(f"{name} is not given what the model's call was; choose a model that hands it down")
    scores = Scores(scaling or query.shape[-1] ** -0.5, sliding_window, softcap)
    return kv.attend(layer, query, key, value, scores), None


AttentionInterface.register(NAME, _attention)


class Probe:
    """Attends to nothing; learns what each layer would keep."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.windows: dict[int, int | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if layer in self.shapes:
            raise UnsupportedModel(f"layer {layer} attends more than once in a pass; choose a model that does not")
        self.windows[layer] = scores.window
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        rows, heads, positions, _ = query.shape
        return query.new_zeros(rows, positions, heads, value.shape[3])


class PrefillKV:
    """A chunk of one prompt: the positions from `start` on of the only row of `group`."""

    def __init__(self, group: Group, start: int) -> None:
        self._group = group
        self._start = start
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        keys, values = self._group.keys(layer), self._group.values(layer)
        end = self._start + query.shape[2]
        keys[:, :, self._start : end] = key
        values[:, :, self._start : end] = value
        if self._start == 0:
            return self._attend(query, key, value, scores)
        seen = slice(self._first_seen(scores.window), end)
        return self._attend(query, keys[:, :, seen], values[:, :, seen], scores)

    def _first_seen(self, window: int | None) -> int:
        return max(0, self._start + 1 - window) if window else 0

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        length, seen = query.shape[2], key.shape[2]
        grouped = query.shape[1] != key.shape[1]
        if scores.softcap is not None:
            return _attend_in_blocks(query, key, value, self._mask(query, seen, scores.window), scores)
        if length == seen and (scores.window is None or scores.window >= length):
            out = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scores.scaling, enable_gqa=grouped
            )
        else:
            mask = self._mask(query, seen, scores.window)
            out = scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=scores.scaling, enable_gqa=grouped
            )
        return out.transpose(1, 2)

    def _mask(self, query: Tensor, num_seen: int, window: int | None) -> Tensor:
        """[positions, seen] of 0 and -inf, the last query seeing the last key: the same in all layers."""
        length = query.shape[2]
        if (num_seen, window) not in self._masks:
            back = torch.arange(num_seen - length, num_seen, device=query.device)[:, None]
            back = back - torch.arange(num_seen, device=query.device)
            self._masks[num_seen, window] = _mask(back, window, query.dtype)
        return self._masks[num_seen, window]


class DecodePart:
    """The decode pool's rows of one group; `positions` [rows] is where each one's newest token goes."""

    def __init__(self, group: Group, at: slice, positions: Tensor, first: int, last: int) -> None:
        self.group = group
        self.at = at
        self.first = first
        """The shortest row's position."""
        self.end = last + 1
        """Past the longest row's position: nothing beyond is read."""
        self.num_rows = at.stop - at.start
        self.slots = torch.arange(self.num_rows, device=positions.device)
        self.positions = positions
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, start: int, window: int | None) -> Tensor:
        """[rows, 1, 1, end - start] of 0 and -inf: the same in all layers of one kind."""
        if window not in self._masks:
            back = self.positions[:, None] - torch.arange(start, self.end, device=self.positions.device)
            # In float32, as a bfloat16 one is converted for each matrix.
            self._masks[window] = _mask(back, window, torch.float32)[:, None, None]
        return self._masks[window]


class DecodeKV:
    """The newest token of every row in the decode pool, rows in the order of their places."""

    def __init__(self, parts: list[DecodePart]) -> None:
        self._parts = parts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        outs = [_decode(part, layer, query[part.at], key[part.at], value[part.at], scores) for part in self._parts]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class StepView(NamedTuple):
    """Some rows of a step, each of as many positions."""

    kv: KV
    rows: int
    positions: int


class StepKV:
    """All of a step in one row of positions: its parts one after the other, and padding behind them."""

    def __init__(self, views: list[StepView]) -> None:
        self._views = views

    @property
    def num_positions(self) -> int:
        """Without padding."""
        return sum(rows * positions for _, rows, positions in self._views)

    def split(self, *heads: Tensor) -> Iterator[tuple[KV, list[Tensor]]]:
        """Each view, and its own [rows, heads, positions, dim] of heads [1, heads, all positions, dim]."""
        at = 0
        for kv, rows, positions in self._views:
            span = slice(at, at := at + rows * positions)
            yield kv, [_rows_of(one[0, :, span], rows) for one in heads]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        outs = []
        for kv, (own_query, own_key, own_value) in self.split(query, key, value):
            outs.append(kv.attend(layer, own_query, own_key, own_value, scores).flatten(0, 1))
        if padding := query.shape[2] - self.num_positions:
            outs.append(query.new_zeros(padding, query.shape[1], value.shape[3]))
        return (outs[0] if len(outs) == 1 else torch.cat(outs))[None]


def _rows_of(positions: Tensor, rows: int) -> Tensor:
    """[rows, heads, positions, dim] of [heads, all positions, dim], where they lie."""
    heads, total, dim = positions.shape
    return positions.view(heads, rows, total // rows, dim).transpose(0, 1)


def _decode(part: DecodePart, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    keys, values = part.group.keys(layer), part.group.values(layer)
    keys[part.slots, :, part.positions] = key[:, :, 0]
    values[part.slots, :, part.positions] = value[:, :, 0]
    rows, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    start = max(0, part.first + 1 - scores.window) if scores.window else 0
    mask = part.mask(start, scores.window)
    # The query heads that share a KV head are the rows of one matrix: K and V are read once, where they lie.
    shared = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    keys, values = keys[:rows, :, start : part.end], values[:rows, :, start : part.end]
    if scores.softcap is None:
        out = scaled_dot_product_attention(shared, keys, values, attn_mask=mask, scale=scores.scaling)
    else:
        flat = shared.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
        out = _attend_capped(*flat, mask.repeat_interleave(kv_heads, 0)[:, 0], scores)
    return out.view(rows, 1, heads, value.shape[3])


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    rows, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    share = heads // kv_heads
    out = query.new_empty(rows, length, heads, value.shape[3])
    for at in range(0, length, QUERY_BLOCK):
        block = query[:, :, at : at + QUERY_BLOCK]
        width = block.shape[2]
        attended = _attend_capped(
            block.reshape(rows * kv_heads, share * width, dim),
            key.flatten(0, 1),
            value.flatten(0, 1),
            mask[at : at + width].repeat(share, 1),
            scores,
        )
        out[:, at : at + width] = attended.view(rows, heads, width, -1).transpose(1, 2)
    return out


def _attend_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """Two batched matrix products over [matrices, positions, dim], with a float32 softmax between them."""
    assert scores.softcap is not None
    logits = torch.bmm(query, key.transpose(1, 2)).mul_(scores.scaling / scores.softcap)
    logits = logits.tanh_().mul_(scores.softcap).add_(mask)
    return torch.bmm(torch.softmax(logits, -1, dtype=torch.float32).to(value.dtype), value)


def _mask(back: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key that lies `back` positions before it, else -inf."""
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return torch.zeros(back.shape, dtype=dtype, device=back.device).masked_fill_(~seen, float("-inf"))
