"""How much work comes in a second, by how long it may wait.

A request that may wait long is passed by all that come after it and may not.  Whoever admits it has to reckon with
them, and the best guess of who comes is who came lately.
"""

from collections.abc import Iterable, Mapping
from math import frexp, inf

from gateway.policy.fading import Fading

HALF_LIFE_S = 5.0
"""After so long an arrival counts half."""
LEAST_S = 1.0
"""What comes at once in the beginning is taken to be the work of so long."""
SILENCE_S = 30.0
"""What was before says nothing of what comes."""


class Demand:
    """Of one class.  `seconds` are predicted engine seconds; times are on the caller's clock."""

    def __init__(self) -> None:
        self._seconds = Fading(HALF_LIFE_S)
        """By octave of the slack."""
        self._last_s = -inf
        """When a request came last."""

    def note(self, slack_s: float, seconds: float, now_s: float) -> None:
        """A request came, whether it is let in or not."""
        if now_s - self._last_s > SILENCE_S:
            self._seconds = Fading(HALF_LIFE_S, now_s)
        self._last_s = now_s
        self._seconds.add(octave(slack_s), seconds, now_s)

    def rates(self, now_s: float) -> dict[int, float]:
        """Engine seconds in a second, by octave of the slack."""
        seen_s = max(LEAST_S, self._seconds.seen_s(now_s))
        return {at: seconds / seen_s for at, seconds in self._seconds.read(now_s).items()}


def tighter(slack_s: float, rates: Iterable[Mapping[int, float]]) -> float:
    """Engine seconds in a second of requests that may wait less by half at least, in several gateways."""
    at = octave(slack_s)
    return sum(rate for each in rates for other, rate in each.items() if other < at - 1)


def octave(slack_s: float) -> int:
    """Slacks of one octave are within a factor of two."""
    return frexp(slack_s)[1]
