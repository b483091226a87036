"""The line of those who were refused: each is told to come back when the line has reached it.

A refused client that returns at a random moment of an overload meets the same overload.  So every refusal
books a place in a line that advances at the rate at which work is done; until then the place counts as work
to come, and keeps newcomers from taking it.  Only as much of it counts as clients have been seen to return,
and only clients that tell a first request from a return have a place: the others could not be let in by it.
"""

from collections import deque

MAX_RETRY_S = 120.0
"""Clients of the OpenAI libraries do not retry at all when told to wait longer."""
MIN_RETRY_S = 1.0
GRACE_S = 10.0
"""So long after its time a client may still return and find its place."""
SPEED = 0.5
"""Part of the rate of work at which the line advances; the rest goes to newcomers and to errors of the rate."""
SPREAD = 0.1
"""Part of the wait over which returns are spread."""
_SMOOTHING = 0.02
"""Weight of one client in the share of those who return."""


def guess(late_s: float, jitter: float) -> float:
    """For a client without a place: seconds until what is in its way has gone, up to twice that by `jitter` in
    [0, 1), so that not all return together; between 1 and 120."""
    return min(max(MIN_RETRY_S, late_s) * (1 + jitter), MAX_RETRY_S)


class Line:
    """One class's line.  Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._places: deque[tuple[float, float]] = deque()
        self._end_s = 0.0
        self._returning = 1.0
        """Share of the refused that come back; believed in until they do not."""

    def book(self, now_s: float, late_s: float, seconds: float, rate: float, jitter: float) -> float:
        """A place for a call that takes so many engine seconds and is `late_s` late: seconds until it should come
        back, spread by `jitter` in [0, 1); between 1 and 120."""
        end_s = max(self._end_s, now_s + late_s)
        wait_s = (end_s - now_s) * (1 + SPREAD * jitter)
        if wait_s >= MAX_RETRY_S:
            # No place is left: it may only try its luck.
            return MAX_RETRY_S * (1 - SPREAD * jitter)
        wait_s = max(MIN_RETRY_S * (1 + jitter), wait_s)
        # Nobody is told to wait longer, so there is no line beyond: else one large call would fill it for an hour.
        self._end_s = min(end_s + self._returning * seconds / (SPEED * rate), now_s + MAX_RETRY_S)
        self._places.append((now_s + wait_s, seconds))
        return wait_s

    def returned(self, now_s: float) -> None:
        """Somebody who was refused is here again."""
        self._forget(now_s)
        if self._places:
            self._places.popleft()
        self._returning += _SMOOTHING * (1 - self._returning)

    def end_in_s(self, now_s: float) -> float:
        """How far from now the next place would be."""
        return max(0.0, self._end_s - now_s)

    def promised(self, now_s: float) -> list[tuple[float, float]]:
        """Work to be expected: seconds from now, and engine seconds."""
        self._forget(now_s)
        return [(due_s - now_s, self._returning * seconds) for due_s, seconds in self._places]

    def _forget(self, now_s: float) -> None:
        while self._places and self._places[0][0] + GRACE_S < now_s:
            self._places.popleft()
            self._returning -= _SMOOTHING * self._returning
