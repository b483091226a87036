"""The newest token of every row against the row's blocks, on CUDA: a kernel in Triton's language.

torch's varlen attention reads block tables too, but only from torch 2.12 on, in blocks of 256 positions, and
without soft caps.  Here one program takes the query heads that share a KV head, so that keys and values are read
once, and a part of a row's blocks; a second kernel weighs the parts.  The grid depends on shapes alone, as a CUDA
graph demands; each program sees for itself where its row ends.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_backend.attention import Scores
from triton_backend.shared_memory import num_stages

PROGRAMS_PER_PROCESSOR = 4
"""Parts are made until there are so many programs, so that none of the processors waits long for the last."""
MAX_PARTS = 32
MIN_GROUP = 16
"""Rows of the smallest matrix that tensor cores multiply."""
WARPS = 2
"""Of a program: threads by 32."""


def attend_newest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    inputs: Tensor,
    scores: Scores,
    num_processors: int,
) -> Tensor:
    """Write key and value [rows, kv heads, dim]; return [rows, heads, value dim] for query [rows, heads, key dim].

    keys and values are a layer's blocks [blocks, positions, kv heads, dim]; inputs [rows, 1 + blocks] int32 are
    each query's position, and the row's blocks.  `num_processors` is how many the device has.
    """
    num_rows, heads, key_dim = query.shape
    _, block_tokens, kv_heads, value_dim = values.shape
    group = heads // kv_heads
    wanted = PROGRAMS_PER_PROCESSOR * num_processors // (num_rows * kv_heads)
    parts = min(triton.next_power_of_2(max(1, wanted)), MAX_PARTS, triton.next_power_of_2(inputs.shape[1] - 1))
    group_size = max(MIN_GROUP, triton.next_power_of_2(group))
    key_size, value_size = (max(16, triton.next_power_of_2(dim)) for dim in (key_dim, value_dim))
    out = query.new_empty(num_rows, heads, value_dim)
    partial = out if parts == 1 else query.new_empty(num_rows, heads, parts, value_dim, dtype=torch.float32)
    sums = partial if parts == 1 else query.new_empty(num_rows, heads, parts, dtype=torch.float32)
    _attend_part[(num_rows, kv_heads, parts)](
        partial,
        sums,
        query,
        key,
        value,
        keys,
        values,
        inputs,
        scores.scaling,
        scores.softcap or 0.0,
        inputs.stride(0),
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        PARTS=parts,
        WINDOW=scores.window or 0,
        HAS_SOFTCAP=scores.softcap is not None,
        GROUP=group,
        GROUP_SIZE=group_size,
        KEY_DIM=key_dim,
        KEY_SIZE=key_size,
        VALUE_DIM=value_dim,
        VALUE_SIZE=value_size,
        BLOCK_TOKENS=block_tokens,
        num_warps=WARPS,
        num_stages=num_stages(group_size, key_size, value_size, block_tokens, keys.element_size()),
    )
    if parts > 1:
        _weigh_parts[(num_rows * heads,)](
            out,
            partial,
            sums,
            PARTS=parts,
            VALUE_DIM=value_dim,
            VALUE_SIZE=triton.next_power_of_2(value_dim),
            num_warps=4,
        )
    return out


@triton.jit
def _attend_part(
    out,
    sums,
    query,
    key,
    value,
    keys,
    values,
    inputs,
    scaling,
    softcap,
    inputs_stride,
    query_row_stride,
    query_head_stride,
    key_row_stride,
    key_kv_head_stride,
    value_row_stride,
    value_kv_head_stride,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    PARTS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    KEY_SIZE: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    newest = tl.load(inputs + row * inputs_stride)
    first = tl.maximum(newest + 1 - WINDOW, 0) if WINDOW else 0
    first_block = first // BLOCK_TOKENS
    # Every block holds a position that is seen, so that no row's best stays -inf in it.
    end_block = tl.where(first < newest, tl.cdiv(newest, BLOCK_TOKENS), first_block)
    blocks_per_part = tl.cdiv(end_block - first_block, PARTS)
    begin = first_block + part * blocks_per_part
    end = tl.minimum(begin + blocks_per_part, end_block)

    member = tl.arange(0, GROUP_SIZE)
    key_at = tl.arange(0, KEY_SIZE)
    value_at = tl.arange(0, VALUE_SIZE)
    token_at = tl.arange(0, BLOCK_TOKENS)
    head = kv_head * GROUP + member
    q = tl.load(
        query + row * query_row_stride + head[:, None] * query_head_stride + key_at[None, :],
        mask=(member < GROUP)[:, None] & (key_at < KEY_DIM)[None, :],
        other=0.0,
    )
    has_newest = part == PARTS - 1
    new_k = tl.load(
        key + row * key_row_stride + kv_head * key_kv_head_stride + key_at,
        mask=has_newest & (key_at < KEY_DIM),
        other=0.0,
    )
    new_v = tl.load(
        value + row * value_row_stride + kv_head * value_kv_head_stride + value_at,
        mask=has_newest & (value_at < VALUE_DIM),
        other=0.0,
    )
    new_block = tl.load(inputs + row * inputs_stride + 1 + newest // BLOCK_TOKENS).to(tl.int64)
    new_token = newest % BLOCK_TOKENS
    tl.store(
        keys + new_block * key_block_stride + new_token * key_token_stride + kv_head * key_head_stride + key_at,
        new_k,
        mask=has_newest & (key_at < KEY_DIM),
    )
    tl.store(
        values
        + new_block * value_block_stride
        + new_token * value_token_stride
        + kv_head * value_head_stride
        + value_at,
        new_v,
        mask=has_newest & (value_at < VALUE_DIM),
    )
    # The newest token is seen before all others, and is not read back.
    logit = _capped(tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], 1) * scaling, softcap, HAS_SOFTCAP)
    best = tl.where(has_newest, logit, float("-inf"))
    total = tl.where(has_newest, tl.full([GROUP_SIZE], 1.0, tl.float32), 0.0)
    mix = tl.zeros([GROUP_SIZE, VALUE_SIZE], tl.float32) + new_v.to(tl.float32)[None, :]
    for at in range(begin, end):
        block = tl.load(inputs + row * inputs_stride + 1 + at).to(tl.int64)
        position = at * BLOCK_TOKENS + token_at
        seen = (position >= first) & (position < newest)
        k = tl.load(
            keys
            + block * key_block_stride
            + kv_head * key_head_stride
            + token_at[:, None] * key_token_stride
            + key_at[None, :],
            mask=seen[:, None] & (key_at < KEY_DIM)[None, :],
            other=0.0,
        )
        v = tl.load(
            values
            + block * value_block_stride
            + kv_head * value_head_stride
            + token_at[:, None] * value_token_stride
            + value_at[None, :],
            mask=seen[:, None] & (value_at < VALUE_DIM)[None, :],
            other=0.0,
        )
        logits = _capped(tl.dot(q, tl.trans(k), input_precision="ieee") * scaling, softcap, HAS_SOFTCAP)
        logits = tl.where(seen[None, :], logits, float("-inf"))
        better = tl.maximum(best, tl.max(logits, 1))
        keep = tl.exp(best - better)
        weight = tl.exp(logits - better[:, None])
        total = total * keep + tl.sum(weight, 1)
        mix = mix * keep[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        best = better

    to = (row * tl.num_programs(1) * GROUP + head) * PARTS + part
    is_member = member < GROUP
    # A part without blocks has no total: it is not weighed.
    mix = mix / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out + to[:, None] * VALUE_DIM + value_at[None, :],
        mix.to(out.dtype.element_ty),
        mask=is_member[:, None] & (value_at < VALUE_DIM)[None, :],
    )
    if PARTS > 1:
        tl.store(sums + to, best + tl.log(total), mask=is_member)


@triton.jit
def _capped(logits, softcap, HAS_SOFTCAP: tl.constexpr):
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1)
        logits = softcap * (1.0 - 2.0 / (tl.exp(2.0 * logits / softcap) + 1.0))
    return logits


@triton.jit
def _weigh_parts(
    out,
    partial,
    sums,
    PARTS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
):
    head = tl.program_id(0)
    part = tl.arange(0, PARTS)
    value_at = tl.arange(0, VALUE_SIZE)
    log_total = tl.load(sums + head * PARTS + part)
    weight = tl.exp(log_total - tl.max(log_total, 0))
    mix = tl.load(
        partial + (head * PARTS + part)[:, None] * VALUE_DIM + value_at[None, :],
        mask=(value_at < VALUE_DIM)[None, :],
        other=0.0,
    )
    mix = tl.sum(mix * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + head * VALUE_DIM + value_at, mix.to(out.dtype.element_ty), mask=value_at < VALUE_DIM)
