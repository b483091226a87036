"""How much work comes in a second, by how long it may wait.

A request that may wait long is passed by all that come after it and may not.  Whoever admits it has to reckon with
them, and the best guess of who comes is who came lately.
"""

from math import frexp, log

from gateway.policy.fading import Fading

HALF_LIFE_S = 10.0
"""After so long an arrival counts half."""


class Demand:
    """Of one class.  `seconds` are predicted engine seconds; times are on the caller's clock."""

    def __init__(self) -> None:
        self._seconds = Fading(HALF_LIFE_S)
        """By octave of the slack."""

    def note(self, slack_s: float, seconds: float, now_s: float) -> None:
        """A request came, whether it is let in or not."""
        self._seconds.add(octave(slack_s), seconds, now_s)

    def tighter(self, slack_s: float, now_s: float) -> float:
        """Engine seconds in a second of requests that may wait less by half at least."""
        at = octave(slack_s)
        work = sum(seconds for other, seconds in self._seconds.read(now_s).items() if other < at - 1)
        return work * log(2) / HALF_LIFE_S


def octave(slack_s: float) -> int:
    """Slacks of one octave are within a factor of two."""
    return frexp(slack_s)[1]
