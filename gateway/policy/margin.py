"""How much of the time until a target may be planned for, learned from promises kept and missed.

What is estimated wrongly shows as promises missed, so the part is lowered when one is missed and raised a little
when one is kept that was planned tightly: it settles where `KEPT` of those are kept, whatever the error is.
"""

KEPT = 0.97
"""Part of the promises that were planned tightly which is to be kept."""
TIGHT = 0.5
"""Planned for more than this part of what was allowed: only then it says something that the promise was kept."""
FIRST, LEAST, MOST = 0.85, 0.3, 1.0
_STEP = 0.02


class Margin:
    def __init__(self) -> None:
        self.part = FIRST
        """Of the time until a target."""

    def learn(self, planned_part: float, kept: bool) -> None:
        """A request got its first token; `planned_part` of its target was what it was predicted to take."""
        if not kept:
            self.part = max(LEAST, self.part - _STEP * KEPT)
        elif planned_part > TIGHT * self.part:
            self.part = min(MOST, self.part + _STEP * (1 - KEPT))
