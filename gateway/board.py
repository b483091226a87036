"""Who is there, who drives what, and how the replicas stand that others drive: as of the last look.

With nobody to ask, gateways balance themselves: each sees how many replicas every gateway drives, takes free ones
while it has no more than any other, and hands one over when another has two fewer.  After a time in which the
store answered nobody all leases have run out, and those who had them get the time to take them up again.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NoReturn, Protocol

from gateway import standing
from gateway.errors import StoreLost
from gateway.fleet import Fleet
from gateway.policy import seats
from gateway.ports import NO_REPLICA, Assembly, Peer, Store

LOOK_S = 0.25
LIFE_S = 3.0
"""Who has not looked for so long is no more."""
FREE_S = 2.0
"""A replica that nobody has taken for so long is anybody's."""
GONE_S = 5.0
"""And is not reckoned with after so long."""
UNABLE_S = 30.0
"""After it could not reach an engine, a gateway leaves the seats to others for so long."""


class Seated(Protocol):
    """A driver, as the board sees it."""

    @property
    def replica(self) -> str: ...

    @property
    def leads(self) -> bool: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def failed_s(self) -> float:
        """When it last could not attach, on the event loop's clock."""

    def hand_over(self) -> None:
        """Let another gateway drive."""


class Board:
    def __init__(
        self,
        gateway: str,
        store: Store,
        fleet: Fleet,
        drivers: Sequence[Seated],
        card: Callable[[], bytes],
        heard: Callable[[Iterable[bytes]], None],
    ) -> None:
        """`drivers` may grow.  `card` is what the others should know; `heard` gets theirs."""
        self._gateway = gateway
        self._store = store
        self._fleet = fleet
        self._drivers = drivers
        self._card = card
        self._heard = heard
        self._assembly = Assembly({}, {})
        self._free_since_s: dict[str, float] = {}
        self._blind_s = -inf
        """When it last could not look."""
        self.is_leaving = False
        """Set once at shutdown: every replica goes to another gateway, if there is one."""

    def driver_of(self, replica: str) -> str | None:
        """The gateway that drives it."""
        seat = self._assembly.seats.get(replica)
        return seat.gateway if seat else None

    def may_drive(self, replica: str) -> bool:
        """Whether this gateway should stand for election there."""
        if replica in self._assembly.seats:
            return False
        if not self._is_willing:
            return not self._others
        now_s = _now_s()
        free_s = now_s - self._free_since_s.get(replica, now_s)
        return free_s > FREE_S or (now_s - self._blind_s > FREE_S and seats.takes(*self._counts()))

    async def run(self) -> NoReturn:
        """Look, again and again."""
        while True:
            try:
                await self.look()
            except StoreLost:
                self._blind_s = _now_s()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Raises StoreLost."""
        assembly = await self._store.assemble(self._gateway, Peer(self._is_willing, self._card()), LIFE_S)
        seats = {name: seat for name, seat in assembly.seats.items() if not name.startswith(NO_REPLICA)}
        self._assembly = Assembly(assembly.gateways, seats)
        self._note_free()
        self._note_standings()
        self._heard(peer.card for name, peer in self._assembly.gateways.items() if name != self._gateway)
        self._balance()

    @property
    def _is_willing(self) -> bool:
        failed_s = max((driver.failed_s for driver in self._drivers), default=-UNABLE_S)
        return not self.is_leaving and _now_s() - failed_s >= UNABLE_S

    @property
    def _others(self) -> list[str]:
        """Gateways that could take over."""
        return [name for name, peer in self._assembly.gateways.items() if peer.drives and name != self._gateway]

    def _counts(self) -> tuple[int, dict[str, int]]:
        """How many this gateway drives, and each other that would."""
        held = Counter(seat.gateway for seat in self._assembly.seats.values())
        return held[self._gateway], {name: held[name] for name in self._others}

    def _note_free(self) -> None:
        known = {driver.replica for driver in self._drivers} | self._fleet.replicas.keys()
        free = known - self._assembly.seats.keys()
        self._free_since_s = {replica: self._free_since_s.get(replica, _now_s()) for replica in free}

    def _note_standings(self) -> None:
        driven = {driver.replica for driver in self._drivers if driver.leads}
        for replica, seat in self._assembly.seats.items():
            if seat.gateway == self._gateway or replica in driven:
                continue
            if told := standing.decode(seat.standing):
                self._fleet.told(replica, told)
            else:
                self._fleet.left(replica)
        for replica, since_s in self._free_since_s.items():
            if _now_s() - since_s > GONE_S and replica not in driven:
                self._fleet.left(replica)

    def _balance(self) -> None:
        mine, others = self._counts()
        leading = [driver for driver in self._drivers if driver.leads]
        if not leading or not others:
            return
        if self.is_leaving:
            for driver in leading:
                driver.hand_over()
        elif seats.gives(mine, others):
            min(leading, key=lambda driver: driver.num_rows).hand_over()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
