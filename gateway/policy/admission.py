"""May a request come in, and if not, when should it come back?"""

from typing import NamedTuple

MAX_RETRY_S = 120.0
"""Clients of the OpenAI libraries do not retry at all when told to wait longer."""


class TooLong(NamedTuple):
    """No replica can hold the prompt and what it asks for."""

    limit_tokens: int
    needed_tokens: int


def answer_tokens(prompt_tokens: int, max_tokens: int | None, limit_tokens: int) -> int | TooLong:
    """How many tokens the answer may have; without `max_tokens`, what `limit_tokens` leaves (at least 1)."""
    left = limit_tokens - prompt_tokens
    if left < (max_tokens or 1):
        return TooLong(limit_tokens, prompt_tokens + (max_tokens or 1))
    return max_tokens or left


def retry_after_s(queued_tokens: int, prefill_tokens_per_s: float, jitter: float) -> float:
    """When to try again: once half of the queue has drained, spread over that much again by `jitter` in [0, 1)
    so that refused clients do not return together.  Between 1 and 120 s."""
    drain_s = queued_tokens / prefill_tokens_per_s if prefill_tokens_per_s > 0 else 2.0
    return min(max(1.0, drain_s * (0.5 + 0.5 * jitter)), MAX_RETRY_S)
