"""What a request will take (UELLM's resource profile, second half)."""

from typing import NamedTuple

from gateway.request import Profile
from triton_backend.memory import KVLayout


class Resources(NamedTuple):
    """Sizes in bytes, engine time in seconds."""

    kv_bytes: int
    """At its peak, if the answer gets its upper length."""
    prefill_s: float
    decode_s: float
    """For the expected length."""


def resources(
    profile: Profile, prompt_tokens: int, layout: KVLayout, prefill_tokens_per_s: float, step_s: float
) -> Resources:
    """`step_s` is the time of one decode step.  A prefill rate of 0 is not known yet: 0 s."""
    # The last token drawn is never stored.
    room_tokens = layout.room_tokens(prompt_tokens + profile.upper_tokens - 1)
    prefill_s = prompt_tokens / prefill_tokens_per_s if prefill_tokens_per_s else 0.0
    return Resources(room_tokens * layout.bytes_per_token, prefill_s, profile.expected_tokens * step_s)
