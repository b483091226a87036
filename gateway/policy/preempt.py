"""Making room: whom a ticket of a higher class may put back into the queue."""

from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import msgspec

from gateway.policy.batch import BatchRule, Room, Unstarted
from gateway.request import ServiceClass, Ticket
from triton_backend.memory import Row

MAX_EVICTIONS = 2
"""So often may a ticket have to make room: its tokens are kept, but its prompt is run again each time."""
MAX_SLACK_LEFT = 0.5
"""Nobody is put back for a ticket that has more than this part of its slack left."""


class Victim(NamedTuple):
    number: int
    """The row's."""
    ticket: Ticket
    drawn: int
    """Tokens drawn; 0: not started."""
    memory: Row


def is_due(ticket: Ticket, now_s: float) -> bool:
    """Others may be put back for this one.

    Without slack, as under first come, first served, nobody is more urgent than others."""
    is_flex = ticket.service_class is ServiceClass.FLEX
    return ticket.slack_s > 0 and not is_flex and ticket.score - now_s <= MAX_SLACK_LEFT * ticket.slack_s


def victims(rule: BatchRule, ticket: Ticket, running: Sequence[Victim], room: Room) -> list[Victim]:
    """The fewest flex rows, those not started first and then the youngest, without which the ticket can start;
    none if all of them are not enough."""
    willing = [
        victim
        for victim in running
        if victim.ticket.service_class is ServiceClass.FLEX and victim.ticket.evictions < MAX_EVICTIONS
    ]
    willing.sort(key=lambda victim: (victim.drawn, -victim.number))

    def is_enough(count: int) -> bool:
        return bool(rule.choose([ticket], _without(willing[:count], running, room)))

    if not willing or not is_enough(len(willing)):
        return []
    # More of them are never too few: asked of each count in turn, a full engine holds the gateway up.
    return willing[: 1 + bisect_left(range(1, len(willing)), True, key=is_enough)]


def _without(gone: Sequence[Victim], running: Sequence[Victim], room: Room) -> Room:
    numbers = {victim.number for victim in gone}
    left = [victim for victim in running if victim.number not in numbers]
    return msgspec.structs.replace(
        room,
        running=[victim.memory for victim in left],
        max_rows=room.max_rows + len(gone),
        unstarted=[Unstarted(v.ticket.score, v.ticket.prompt_tokens) for v in left if not v.drawn],
        tpot_s=min((victim.ticket.tpot_s for victim in left), default=inf),
    )
