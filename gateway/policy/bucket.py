"""Length bins, and the buckets made of them.

A prompt's *bin* is fixed and fine (8 to the octave); a *bucket* is a run of adjacent bins.  The queue keeps its
tickets by bin, so that splitting and merging buckets changes a short table and moves no ticket.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from gateway.request import Head

_BITS = 3
_PER_OCTAVE = 1 << _BITS


def bin_of(tokens: int) -> int:
    """The bin of a prompt length: exact below 16, then 8 bins to the octave."""
    if tokens < _PER_OCTAVE:
        return tokens
    shift = tokens.bit_length() - 1 - _BITS
    return (shift << _BITS) + (tokens >> shift)


def first_tokens(bin: int) -> int:
    """The shortest length in the bin: the inverse of `bin_of`."""
    if bin < _PER_OCTAVE:
        return bin
    shift, within = divmod(bin - _PER_OCTAVE, _PER_OCTAVE)
    return (_PER_OCTAVE + within) << shift


def bucket_of(bounds: Sequence[int], bin: int) -> int:
    """Index of the bucket that holds the bin; `bounds` are the buckets' first bins."""
    return bisect_right(bounds, bin) - 1


def paper(
    bounds: tuple[int, ...],
    queued: Mapping[int, int],
    max_batch: int,
    longest_tokens: int,
    theta: float = 0.5,
) -> tuple[int, ...]:
    """BucketServe's Algorithm 1 (PAPERS A2): the new bounds.

    `queued` counts waiting tickets per bin, `max_batch` is N_max, the batch that memory allows, and lengths go
    up to `longest_tokens`.  Fewer waiting than N_max: everything merges into one bucket.  Else a bucket that
    holds more than N_max, of which more than `theta` lie below the middle of its range, is cut there; one level
    per call, as published.  The cut is moved to the bin's edge.
    """
    if sum(queued.values()) < max_batch:
        return (0,)
    edges = [*map(first_tokens, bounds), longest_tokens + 1]
    cuts = [_cut(low, up, queued, max_batch, theta) for low, up in pairwise(edges)]
    return tuple(sorted({*bounds, *(cut for cut in cuts if cut is not None)}))


def _cut(low: int, up: int, queued: Mapping[int, int], max_batch: int, theta: float) -> int | None:
    """The bin at which the bucket of lengths [low, up) splits, if it does."""
    first, last, middle = bin_of(low), bin_of(up - 1), bin_of((low + up) // 2)
    if not first < middle <= last:
        return None
    size = sum(count for bin, count in queued.items() if first <= bin <= last)
    small = sum(count for bin, count in queued.items() if first <= bin < middle)
    return middle if size > max_batch and small > theta * size else None


def next_bucket(bounds: Sequence[int], heads: Iterable[Head]) -> list[Head]:
    """The heads of the bucket whose earliest ticket comes first; `heads` are of one class, at least one.

    The papers leave open which bucket goes next; the earliest virtual deadline keeps the class's promise.
    """
    buckets: dict[int, list[Head]] = {}
    for head in heads:
        buckets.setdefault(bucket_of(bounds, head.bin), []).append(head)
    return min(buckets.values(), key=lambda heads: min((head.score, head.ticket) for head in heads))
