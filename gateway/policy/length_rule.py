"""What of the profiler's prediction a preset goes by."""

from dataclasses import dataclass
from typing import Protocol

from gateway.request import Profile


class LengthRule(Protocol):
    def profile(self, predicted: Profile, max_tokens: int) -> Profile:
        """The length to reckon with."""


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
