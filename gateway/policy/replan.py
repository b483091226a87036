"""When the bucket table is thought over: not at every batch, but when the traffic has changed."""

from collections.abc import Mapping

from gateway.policy import boundaries
from gateway.policy.bucket import Bounds, BucketRule, Paper, Traffic
from gateway.policy.fading import Fading

HALF_LIFE_S = 30.0
"""After so long a ticket counts half in the recent traffic."""
PAUSE_S = 1.0
"""Between two looks at the traffic."""
MIN_NEW = 32
"""Tickets started since the last look that are worth another: fewer tell nothing of the traffic."""
MIN_DRIFT = 0.1
"""Change of the traffic since the last look that is worth another: a tenth of all tickets lie elsewhere."""


class Replanner:
    """Applies a bucket rule to what one driver sees."""

    def __init__(self, rule: BucketRule) -> None:
        self._rule = rule
        self._recent = Fading(HALF_LIFE_S)
        self._looked: Mapping[int, float] = {}
        self._looked_depth = 0
        self._num_new = 0
        self._next_s = 0.0

    def note(self, bin: int, now_s: float) -> None:
        """A ticket of this bin was started."""
        self._recent.add(bin, 1.0, now_s)
        self._num_new += 1

    def bounds(
        self,
        bounds: Bounds,
        queued: Mapping[int, int],
        max_batch: int,
        longest_tokens: int,
        batch_cost_tokens: float,
        now_s: float,
    ) -> Bounds:
        """The table from now on.  The published rule is applied at every batch, as published."""
        if not isinstance(self._rule, Paper) and not self._is_due(sum(queued.values()), now_s):
            return bounds
        traffic = Traffic(bounds, queued, self._recent.read(now_s), max_batch, longest_tokens, batch_cost_tokens)
        return self._rule.bounds(traffic)

    def _is_due(self, waiting: int, now_s: float) -> bool:
        if now_s < self._next_s or self._num_new < MIN_NEW:
            return False
        self._next_s, self._num_new = now_s + PAUSE_S, 0
        recent, depth = self._recent.read(now_s), waiting.bit_length()
        if depth == self._looked_depth and boundaries.drift(recent, self._looked) < MIN_DRIFT:
            return False
        self._looked, self._looked_depth = recent, depth
        return True
