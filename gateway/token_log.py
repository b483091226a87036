"""What happened to a call's choices, as bytes that only grow: who reads them in order knows what the origin knew.

One entry after the other: kind, choice and a value, and for some what follows.  What cannot be read ends the log:
it and what comes after it is drawn again.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from gateway.request import FinishReason, TokenLogprob

_DRAWN, _SCORED, _ENDED, _DIED, _CLOSED = range(5)
_HEAD = struct.Struct("<BBI")
_SCORE = struct.Struct("<dB")
_ALTERNATIVE = struct.Struct("<Id")
_ENDS = [(FinishReason.STOP, ""), (FinishReason.LENGTH, ""), (FinishReason.LENGTH, "deadline")]

CLOSED = _HEAD.pack(_CLOSED, 0, 0)
"""Nobody may go on from here: the call has failed, or is too long."""


class Token(NamedTuple):
    choice: int
    token: int
    logprob: TokenLogprob | None


class Ended(NamedTuple):
    choice: int
    reason: FinishReason
    detail: str


class Died(NamedTuple):
    """Its engine died, now so many times."""

    choice: int
    deaths: int


class Closed(NamedTuple):
    pass


Entry = Token | Ended | Died | Closed


def drawn(choice: int, token: int, logprob: TokenLogprob | None) -> bytes:
    if logprob is None:
        return _HEAD.pack(_DRAWN, choice, token)
    alternatives = logprob.alternatives
    return b"".join(
        (
            _HEAD.pack(_SCORED, choice, token),
            _SCORE.pack(logprob.logprob, len(alternatives)),
            *(_ALTERNATIVE.pack(other, score) for other, score in alternatives),
        )
    )


def ended(choice: int, reason: FinishReason, detail: str) -> bytes:
    return _HEAD.pack(_ENDED, choice, _ENDS.index((reason, detail)))


def died(choice: int, deaths: int) -> bytes:
    return _HEAD.pack(_DIED, choice, deaths)


def read(log: bytes | bytearray, offset: int = 0) -> Iterator[tuple[int, Entry]]:
    """The entries from `offset` on, each with the offset after it."""
    while True:
        try:
            offset, entry = _read_one(log, offset)
        except (struct.error, LookupError):
            return
        yield offset, entry


def _read_one(log: bytes | bytearray, at: int) -> tuple[int, Entry]:
    """Raises struct.error, LookupError."""
    kind, choice, value = _HEAD.unpack_from(log, at)
    at += _HEAD.size
    match kind:
        case 0:
            return at, Token(choice, value, None)
        case 1:
            score, count = _SCORE.unpack_from(log, at)
            at += _SCORE.size
            places = range(at, at + count * _ALTERNATIVE.size, _ALTERNATIVE.size)
            others = [_ALTERNATIVE.unpack_from(log, place) for place in places]
            return places.stop, Token(choice, value, TokenLogprob(value, score, others))
        case 2:
            return at, Ended(choice, *_ENDS[value])
        case 3:
            return at, Died(choice, value)
        case 4:
            return at, Closed()
    raise LookupError(kind)
