"""How much a tenant may use, and how far it has used it."""

import msgspec


class Quota(msgspec.Struct, frozen=True):
    """A tenant's bounds, over all gateways together.  None: as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    max_streams: int | None = None
    """Requests at a time, streamed or not."""


UNLIMITED = Quota()


class Level(msgspec.Struct, frozen=True):
    """One bound per minute."""

    limit: int
    remaining: int
    reset_s: float
    """Until all of it is there again, if nothing more is used."""


class Allowance(msgspec.Struct, frozen=True):
    """What a tenant has left after a reservation, granted or not.  None: no such bound."""

    requests: Level | None = None
    tokens: Level | None = None
