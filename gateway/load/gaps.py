"""Gaps between tokens, counted in a histogram of fixed size: a million requests have hundreds of millions.

Its bins are geometric and 2 % wide, so a percentile is off by at most 1 %.
"""

import math

import numpy as np
from numpy.typing import NDArray

_SMALLEST_S = 1e-5
_BINS_PER_E_FOLD = 50
NUM_BINS = 1 + round(math.log(1e4 / _SMALLEST_S) * _BINS_PER_E_FOLD)
"""Up to 10,000 s; bin 0 is everything below 10 microseconds."""

Counts = NDArray[np.int64]


def bin_of(gap_s: float) -> int:
    if gap_s <= _SMALLEST_S:
        return 0
    return min(1 + int(math.log(gap_s / _SMALLEST_S) * _BINS_PER_E_FOLD), NUM_BINS - 1)


def bins_of(gaps_s: NDArray[np.float64]) -> NDArray[np.int64]:
    logs = np.log(np.maximum(gaps_s, _SMALLEST_S) / _SMALLEST_S)
    return np.where(
        gaps_s <= _SMALLEST_S, 0, np.minimum(1 + (logs * _BINS_PER_E_FOLD).astype(np.int64), NUM_BINS - 1)
    )


def middles_s() -> NDArray[np.float64]:
    """Geometric middle of each bin."""
    middles = _SMALLEST_S * np.exp((np.arange(NUM_BINS) - 0.5) / _BINS_PER_E_FOLD)
    middles[0] = 0.0
    return middles


def quantile_s(counts: Counts, part: float) -> float | None:
    """None if nothing was counted."""
    total = int(counts.sum())
    if not total:
        return None
    index = int(np.searchsorted(np.cumsum(counts), part * (total - 1), side="right"))
    return float(middles_s()[index])


def mean_s(counts: Counts) -> float | None:
    total = int(counts.sum())
    return float(counts @ middles_s()) / total if total else None
