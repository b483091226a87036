"""How much of the predicted work a replica really does in a second, while there is work enough.

Predictions of engine time are sums of parts measured one by one; how the parts mix, and what limits the mix
(memory, rows, targets), shows only here.
"""

WINDOW_S = 2.0
"""A measurement lasts so long at least, as work is claimed in batches."""
SMOOTHING = 0.3
"""Weight of the newest measurement."""


class Drain:
    def __init__(self) -> None:
        self.rate = 1.0
        """Predicted engine seconds of work claimed in a second."""
        self._since_s: float | None = None
        self._claimed_s = 0.0

    def note(self, seconds: float, more_waits: bool, now_s: float) -> None:
        """So much work leaves the queue; without more waiting, it says nothing of how much could."""
        if not more_waits:
            self._since_s = None
            return
        if self._since_s is None:
            self._since_s, self._claimed_s = now_s, 0.0
            return
        self._claimed_s += seconds
        lasted_s = now_s - self._since_s
        if lasted_s >= WINDOW_S:
            self.rate += SMOOTHING * (self._claimed_s / lasted_s - self.rate)
            self._since_s, self._claimed_s = now_s, 0.0
