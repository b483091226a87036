"""A device without memory, in the many ways it is said."""

import errno

import torch

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


class OutOfMemory(Exception):
    """The device had no memory for the step; nothing has changed."""


def is_shortage(error: BaseException | None) -> bool:
    """Whether it says that there was no memory.  Torch's allocator for CPUs has no error of its own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
