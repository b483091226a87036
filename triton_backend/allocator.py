"""The C library's allocator, told to keep what is freed.

Every step allocates and frees the same few tensors of some megabytes.  Left alone, glibc takes each from the
system and gives it back, and the first touch of each page costs more than the arithmetic on it: with prompts of
1,024 tokens an element-wise operation takes three times as long (benchmarks/README.md).
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""
KEPT_BYTES = 2**30
"""Freed memory at the heap's end that is kept, at most."""
LARGEST_KEPT_BYTES = 2**25
"""Larger blocks are taken from the system and given back one by one; glibc allows no more."""


def keep_freed() -> None:
    """For the whole process; nothing happens where the C library is another one.  Threads that start later share
    one heap, as those of their own are bounded by 64 MiB."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
