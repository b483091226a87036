"""The highest load at which the attainment stays at or above a target: a walk, then halvings where it is crossed.

All loads are per second; nothing here knows what is measured.
"""

from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from typing import TypeVar

LOWEST_PART = 4.0**-5
"""Of the first load tried: if even that misses the highest target, nothing lower is tried."""
HIGHEST_PART = 32.0

T = TypeVar("T")


def curve(
    measure: Callable[[float], T],
    attainment: Callable[[T], float],
    start: float,
    targets: tuple[float, ...],
    halvings: int,
) -> dict[float, T]:
    """By load, ascending: as much of the curve as the targets' first crossings need."""
    seen = {start: measure(start)}
    load = start
    while attainment(seen[load]) < max(targets) and load > LOWEST_PART * start:
        load /= 4.0
        seen[load] = measure(load)
    load = start
    while attainment(seen[max(seen)]) >= min(targets) and load < HIGHEST_PART * start:
        load *= 2.0
        seen[load] = measure(load)
    for target in targets:
        for _ in range(halvings):
            bracket = crossing([(at, attainment(seen[at])) for at in sorted(seen)], target)
            if bracket is None:
                break
            middle = sqrt(bracket[0] * bracket[1])
            seen[middle] = measure(middle)
    return dict(sorted(seen.items()))


def crossing(points: list[tuple[float, float]], target: float) -> tuple[float, float] | None:
    """The neighbouring loads between which the attainment first falls below the target."""
    if not points or points[0][1] < target:
        return None
    for (load, _), (next_load, next_attainment) in pairwise(points):
        if next_attainment < target:
            return load, next_load
    return None
