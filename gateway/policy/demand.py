"""How much work comes in a second, by how long it may wait.

A request that may wait long is passed by all that come after it and may not.  Whoever admits it has to reckon with
them, and the best guess of who comes is who came lately.
"""

from math import frexp, log

HALF_LIFE_S = 10.0
"""After so long an arrival counts half."""
_MAX_WEIGHT = 1e6


class Demand:
    """Of one class.  `seconds` are predicted engine seconds; times are on the caller's clock."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        """By octave of the slack; the newer the heavier."""
        self._since_s = 0.0

    def note(self, slack_s: float, seconds: float, now_s: float) -> None:
        """A request came, whether it is let in or not."""
        weight = self._weight(now_s)
        if weight > _MAX_WEIGHT:
            self._seconds = {at: s / weight for at, s in self._seconds.items()}
            self._since_s, weight = now_s, 1.0
        at = octave(slack_s)
        self._seconds[at] = self._seconds.get(at, 0.0) + weight * seconds

    def tighter(self, slack_s: float, now_s: float) -> float:
        """Engine seconds in a second of requests that may wait less by half at least."""
        at = octave(slack_s)
        work = sum(seconds for other, seconds in self._seconds.items() if other < at - 1)
        per_s: float = work / self._weight(now_s) * log(2) / HALF_LIFE_S
        return per_s

    def _weight(self, now_s: float) -> float:
        weight: float = 2.0 ** min(64.0, (now_s - self._since_s) / HALF_LIFE_S)
        return weight


def octave(slack_s: float) -> int:
    """Slacks of one octave are within a factor of two."""
    return frexp(slack_s)[1]
