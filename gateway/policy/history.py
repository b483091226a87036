"""Finished answers: what is learned from, and what the recent ones say of the next.

An answer that its limit cut says only that it would have been longer.  It counts as long as one of the longer
answers, whole or cut in turn, and as endless if there is none (redistribution to the right, as Kaplan and Meier's
estimate does).
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from gateway.policy.features import FORMAT, Features
from gateway.policy.snapshot import MAX_TOKENS

_GOLDEN = (math.sqrt(5) - 1) / 2
_REFRESH = 16
"""The quantiles are taken anew after every such part of the history."""


class Seen(msgspec.Struct, frozen=True, array_like=True, order=True):
    """An answer's length."""

    tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    is_cut: bool
    """It ended at its limit."""


class Sample(msgspec.Struct, frozen=True, array_like=True, tag=FORMAT):
    """A finished request, as gateways tell each other."""

    features: Features
    seen: Seen


def whole_lengths(seen: Sequence[Seen]) -> list[float]:
    """How long the answers, given in ascending order, would have been uncut; inf if nobody knows."""
    whole = [math.inf if one.is_cut else float(one.tokens) for one in seen]
    for at in reversed([at for at, one in enumerate(seen) if one.is_cut]):
        if longer := len(seen) - at - 1:
            # Multiples of the golden ratio spread evenly over the longer ones.
            whole[at] = whole[at + 1 + int(at * _GOLDEN % 1 * longer)]
    return whole


class LengthHistory:
    """The lengths of the last `size` finished answers."""

    def __init__(self, size: int = 512) -> None:
        self._size = size
        self._arrived: deque[Seen] = deque()
        self._sorted: list[Seen] = []
        self._whole = np.empty(0)
        self._num_new = 0
        self._quantiles: dict[float, float] = {}
        self._expected: dict[int, float] = {}
        """By level and by limit, until all is taken anew."""

    def __len__(self) -> int:
        return len(self._arrived)

    def observe(self, tokens: int, is_cut: bool = False) -> None:
        if len(self._arrived) == self._size:
            del self._sorted[bisect_left(self._sorted, self._arrived.popleft())]
        seen = Seen(tokens, is_cut)
        self._arrived.append(seen)
        insort(self._sorted, seen)
        self._num_new += 1

    def quantile(self, level: float) -> float:
        """The length that this part of the answers stays within, in tokens; inf if nobody knows."""
        self._refresh()
        quantile = self._quantiles.get(level)
        if quantile is None:
            quantile = self._quantiles[level] = self._whole.item(int(level * (len(self._whole) - 1)))
        return quantile

    def expected(self, max_tokens: int) -> float:
        """Mean length of an answer that is cut at `max_tokens`, in tokens."""
        self._refresh()
        expected = self._expected.get(max_tokens)
        if expected is None:
            expected = self._expected[max_tokens] = float(np.minimum(self._whole, max_tokens).mean())
        return expected

    def _refresh(self) -> None:
        if self._num_new > len(self) // _REFRESH:
            self._whole = np.sort(whole_lengths(self._sorted))
            self._num_new = 0
            self._quantiles, self._expected = {}, {}
