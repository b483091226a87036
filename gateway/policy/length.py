"""How long will the answer be?  A first profiler: the recent past's quantiles, for every request alike.

Its seam is what matters now: a prediction is a distribution's two figures, the expected length and an upper
quantile, never more than the request allows.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from gateway.request import Profile

UPPER_QUANTILE = 0.9
MIN_HISTORY = 32
"""Below this the prediction is all that the request allows: safe, at worst a smaller batch."""


class LengthRule(Protocol):
    """What of the profiler's prediction a preset goes by."""

    def profile(self, predicted: Profile, max_tokens: int) -> Profile: ...


@dataclass(frozen=True, slots=True)
class Predicted:
    """The prediction as it is (UELLM's resource profiler)."""

    def profile(self, predicted: Profile, max_tokens: int) -> Profile:
        return predicted


@dataclass(frozen=True, slots=True)
class Allowed:
    """Nothing is known: whatever the request allows."""

    def profile(self, predicted: Profile, max_tokens: int) -> Profile:
        return Profile(max_tokens, max_tokens)


class LengthHistory:
    """Output lengths of recently finished answers that ended by themselves or by their limit."""

    def __init__(self, size: int = 512) -> None:
        self._lengths: deque[int] = deque(maxlen=size)
        self._sorted: list[int] | None = None

    def observe(self, tokens: int) -> None:
        self._lengths.append(tokens)
        self._sorted = None

    def predict(self, max_tokens: int, ignore_eos: bool) -> Profile:
        """Expected and upper length of an answer of at most `max_tokens`, in tokens."""
        if ignore_eos or len(self._lengths) < MIN_HISTORY:
            return Profile(max_tokens, max_tokens)
        if self._sorted is None:
            self._sorted = sorted(self._lengths)
        upper = self._sorted[int(UPPER_QUANTILE * (len(self._sorted) - 1))]
        expected = sum(self._sorted) // len(self._sorted)
        return Profile(max(1, min(expected, max_tokens)), max(1, min(upper, max_tokens)))


def left_tokens(profile: Profile, drawn: int, max_left: int) -> int:
    """How many more tokens to reckon with, after `drawn` of them and with at most `max_left` to come.

    A row that has outgrown its prediction is taken to be two thirds done.
    """
    if drawn < profile.upper_tokens:
        return min(profile.upper_tokens - drawn, max_left)
    return min(max(drawn // 2, 16), max_left)
