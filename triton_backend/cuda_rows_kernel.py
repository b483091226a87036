"""What a model does to rows between its matrix products, on CUDA: kernels in Triton's language.

The same as row_kernels.py does on a CPU: sums are float32, and each result is rounded once.  What torch's compiler
makes of a model's own operations takes two to ten times as long as reading and writing the rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import rms_norm

from triton_backend.row_kernels import flat_rows

GATE_SIZE = 2048
"""Numbers of a row that one program gates."""
HEADS = 8
"""Of a token that one program rotates."""


class CudaRows:
    """Over tensors [rows, positions, ...]."""

    def rms_norm(self, rows: Tensor, weight: Tensor, offset: float, epsilon: float) -> Tensor:
        """rows [..., dim] / sqrt(mean of their squares + epsilon) * (weight [dim] + offset)."""
        return rms_norm(rows, rows.shape[-1:], weight + offset if offset else weight, epsilon)

    def silu_gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """gate [..., dim] * sigmoid(gate) * up."""
        gates, ups = flat_rows(gate), flat_rows(up)
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        dim = gates.shape[1]
        _silu_gate[(len(gates), triton.cdiv(dim, GATE_SIZE))](
            out, gates, ups, gates.stride(0), ups.stride(0), DIM=dim, SIZE=GATE_SIZE
        )
        return out

    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
        """Of each head [rows, positions, heads, dim] the first numbers, as many as there are cosines and sines
        [rows, positions, numbers], are halves x and y; they become x cos - y sin and y cos + x sin."""
        rows, positions, num_heads, dim = heads.shape
        flat = heads.view(rows * positions, num_heads * dim)
        half = cosines.shape[-1] // 2
        _rotate[(len(flat), triton.cdiv(num_heads, HEADS))](
            flat,
            cosines.contiguous(),
            sines.contiguous(),
            flat.stride(0),
            NUM_HEADS=num_heads,
            HEADS=HEADS,
            DIM=dim,
            HALF=half,
            SIZE=triton.next_power_of_2(half),
        )


@triton.jit
def _silu_gate(out, gates, ups, gate_stride, up_stride, DIM: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    gate = tl.load(gates + row * gate_stride + at, mask=at < DIM, other=0.0).to(tl.float32)
    up = tl.load(ups + row * up_stride + at, mask=at < DIM, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * DIM + at, gated.to(out.dtype.element_ty), mask=at < DIM)


@triton.jit
def _rotate(
    heads,
    cosines,
    sines,
    token_stride,
    NUM_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    SIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, SIZE)
    is_there = (head < NUM_HEADS)[:, None] & (at < HALF)[None, :]
    x_at = heads + token * token_stride + head[:, None] * DIM + at[None, :]
    x = tl.load(x_at, mask=is_there, other=0.0).to(tl.float32)
    y = tl.load(x_at + HALF, mask=is_there, other=0.0).to(tl.float32)
    angle_at = token * 2 * HALF + at
    x_cos = tl.load(cosines + angle_at, mask=at < HALF, other=0.0).to(tl.float32)[None, :]
    y_cos = tl.load(cosines + angle_at + HALF, mask=at < HALF, other=0.0).to(tl.float32)[None, :]
    x_sin = tl.load(sines + angle_at, mask=at < HALF, other=0.0).to(tl.float32)[None, :]
    y_sin = tl.load(sines + angle_at + HALF, mask=at < HALF, other=0.0).to(tl.float32)[None, :]
    tl.store(x_at, (x * x_cos - y * x_sin).to(heads.dtype.element_ty), mask=is_there)
    tl.store(x_at + HALF, (y * y_cos + x * y_sin).to(heads.dtype.element_ty), mask=is_there)
