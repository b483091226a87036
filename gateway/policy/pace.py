"""How fast a replica's running rows get their tokens, and how much work that leaves room for.

A decode step takes `fixed_s + rows * per_row_s`, as measured.  What is left of the tightest target, the engine
spends on prompts (triton_backend.plan).
"""

import msgspec

DECODE_SHARE = 0.8
"""Part of the tightest time per token that decode steps may take; the rest is for chunks of prompts."""

MANY_ROWS = 32
"""That share a decode step when the cost of a token is reckoned."""


class Pace(msgspec.Struct, frozen=True):
    """What was measured; all zero: nothing yet, and no bound."""

    fixed_s: float = 0.0
    per_row_s: float = 0.0
    prefill_tokens_per_s: float = 0.0

    def decode_s(self, rows: int) -> float:
        """A decode step of so many rows."""
        return self.fixed_s + rows * self.per_row_s

    def keeps(self, tpot_s: float, rows: int) -> bool:
        """Whether so many rows can each have a token every `tpot_s`, with prompts run in between.  One row
        alone cannot be helped."""
        return rows <= 1 or self.decode_s(rows) <= DECODE_SHARE * tpot_s

    def decode_part(self, tpot_s: float, rows: int) -> float:
        """Part of the time that decode steps of so many rows take while prompts are run in between."""
        if not rows or tpot_s == float("inf"):
            return 0.0
        return min(DECODE_SHARE, self.decode_s(rows) / tpot_s)

    @property
    def step_tokens(self) -> float:
        """What a step costs however little it does, in prompt tokens that could be run meanwhile."""
        return self.fixed_s * self.prefill_tokens_per_s


UNKNOWN = Pace()


class Stopwatch:
    """Fits `fixed_s` and `per_row_s` to decode steps by least squares, the older the lighter."""

    _KEEP = 0.98
    """Weight that is left of a step after the next: some fifty steps count."""

    def __init__(self, known: Pace = UNKNOWN) -> None:
        """What was `known` counts as two steps, of one row and of many."""
        self._weight = self._rows = self._rows2 = self._s = self._rows_s = 0.0
        if known.fixed_s or known.per_row_s:
            for rows in (1, MANY_ROWS):
                self.note_decode(rows, known.decode_s(rows))

    def note_decode(self, rows: int, step_s: float) -> None:
        keep = self._KEEP
        self._weight = keep * self._weight + 1
        self._rows = keep * self._rows + rows
        self._rows2 = keep * self._rows2 + rows * rows
        self._s = keep * self._s + step_s
        self._rows_s = keep * self._rows_s + rows * step_s

    def pace(self, prefill_tokens_per_s: float) -> Pace:
        if not self._weight:
            return Pace(prefill_tokens_per_s=prefill_tokens_per_s)
        rows, s = self._rows / self._weight, self._s / self._weight
        variance = self._rows2 / self._weight - rows * rows
        covariance = self._rows_s / self._weight - rows * s
        # Neither may be negative; steps of one size tell nothing of the slope, and all counts as fixed.
        per_row_s = min(max(0.0, covariance / variance), s / rows) if variance > 0.01 else 0.0
        return Pace(s - per_row_s * rows, per_row_s, prefill_tokens_per_s)
