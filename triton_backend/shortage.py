"""A device without memory, in the many ways it is said."""

import errno
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

T = TypeVar("T")
Chunk = tuple[list[T], int, int]
"""Rows, and from where on how many tokens of each one's prompt."""

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


class OutOfMemory(Exception):
    """The device had no memory for the step; nothing has changed."""


def is_shortage(error: BaseException | None) -> bool:
    """Whether it says that there was no memory.  Torch's allocator for CPUs has no error of its own."""
    if isinstance(error, (OutOfMemory, torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


def halves(rows: list[T], start: int, length: int) -> tuple[Chunk[T], Chunk[T]] | None:
    """A chunk that did not fit, in two: of its rows, or of a single row's tokens; None: it is one token."""
    if len(rows) > 1:
        half = len(rows) // 2
        return (rows[:half], start, length), (rows[half:], start, length)
    half = length // 2
    return ((rows, start, half), (rows, start + half, length - half)) if half else None


def fitting(parts: Iterable[Callable[[], T]]) -> list[T]:
    """What the parts return, but for those that there was no memory for.  Raises OutOfMemory if that were all."""
    done: list[T] = []
    short = None
    for part in parts:
        try:
            done.append(part())
        except OutOfMemory as error:
            short = error
    if short and not done:
        raise short
    return done
