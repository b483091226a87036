"""Tensors in memory of their own, which the system has back as soon as nobody uses them.

On a CPU torch's allocator is malloc, which keeps what is freed for what comes next; but a cache that grows asks
for another size each time, and would be held twice.  On CUDA torch keeps blocks of its own, and can be told.
"""

import mmap
from math import prod

import torch
from torch import Tensor


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Of this shape, with the other's type and device; contents are arbitrary.  Raises OSError, or as torch does,
    without memory."""
    size_bytes = prod(shape) * like.element_size()
    if like.device.type != "cpu" or not size_bytes:
        return like.new_empty(shape)
    return torch.frombuffer(mmap.mmap(-1, size_bytes), dtype=like.dtype).view(shape)
