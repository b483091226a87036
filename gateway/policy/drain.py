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

    def claimed(self, seconds: float) -> None:
        """So much work left the queue."""
        self._claimed_s += seconds

    def saturated(self, now_s: float) -> None:
        """Work is waiting and there is no room for it."""
        if self._since_s is None:
            self._since_s, self._claimed_s = now_s, 0.0
        elif now_s - self._since_s >= WINDOW_S and self._claimed_s:
            measured = self._claimed_s / (now_s - self._since_s)
            self.rate += SMOOTHING * (measured - self.rate)
            self._since_s, self._claimed_s = now_s, 0.0

    def idle(self) -> None:
        """Nothing waits: what is claimed from here on says nothing of what could be."""
        self._since_s = None
