"""Where to cut lengths into buckets: the cheapest table for the traffic there is, by dynamic programming.

BucketServe takes midpoints because the best cuts are said to be too expensive to compute.  Over a grid of bins
they are not: with N non-empty bins, every bucket of adjacent bins has a cost, and the best table of K buckets
is a shortest path, O(K N^2).  The published rule has flaws that this one has not: here traffic whose majority is
long is cut too, all cuts come at once, and the table stays while the traffic stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.policy.bucket import WHOLE, Bounds, Reason, Traffic, bucket_of, first_tokens

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Optimal:
    """The bounds that minimise expected padding and batch cost of the recent traffic."""

    max_buckets: int = 16
    min_width_tokens: int = 16
    """No bucket is narrower: below this, padding is no work worth a batch of its own."""
    min_gain: float = 0.05
    """Hysteresis: the table changes only if its cost falls by this part."""

    def bounds(self, traffic: Traffic) -> Bounds:
        if not traffic.recent:
            return WHOLE
        costs = Costs(traffic)
        best = costs.best(self.max_buckets, self.min_width_tokens)
        is_better = costs.of(best) < (1 - self.min_gain) * costs.of(traffic.bounds)
        return best if is_better else traffic.bounds

    def reason(self, before: Bounds, after: Bounds) -> Reason:
        return Reason.TRAFFIC


class Costs:
    """What tables cost in prompt tokens, per round: the time in which as many tickets come as wait now.

    A bucket that gets n of a round's tickets sends max(min(1, n), n / max_batch) batches.  In each batch all are
    padded to about the bucket's longest, except that a lone ticket needs none.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._bins = sorted(traffic.recent)
        total = sum(traffic.recent.values())
        waiting = max(1, sum(traffic.queued.values()))
        counts = np.array([traffic.recent[bin] * waiting / total for bin in self._bins])
        self._lengths = np.array([_longest(bin) for bin in self._bins], float)
        self._tickets = _prefix(counts)
        self._tokens = _prefix(counts * self._lengths)
        self._max_batch = traffic.max_batch
        self._batch_cost_tokens = traffic.batch_cost_tokens

    def of(self, bounds: Bounds) -> float:
        """The cost of a table."""
        buckets = np.array([bucket_of(bounds, bin) for bin in self._bins])
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        ends = np.append(starts[1:], len(buckets))
        return float(self._cost(starts, ends).sum())

    def best(self, max_buckets: int, min_width_tokens: int) -> Bounds:
        """The cheapest table."""
        num = len(self._bins)
        at = np.arange(num)
        cost = self._cost(at[:, None], at + 1)
        # The first bucket begins at 0, and the last one has no end: it is never too narrow.
        lows = np.array([0, *map(first_tokens, self._bins[1:])])
        too_narrow = self._lengths[:-1] - lows[:, None] + 1 < min_width_tokens
        cost[:, :-1][too_narrow] = np.inf
        cost[np.tril_indices(num, -1)] = np.inf
        best = cost[0]
        cuts: list[NDArray[np.intp]] = []
        cheapest, count = best[-1], 1
        for used in range(2, min(max_buckets, num) + 1):
            # One bucket more: the last one begins at `start`, the others cover what is before.
            through = best[:-1, None] + cost[1:, :]
            cuts.append(through.argmin(axis=0) + 1)
            best = through.min(axis=0)
            if best[-1] < cheapest:
                cheapest, count = best[-1], used
        return self._table(cuts[: count - 1])

    def _table(self, cuts: list[NDArray[np.intp]]) -> Bounds:
        starts: list[int] = []
        last = len(self._bins) - 1
        for choice in reversed(cuts):
            start = int(choice[last])
            starts.append(self._bins[start])
            last = start - 1
        return (0, *reversed(starts))

    def _cost(self, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> Floats:
        """Of the buckets of bins [start, end)."""
        tickets = self._tickets[ends] - self._tickets[starts]
        tokens = self._tokens[ends] - self._tokens[starts]
        padding = self._lengths[ends - 1] * tickets - tokens
        together = np.minimum(tickets, self._max_batch)
        batches = np.maximum(np.minimum(1.0, tickets), tickets / self._max_batch)
        cost: Floats = padding * (1 - 1 / np.maximum(1.0, together)) + self._batch_cost_tokens * batches
        return cost


def _longest(bin: int) -> int:
    return first_tokens(bin + 1) - 1


def _prefix(values: Floats) -> Floats:
    return np.concatenate(((0.0,), values.cumsum()))


def drift(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """How far apart two histograms of bins are: total variation distance, 0 to 1; 1 if only one is empty."""
    if not one or not other:
        return float(bool(one) != bool(other))
    ones, others = sum(one.values()), sum(other.values())
    bins = {*one, *other}
    return 0.5 * sum(abs(one.get(bin, 0.0) / ones - other.get(bin, 0.0) / others) for bin in bins)
