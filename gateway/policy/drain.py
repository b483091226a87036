"""How much of the predicted work a replica really does in a second, while there is work enough.

Predictions of engine time are sums of parts measured one by one; how the parts mix, and what limits the mix
(memory, rows, targets), shows only here.
"""

from collections.abc import Sequence

from gateway.request import Ticket

WINDOW_S = 2.0
"""A measurement lasts so long at least, as work is claimed in batches."""
MIN_TICKETS = 8
"""And takes in so many: the next one may be ten times the last."""
MAX_WINDOW_S = 10.0
"""An engine that takes nothing for so long is slow."""
SMOOTHING = 0.3
"""Weight of the newest measurement."""


class Drain:
    def __init__(self) -> None:
        self.rate = 1.0
        """Predicted engine seconds of work claimed in a second."""
        self._since_s: float | None = None
        self._claimed_s = 0.0
        self._num_claimed = 0

    def note(self, claimed: Sequence[Ticket], more_waits: bool, now_s: float) -> None:
        """These leave the queue; without more waiting, it says nothing of how much could."""
        if not more_waits:
            self._since_s = None
            return
        if self._since_s is None:
            self._begin(now_s)
            return
        self._claimed_s += sum(ticket.seconds for ticket in claimed)
        self._num_claimed += len(claimed)
        lasted_s = now_s - self._since_s
        if lasted_s >= WINDOW_S and (self._num_claimed >= MIN_TICKETS or lasted_s >= MAX_WINDOW_S):
            self.rate += SMOOTHING * (self._claimed_s / lasted_s - self.rate)
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._since_s, self._claimed_s, self._num_claimed = now_s, 0.0, 0
