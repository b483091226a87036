"""Means over seeds with 95 % intervals (Student's t), and ratios of the same seeds."""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import t

LEVEL = 0.95


class Figure(NamedTuple):
    mean: float
    low: float
    high: float


def figure(values: Sequence[float]) -> Figure:
    """Of one value per seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Figure(mean, -inf, inf)
    half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / sqrt(len(values))
    return Figure(mean, mean - half, mean + half)


def ratio(values: Sequence[float], others: Sequence[float]) -> Figure | None:
    """Geometric mean of the seeds' ratios; None if a load of nothing is among them."""
    if min(*values, *others) <= 0.0:
        return None
    logs = figure([float(np.log(value / other)) for value, other in zip(values, others, strict=True)])
    return Figure(*(float(np.exp(log)) for log in logs))
