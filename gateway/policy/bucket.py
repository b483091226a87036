"""Length bins, and the buckets made of them.

A prompt's *bin* is fixed and fine (8 to the octave); a *bucket* is a run of adjacent bins.  The queue keeps its
tickets by bin, so that splitting and merging buckets changes a short table and moves no ticket.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Protocol

from gateway.request import Head

_BITS = 3
_PER_OCTAVE = 1 << _BITS

Bounds = tuple[int, ...]
"""A bucket table: ascending first bins of the buckets, the first of them 0."""
WHOLE: Bounds = (0,)
"""One bucket of all lengths."""


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
    """Index of the bucket that holds the bin."""
    return bisect_right(bounds, bin) - 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a bucket rule goes by."""

    bounds: Bounds
    queued: Mapping[int, int]
    """Waiting tickets per bin."""
    recent: Mapping[int, float]
    """Tickets of the recent past per bin, the older the lighter."""
    max_batch: int
    """N_max: rows that memory and settings allow in one batch."""
    longest_tokens: int
    """Lengths go up to this."""
    batch_cost_tokens: float
    """What starting one more batch costs, in prompt tokens that could be run meanwhile."""


class Reason(StrEnum):
    """Why a table changed."""

    CROWDED = "crowded"
    """More waited than a batch takes."""
    SPARSE = "sparse"
    """Fewer waited than a batch takes."""
    TRAFFIC = "traffic"
    """Another table costs less for the lengths that come."""


class BucketRule(Protocol):
    def bounds(self, traffic: Traffic) -> Bounds:
        """The bucket table from now on; `traffic.bounds` if nothing is to change."""

    def reason(self, before: Bounds, after: Bounds) -> Reason:
        """Why the rule changed a table."""


@dataclass(frozen=True, slots=True)
class Whole:
    """No buckets."""

    def bounds(self, traffic: Traffic) -> Bounds:
        return WHOLE

    def reason(self, before: Bounds, after: Bounds) -> Reason:
        return Reason.SPARSE


@dataclass(frozen=True, slots=True)
class Paper:
    """BucketServe's Algorithm 1.

    Fewer waiting than N_max: everything merges into one bucket.  Else a bucket that holds more than N_max, of
    which more than `theta` lie below the middle of its range, is cut there; one level per call, as published.
    The cut is moved to the bin's edge.
    """

    theta: float = 0.5

    def bounds(self, traffic: Traffic) -> Bounds:
        if sum(traffic.queued.values()) < traffic.max_batch:
            return WHOLE
        edges = [*map(first_tokens, traffic.bounds), traffic.longest_tokens + 1]
        cuts = [self._cut(low, up, traffic) for low, up in pairwise(edges)]
        return tuple(sorted({*traffic.bounds, *(cut for cut in cuts if cut is not None)}))

    def reason(self, before: Bounds, after: Bounds) -> Reason:
        return Reason.CROWDED if len(after) > len(before) else Reason.SPARSE

    def _cut(self, low: int, up: int, traffic: Traffic) -> int | None:
        """The bin at which the bucket of lengths [low, up) splits, if it does."""
        first, last, middle = bin_of(low), bin_of(up - 1), bin_of((low + up) // 2)
        if not first < middle <= last:
            return None
        size = sum(count for bin, count in traffic.queued.items() if first <= bin <= last)
        small = sum(count for bin, count in traffic.queued.items() if first <= bin < middle)
        return middle if size > traffic.max_batch and small > self.theta * size else None


def groups(bounds: Sequence[int], heads: Iterable[Head]) -> list[list[Head]]:
    """The heads by bucket, the bucket whose earliest ticket comes first in front.

    The papers leave open which bucket goes next; the earliest virtual deadline keeps the class's promise.
    """
    buckets: dict[int, list[Head]] = {}
    for head in heads:
        buckets.setdefault(bucket_of(bounds, head.bin), []).append(head)
    return sorted(buckets.values(), key=lambda heads: min((head.score, head.ticket) for head in heads))
