"""Which gateway should drive which replica: each about as many as any other.

Gateways decide for themselves, from one count that all of them see; the store's lease settles ties.
"""

from collections.abc import Mapping


def takes(mine: int, others: Mapping[str, int]) -> bool:
    """Whether a gateway that drives `mine` should take a free replica; `others` are how many each other drives."""
    return mine <= min(others.values(), default=mine)


def gives(mine: int, others: Mapping[str, int]) -> bool:
    """Whether it should hand one over: another would still have fewer or as many."""
    return mine >= min(others.values(), default=mine) + 2
