"""What a chunk of prompts takes, learned from recent ones.  Pure.

A chunk takes `fixed_s + tokens * per_token_s`: streaming the weights costs the same for one prompt as for ten, so
a rate alone would make short prompts look as dear together as one after the other.  In a step that running rows
share, it takes what it adds to theirs.
"""

from dataclasses import dataclass

_KEEP = 0.95
"""Weight that is left of a chunk after the next: some twenty count."""
_ENOUGH_SPREAD = 0.05
"""Least relative variance of the chunks' sizes that tells a fixed part from one that grows."""


@dataclass(slots=True)
class PrefillPace:
    """Least squares over (tokens, seconds) of chunks, padding included, the older the lighter."""

    _weight: float = 0.0
    _tokens: float = 0.0
    _tokens2: float = 0.0
    _s: float = 0.0
    _tokens_s: float = 0.0

    def note(self, tokens: int, seconds: float, decode_s: float = 0.0) -> None:
        """Count a chunk of a step that took so long; `decode_s` is what it takes without the chunk.

        At most half of a step is taken to be that: what is known of it may be old.
        """
        seconds -= min(decode_s, seconds / 2)
        self._weight = _KEEP * self._weight + 1
        self._tokens = _KEEP * self._tokens + tokens
        self._tokens2 = _KEEP * self._tokens2 + tokens * tokens
        self._s = _KEEP * self._s + seconds
        self._tokens_s = _KEEP * self._tokens_s + tokens * seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of recent chunks over their time; 0 until measured.  Not a mean of rates: the many short prompts
        would tell of what a chunk of a long one takes."""
        return self._tokens / self._s if self._s else 0.0

    def tokens_within(self, seconds: float) -> int | None:
        """Size of the largest chunk that takes no longer, 0 if none does; None: nothing was measured yet."""
        if not self._s:
            return None
        fixed_s, per_token_s = self._fit()
        return max(0, int((seconds - fixed_s) / per_token_s))

    def _fit(self) -> tuple[float, float]:
        """(fixed_s, per_token_s), neither negative; all of it grows if the chunks are too much alike to tell."""
        tokens, s = self._tokens / self._weight, self._s / self._weight
        variance = self._tokens2 / self._weight - tokens * tokens
        if variance <= _ENOUGH_SPREAD * tokens * tokens:
            return 0.0, s / tokens
        slope = (self._tokens_s / self._weight - tokens * s) / variance
        # A slope near zero would be noise, and would grant chunks of any size.
        per_token_s = min(max(slope, 0.1 * s / tokens), s / tokens)
        return s - per_token_s * tokens, per_token_s
