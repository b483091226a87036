"""Connects origins and drivers, whichever gateway they are in."""

import asyncio
from collections.abc import Iterable, Sequence
from math import inf
from typing import NoReturn

from gateway import driver as driving
from gateway.board import Board
from gateway.driver import Driver, Receiver
from gateway.fleet import Fleet, Replica
from gateway.metrics import Metrics
from gateway.origin import Origin
from gateway.ports import Entry, Store
from gateway.relay import Letter, Relay, RemoteOrigin


class Switchboard:
    origin: Origin
    """This gateway's; to be set before anything runs."""

    def __init__(self, gateway: str, store: Store, fleet: Fleet, metrics: Metrics) -> None:
        self.drivers: list[Driver] = []
        """This gateway's, one a replica; whoever makes them adds them."""
        self._gateway = gateway
        self._fleet = fleet
        self._relay = Relay(gateway, store, metrics)
        self.board = Board(
            gateway,
            store,
            fleet,
            self.drivers,
            card=lambda: self.origin.gatekeeper.card(),
            heard=lambda cards: self.origin.gatekeeper.heard(cards),
        )

    async def run(self) -> NoReturn:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relay.run(self._deliver))
            group.create_task(self.board.run())
        raise AssertionError("never ends")

    def receiver(self, gateway: str) -> Receiver:
        """The origin in that gateway."""
        return self.origin if gateway == self._gateway else RemoteOrigin(self._relay, gateway)

    def wake(self) -> None:
        """Work was queued: of all drivers with room the one with the fewest rows should look."""
        if elsewhere := self._elsewhere():
            gateway, replica = elsewhere
            self._relay.to(gateway).wakes = True
            # Until its driver says how many it took.
            replica.rows += 1
        elif driver := driving.roomiest(self.drivers):
            driver.wake()

    async def start(self, entries: Sequence[Entry]) -> Sequence[float] | None:
        """Run new tickets at once, if the driver that should look is here: see Driver.start."""
        driver = None if self._elsewhere() else driving.roomiest(self.drivers)
        return None if driver is None else await driver.start(entries)

    def _elsewhere(self) -> tuple[str, Replica] | None:
        """Another gateway and its replica, if that has room and fewer rows than any here."""
        here = min((driver.num_rows for driver in self.drivers if driver.has_room), default=inf)
        led = {driver.replica for driver in self.drivers if driver.leads}
        there = [
            (replica.rows, name)
            for name, replica in self._fleet.replicas.items()
            if replica.rows < here and replica.has_room and name not in led
        ]
        if not there:
            return None
        _, name = min(there)
        gateway = self.board.driver_of(name)
        return None if gateway in (None, self._gateway) else (gateway, self._fleet.replicas[name])

    def cancel(self, tickets: Iterable[tuple[str, int]]) -> None:
        """Free the rows that this gateway drives of these (ticket, attempt)s."""
        tickets = list(tickets)
        for driver in self.drivers:
            driver.cancel(tickets)

    def recall(self, leased: Iterable[tuple[str, int, str]]) -> None:
        """Free the rows of these (ticket, attempt, replica)s, whoever drives them."""
        for ticket, attempt, replica in leased:
            gateway = self.board.driver_of(replica)
            if gateway == self._gateway:
                self.cancel([(ticket, attempt)])
            elif gateway is not None:
                self._relay.to(gateway).cancelled.append((ticket, attempt))

    def _deliver(self, letter: Letter) -> None:
        self.origin.claimed(letter.claimed)
        unwanted = self.origin.receive(letter.drawn, letter.departed)
        if unwanted:
            self._relay.to(letter.sender).cancelled += unwanted
        if letter.cancelled:
            self.cancel(letter.cancelled)
        if letter.wakes and (driver := driving.roomiest(self.drivers)):
            driver.wake()
