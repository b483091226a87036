"""Skipping what does not fit, without starving it.

A ticket that others have passed `MAX_PASSED` times or for `MAX_PASSED_S` is held for: from then on, only what
fits beside it starts, so that it starts itself when the rows of before have ended, at the latest.
"""

from collections.abc import Callable, Collection, Sequence

import msgspec

from gateway.policy.batch import BatchRule, Room, row_of
from gateway.request import Ticket
from triton_backend.memory import FuturePeak

MAX_PASSED = 8
MAX_PASSED_S = 1.0
SUSPECT_DEATHS = 2
"""A ticket that was there at so many engine deaths runs alone."""


class Guard:
    """Who was passed on one replica, how often and since when."""

    def __init__(self) -> None:
        self._passed: dict[str, tuple[Ticket, int, float]] = {}
        self._held: Ticket | None = None
        self._beside: list[Ticket] = []
        """Started while `_held` waits, and not ended."""

    def select(self, rule: BatchRule, tickets: Sequence[Ticket], room: Room, now_s: float) -> list[Ticket]:
        """The rule's choice among the tickets (best first), beside the one held for, and suspects on their own."""
        held = self.held(room, now_s)
        if held is None:
            return _choose(rule, tickets, room)
        if alone := _choose(rule, [held], room):
            return alone
        if _is_suspect(held):
            return []
        others = [ticket for ticket in tickets if ticket.id != held.id]
        small = _choose(rule, others, _room_beside(room, [*self._beside, held]))
        chosen = _choose(rule, small, room)
        self._beside += chosen
        return chosen

    def note(self, passed: Sequence[Ticket], started: Sequence[Ticket], now_s: float) -> None:
        """Count who was passed by the started.  One that is gone from the queue is to be noted as started."""
        for ticket in started:
            self._passed.pop(ticket.id, None)
        for ticket in passed:
            _, count, since_s = self._passed.get(ticket.id, (ticket, 0, now_s))
            self._passed[ticket.id] = (ticket, count + 1, since_s)

    def ended(self, is_running: Callable[[str], bool]) -> None:
        """What started beside the held and has ended leaves its place to others."""
        self._beside = [ticket for ticket in self._beside if is_running(ticket.id)]

    def held(self, room: Room, now_s: float) -> Ticket | None:
        """The best ticket that was passed too often or for too long, of those that this replica could hold."""
        overdue = [
            ticket
            for ticket, count, since_s in self._passed.values()
            if count >= MAX_PASSED or now_s - since_s >= MAX_PASSED_S
        ]
        overdue.sort(key=lambda ticket: (ticket.score, ticket.id))
        fitting = (t for t in overdue if FuturePeak(room.layout, [row_of(t)]).bytes <= room.budget_bytes)
        held = next(fitting, None)
        if held != self._held:
            self._held, self._beside = held, []
        return held


def passed(tickets: Sequence[Ticket], chosen: Collection[Ticket]) -> list[Ticket]:
    """The tickets (best first) that one chosen from behind them has passed."""
    ids = {ticket.id for ticket in chosen}
    last = max((at for at, ticket in enumerate(tickets) if ticket.id in ids), default=0)
    return [ticket for ticket in tickets[:last] if ticket.id not in ids]


def _choose(rule: BatchRule, tickets: Sequence[Ticket], room: Room) -> list[Ticket]:
    if tickets and _is_suspect(tickets[0]) and not room.running:
        return rule.choose(tickets[:1], room)
    return rule.choose([ticket for ticket in tickets if not _is_suspect(ticket)], room)


def _is_suspect(ticket: Ticket) -> bool:
    return ticket.deaths >= SUSPECT_DEATHS


def _room_beside(room: Room, tickets: Sequence[Ticket]) -> Room:
    """The room there will be beside these alone."""
    tpot_s = min(ticket.tpot_s for ticket in tickets)
    running = [row_of(ticket) for ticket in tickets]
    return msgspec.structs.replace(room, running=running, unstarted=(), tpot_s=tpot_s)
