"""What a gateway's admission tells the others: the work that came to it, and the line of those it refused.

A request is admitted by one gateway and waits among those of all.
"""

from collections.abc import Iterable

import msgspec

from gateway.policy.demand import Demand
from gateway.policy.line import Line
from gateway.request import ServiceClass

_MAX_AGE_S = 5.0
"""A gateway that says nothing for so long is no more."""


class Word(msgspec.Struct, frozen=True):
    """Of one class."""

    demand: dict[int, float]
    """Engine seconds that come in a second, by octave of the slack."""
    promised: list[tuple[float, float]]
    """Of those who were told to come back: seconds from now, and engine seconds; a second's together."""
    end_in_s: float
    """How far from now the next place in the line is."""


Card = dict[ServiceClass, Word]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Card)


def word(demand: Demand, line: Line, now_s: float) -> Word:
    by_second: dict[int, float] = {}
    for in_s, seconds in line.promised(now_s):
        by_second[int(in_s)] = by_second.get(int(in_s), 0.0) + seconds
    promised = [(float(in_s), seconds) for in_s, seconds in by_second.items()]
    return Word(demand.rates(now_s), promised, line.end_in_s(now_s))


def encode(card: Card) -> bytes:
    return _encoder.encode(card)


class Cards:
    """What the other gateways said last.  Times are on the caller's clock."""

    def __init__(self) -> None:
        self._cards: list[Card] = []
        self._read_s = 0.0

    def read(self, cards: Iterable[bytes], now_s: float) -> None:
        """Those of all others; one that is none is left out."""
        self._cards, self._read_s = [], now_s
        for raw in cards:
            try:
                self._cards.append(_decoder.decode(raw))
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                continue

    def demand(self, service_class: ServiceClass, now_s: float) -> list[dict[int, float]]:
        return [word.demand for word in self._words(service_class, now_s)]

    def promised(self, service_class: ServiceClass, now_s: float) -> list[tuple[float, float]]:
        """Seconds from now, and engine seconds."""
        age_s = now_s - self._read_s
        return [(in_s - age_s, work) for word in self._words(service_class, now_s) for in_s, work in word.promised]

    def end_in_s(self, service_class: ServiceClass, now_s: float) -> float:
        """Of the longest line."""
        ends_s = [word.end_in_s - (now_s - self._read_s) for word in self._words(service_class, now_s)]
        return max(ends_s, default=0.0)

    def _words(self, service_class: ServiceClass, now_s: float) -> list[Word]:
        if now_s - self._read_s > _MAX_AGE_S:
            return []
        return [card[service_class] for card in self._cards if service_class in card]
