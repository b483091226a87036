"""What gateways tell each other, through their inboxes in the store.

Tokens of rows that one gateway drives and another owns, rows to free, work to look at.  What is meant for one
gateway leaves together: while a letter is on its way to the store the next one grows, so that a slow store costs
fewer and longer letters.  A letter may be lost or come twice: what it tells is fenced by attempt and index, and
the audit finds what is missing.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import msgspec
import structlog

from gateway.errors import StoreLost
from gateway.metrics import Metrics
from gateway.ports import Store
from gateway.request import Departed, Drawn

log = structlog.get_logger()

MAX_TOKENS = 100_000
"""Tokens kept for one gateway while the store does not answer; without them, their tickets are put back."""
_PER_READ = 32
"""Letters of one read."""
_AT_ONCE = 256
"""Tokens of a letter between which others get their turn: after an outage a letter has thousands."""
_WAIT_S = 0.5
_RETRY_S = 0.1


class Letter(msgspec.Struct, omit_defaults=True):
    """A field may be added with a default, never renamed or retyped."""

    sender: str
    drawn: list[Drawn] = []
    departed: list[Departed] = []
    claimed: list[tuple[str, int]] = []
    """(ticket, attempt)s on their way into an engine."""
    cancelled: list[tuple[str, int]] = []
    """(ticket, attempt)s whose rows are to be freed, of earlier attempts too."""
    wakes: bool = False
    """There is something to dispatch."""

    def extend(self, later: "Letter") -> None:
        self.drawn += later.drawn
        self.departed += later.departed
        self.claimed += later.claimed
        self.cancelled += later.cancelled
        self.wakes |= later.wakes

    def parts(self) -> Iterator["Letter"]:
        """The same in letters of at most _AT_ONCE tokens: claims before them, all else after them."""
        drawn, claimed = self.drawn[:-_AT_ONCE], self.claimed
        for start in range(0, len(drawn), _AT_ONCE):
            yield Letter(self.sender, drawn[start : start + _AT_ONCE], claimed=claimed)
            claimed = []
        yield msgspec.structs.replace(self, drawn=self.drawn[-_AT_ONCE:], claimed=claimed)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Letter).decode


class RemoteOrigin:
    """An origin in another gateway (driver.Receiver)."""

    def __init__(self, relay: "Relay", gateway: str) -> None:
        self._relay = relay
        self._gateway = gateway

    def receive(self, drawn: Sequence[Drawn], departed: Sequence[Departed]) -> Sequence[tuple[str, int]]:
        """Whether somebody waits for them is learned later, by letter."""
        letter = self._relay.to(self._gateway)
        letter.drawn += drawn
        letter.departed += departed
        return ()

    def claimed(self, tickets: Sequence[tuple[str, int]]) -> None:
        self._relay.to(self._gateway).claimed += tickets


class Relay:
    def __init__(self, gateway: str, store: Store, metrics: Metrics) -> None:
        self._gateway = gateway
        self._store = store
        self._metrics = metrics
        self._outgoing: dict[str, Letter] = {}
        self._unsent = asyncio.Event()

    def to(self, gateway: str) -> Letter:
        """The next letter to a gateway, to be added to at once."""
        self._unsent.set()
        return self._outgoing.setdefault(gateway, Letter(self._gateway))

    async def run(self, deliver: Callable[[Letter], None]) -> NoReturn:
        """Send what is written and hand over what comes, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send())
            group.create_task(self._read(deliver))
        raise AssertionError("never ends")

    async def _send(self) -> NoReturn:
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            letters, self._outgoing = self._outgoing, {}
            try:
                await self._store.post({gateway: _encode(letter) for gateway, letter in letters.items()})
            except StoreLost:
                self._keep(letters)
                await asyncio.sleep(_RETRY_S)
            else:
                self._metrics.relayed(len(letters), sum(len(letter.drawn) for letter in letters.values()))

    def _keep(self, letters: dict[str, Letter]) -> None:
        """They go with the next ones."""
        for gateway, letter in letters.items():
            if gateway in self._outgoing:
                letter.extend(self._outgoing[gateway])
            if len(letter.drawn) > MAX_TOKENS:
                self._metrics.relay_dropped(len(letter.drawn))
                letter.drawn = []
            self._outgoing[gateway] = letter
        self._unsent.set()

    async def _read(self, deliver: Callable[[Letter], None]) -> NoReturn:
        after = ""
        while True:
            try:
                letters = await self._store.collect(self._gateway, after, _PER_READ, _WAIT_S)
            except StoreLost:
                await asyncio.sleep(_RETRY_S)
                continue
            for _, raw in letters:
                try:
                    letter = _decode(raw)
                except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                    log.warning("relay.unreadable", error=str(error))
                else:
                    for part in letter.parts():
                        deliver(part)
                        await asyncio.sleep(0)
            if letters:
                after, _ = letters[-1]
                # A store that answers at once must not keep everything else from its turn.
                await asyncio.sleep(0)
