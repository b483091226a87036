"""How much of a quota per minute is used, in whole seconds; and what a reservation's answer says of it."""

from typing import NamedTuple

from gateway.ports import Denied, Granted
from gateway.quota import Allowance, Level, Quota

SECONDS = 61
"""What was used in a second counts until the minute after its end."""


class Use(NamedTuple):
    """Of one unit."""

    used: int
    last: int
    """The last second in which some was used; 0: none."""
    full: int
    """The second that must be a minute past to make room; 0: there is room."""


class Minute:
    def __init__(self) -> None:
        self._used: dict[int, int] = {}
        """By second, in order."""

    def add(self, second: int, amount: int) -> None:
        self._used[second] = self._used.get(second, 0) + amount

    def give_back(self, second: int, amount: int) -> None:
        """Only what the minute still counts can come back."""
        if second in self._used:
            self._used[second] -= max(0, amount)

    def look(self, second: int, more: int, limit: int | None) -> Use:
        """`more` is asked for."""
        self._used = {at: used for at, used in self._used.items() if at > second - SECONDS}
        last = full = 0
        total = sum(self._used.values())
        over = 0 if limit is None else total + more - limit
        for at, used in self._used.items():
            if used > 0:
                last, full = at, at if over > 0 else full
                over -= used
        return Use(total, last, full)


def answer(denied: str, now_s: float, requests: Use, tokens: Use, quota: Quota) -> Granted | Denied:
    """`denied` names what there is too much of; the uses are those after the reservation."""
    allowance = Allowance(
        _level(quota.requests_per_minute, requests, now_s), _level(quota.tokens_per_minute, tokens, now_s)
    )
    if not denied:
        return Granted(allowance)
    return Denied(
        denied, None if denied == "streams" else _past(max(requests.full, tokens.full), now_s), allowance
    )


def _level(limit: int | None, use: Use, now_s: float) -> Level | None:
    return None if limit is None else Level(limit, max(0, limit - use.used), _past(use.last, now_s))


def _past(second: int, now_s: float) -> float:
    """Until the second no longer counts."""
    return second + SECONDS - now_s if second else 0.0
