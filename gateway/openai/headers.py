"""What a request's headers say of it (targets, and whether it has been refused before), and what an answer's
say of the quota."""

from collections.abc import Mapping
from math import ceil, isfinite

import msgspec

from gateway.errors import BadRequest
from gateway.openai.position import LAST_EVENT_ID
from gateway.quota import Allowance
from gateway.request import Request, Targets

TTFT = ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms")
TPOT = ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms")
DEADLINE = ("x-deadline-ms",)
KEEP_RUNNING = "x-keep-running"
RETRY_COUNT = "x-stainless-retry-count"
"""Sent by OpenAI's own clients: 0 at first."""
MAX_MS = 86_400_000.0


def applied(request: Request, headers: Mapping[str, str]) -> Request:
    """The request with what its headers add.  Lookup in `headers` must ignore case.  Raises BadRequest."""
    targets = Targets(_seconds(headers, TTFT), _seconds(headers, TPOT), _seconds(headers, DEADLINE))
    count = headers.get(RETRY_COUNT, "")
    num_retries = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else None
    return msgspec.structs.replace(
        request,
        targets=targets,
        keeps_running=_flag(headers, KEEP_RUNNING),
        num_retries=num_retries,
    )


def wants_ids(headers: Mapping[str, str], method: str) -> bool:
    """Whether a stream's events carry ids: for clients of server-sent events, which say so, and those that resume.
    Others get what OpenAI sends; benchmark clients (vLLM's, SGLang's) take every line for data."""
    return (
        method == "GET"
        or "text/event-stream" in headers.get("Accept", "")
        or LAST_EVENT_ID in headers
        or _flag(headers, KEEP_RUNNING)
    )


def _flag(headers: Mapping[str, str], name: str) -> bool:
    text = headers.get(name, "false").lower()
    if text not in ("true", "false"):
        raise BadRequest(f"The header '{name}' must be true or false.", param=name)
    return text == "true"


def _seconds(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        if (text := headers.get(name)) is not None:
            return _milliseconds(name, text) / 1000
    return None


def _milliseconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and 0 < value <= MAX_MS):
        raise BadRequest(f"The header '{name}' must be milliseconds, above 0 and up to {MAX_MS:.0f}.", param=name)
    return value


def rate_limits(allowance: Allowance) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*`, for the bounds there are."""
    fields = {}
    for unit, level in (("requests", allowance.requests), ("tokens", allowance.tokens)):
        if level is not None:
            fields[f"x-ratelimit-limit-{unit}"] = str(level.limit)
            fields[f"x-ratelimit-remaining-{unit}"] = str(level.remaining)
            fields[f"x-ratelimit-reset-{unit}"] = duration(level.reset_s)
    return fields


def duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 17ms."""
    ms = ceil(seconds * 1000)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest_ms / 1000:g}s"
