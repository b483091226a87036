"""The noise of sampling.py in one pass, on CUDA: a kernel in Triton's language.

As torch operations it takes a dozen passes over rows times vocabulary, a twelfth of a decode step of 512 rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

BLOCK = 1024


def gumbel(halves: Tensor, vocabulary: int, largest_u: float) -> Tensor:
    """[rows, vocabulary] in float32, from each row's key as low and high int32 [rows, 2]."""
    rows = len(halves)
    out = torch.empty(rows, vocabulary, dtype=torch.float32, device=halves.device)
    _gumbel[(triton.cdiv(vocabulary, BLOCK), rows)](out, halves, vocabulary, largest_u, BLOCK=BLOCK)
    return out


@triton.jit
def _gumbel(out, halves, vocabulary, largest_u, BLOCK: tl.constexpr):
    row = tl.program_id(1)
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.load(halves + 2 * row).to(tl.uint32, bitcast=True)
    high = tl.load(halves + 2 * row + 1).to(tl.uint32, bitcast=True)
    h = _mix32((_mix32(ids.to(tl.uint32, bitcast=True)) ^ low) + high)
    u = (h >> 1).to(tl.int32, bitcast=True).to(tl.float32) * (2.0**-31) + 2.0**-32
    u = tl.minimum(u, largest_u)
    noise = -libdevice.log(-libdevice.log1p(-u))
    tl.store(out + row.to(tl.int64) * vocabulary + ids, noise, mask=ids < vocabulary)


@triton.jit
def _mix32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
