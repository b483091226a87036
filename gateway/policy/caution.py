"""How much of a replica's KV memory batches are planned into: less after it was out of memory, then slowly more
(additive increase, multiplicative decrease).
"""

DECREASE = 0.75
INCREASE_PER_S = 0.01
PAUSE_S = 1.0
"""One decrease in so long: the rows that were too many are still there when the next error comes."""


class Caution:
    def __init__(self, most: float, errors_total: int) -> None:
        """`most` is the factor without any errors; those so far are somebody else's."""
        self.factor = most
        self._most = most
        self._errors_total = errors_total
        self._heard_s: float | None = None
        self._decreased_s = float("-inf")

    def skip(self, errors_total: int) -> None:
        """Nobody listened for a while; what errors there were meanwhile are somebody else's."""
        self._errors_total = errors_total

    def heard(self, errors_total: int, now_s: float) -> None:
        """So many out-of-memory errors were there by now."""
        if self._heard_s is not None:
            self.factor = min(self._most, self.factor + INCREASE_PER_S * (now_s - self._heard_s))
        self._heard_s = now_s
        if errors_total > self._errors_total and now_s - self._decreased_s >= PAUSE_S:
            self.factor *= DECREASE
            self._decreased_s = now_s
        self._errors_total = errors_total
