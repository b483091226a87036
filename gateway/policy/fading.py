"""Sums of what happened lately, by key: the older the lighter."""

from math import log

_MAX_WEIGHT = 1e9
_LEAST = 1e-4
"""A sum that is less than this part of one new unit is forgotten when the weights begin anew."""


class Fading:
    """Amounts count half after `half_life_s`.  Times are on the caller's clock."""

    def __init__(self, half_life_s: float, begun_s: float = 0.0) -> None:
        """`begun_s`: from when on everything is added, for `seen_s`."""
        self._half_life_s = half_life_s
        self._begun_s = begun_s
        self._sums: dict[int, float] = {}
        self._since_s = begun_s
        """When an amount weighed as it is."""

    def add(self, key: int, amount: float, now_s: float) -> None:
        # What is new weighs more, which comes to the same as all that is old weighing less.
        weight = self._weight(now_s)
        if weight > _MAX_WEIGHT:
            self._sums = {k: old / weight for k, old in self._sums.items() if old > _LEAST * weight}
            self._since_s, weight = now_s, 1.0
        self._sums[key] = self._sums.get(key, 0.0) + weight * amount

    def read(self, now_s: float) -> dict[int, float]:
        """What the amounts come to now."""
        weight = self._weight(now_s)
        return {key: total / weight for key, total in self._sums.items()}

    def seen_s(self, now_s: float) -> float:
        """Seconds since `begun_s`, each at the weight of what came in it: a sum over them is an amount a second,
        and not only once the sum has forgotten its beginning."""
        forgotten: float = 2.0 ** ((self._begun_s - now_s) / self._half_life_s)
        return self._half_life_s / log(2) * (1.0 - forgotten)

    def _weight(self, now_s: float) -> float:
        weight: float = 2.0 ** min(64.0, (now_s - self._since_s) / self._half_life_s)
        return weight
