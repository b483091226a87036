"""How much of the predicted work a replica really does in a second, while there is work enough.

Predictions of engine time are sums of parts measured one by one; how the parts mix, and what limits the mix
(memory, rows, targets), shows only here.

What it does while there is not work enough is the least that it can do, and tells something if nothing else does.
Else one that was slow for a while would count as slow for ever: admission would let so little wait for it that it
would never be measured again.
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
LEAST_WINDOW_S = 30.0
"""The least is what is done in so long a time in which nothing was measured: work is claimed at once and done bit
by bit."""


class Drain:
    """Times are on the caller's clock."""

    def __init__(self) -> None:
        self.rate = 1.0
        """Predicted engine seconds of work claimed in a second."""
        self._busy: _Window | None = None
        """While more waits."""
        self._any: _Window | None = None
        """Since something was measured."""

    def note(self, claimed: Sequence[Ticket], more_waits: bool, held_s: float, now_s: float) -> None:
        """These leave the queue for an engine that had so many seconds of work, done or not; without more waiting,
        it says only how much can at least."""
        self._note_least(claimed, held_s, now_s)
        if not more_waits:
            self._busy = None
            return
        if self._busy is None:
            self._busy = _Window(held_s, now_s)
            return
        self._busy.add(claimed)
        lasted_s = now_s - self._busy.since_s
        if lasted_s >= WINDOW_S and (self._busy.num_claimed >= MIN_TICKETS or lasted_s >= MAX_WINDOW_S):
            self.rate += SMOOTHING * (self._busy.claimed_s / lasted_s - self.rate)
            self._busy = _Window(held_s, now_s)
            self._any = None

    def pause(self) -> None:
        """What leaves the queue is not known for a while."""
        self._busy = self._any = None

    def _note_least(self, claimed: Sequence[Ticket], held_s: float, now_s: float) -> None:
        if self._any is not None and now_s - self._any.since_s >= LEAST_WINDOW_S:
            self.rate = max(self.rate, self._any.least_s(held_s) / (now_s - self._any.since_s))
            self._any = None
        if self._any is None:
            self._any = _Window(held_s, now_s)
        self._any.add(claimed)


class _Window:
    """What left the queue since some time, for an engine that had so much work then."""

    def __init__(self, held_s: float, since_s: float) -> None:
        self.since_s = since_s
        self.claimed_s = 0.0
        self.num_claimed = 0
        self._held_s = held_s

    def add(self, claimed: Sequence[Ticket]) -> None:
        self.claimed_s += sum(ticket.seconds for ticket in claimed)
        self.num_claimed += len(claimed)

    def least_s(self, held_s: float) -> float:
        """What has surely been done if the engine has so much now: less than what it was given, if it has more
        than it had."""
        return self.claimed_s - max(0.0, held_s - self._held_s)
