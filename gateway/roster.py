"""The rows a driver has in its engine: whose they are, what they hold, and their events sorted by origin."""

from collections.abc import Iterable, Sequence
from math import inf

import msgspec

from gateway.policy.batch import Unstarted
from gateway.policy.length import left_tokens
from gateway.policy.preempt import Victim
from gateway.request import NO_TARGET_S, Departed, Drawn, Profile, Ticket, TokenLogprob
from triton_backend import contract
from triton_backend.memory import Row


class Running:
    """A row that was sent and has not ended."""

    __slots__ = ("drawn", "number", "ticket")

    def __init__(self, number: int, ticket: Ticket, drawn: int) -> None:
        self.number = number
        self.ticket = ticket
        self.drawn = drawn

    @property
    def memory(self) -> Row:
        """KV tokens held now, and still to come (the last token drawn is never stored)."""
        ticket = self.ticket
        left = left_tokens(ticket.profile, self.drawn, ticket.max_tokens - self.drawn)
        return Row(ticket.prompt_tokens + self.drawn, max(left - 1, 0))


class Mail(msgspec.Struct):
    """What one origin is to be told."""

    drawn: list[Drawn] = []
    departed: list[Departed] = []


Mails = dict[str, Mail]
"""By origin."""


class Roster:
    def __init__(self) -> None:
        self._rows: dict[int, Running] = {}
        self._by_ticket: dict[str, Running] = {}
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    @property
    def memory(self) -> list[Row]:
        return [running.memory for running in self._rows.values()]

    @property
    def unstarted(self) -> list[Unstarted]:
        """Rows that have drawn nothing yet."""
        waiting = (running.ticket for running in self._rows.values() if not running.drawn)
        return [Unstarted(ticket.score, ticket.prompt_tokens) for ticket in waiting]

    @property
    def tpot_s(self) -> float:
        """The tightest target for the time per token."""
        return min((running.ticket.tpot_s for running in self._rows.values()), default=inf)

    @property
    def seconds(self) -> float:
        """Engine time that all of the rows' tickets were predicted to take."""
        return sum(running.ticket.seconds for running in self._rows.values())

    @property
    def victims(self) -> list[Victim]:
        """The rows, as candidates for making room."""
        return [Victim(row.number, row.ticket, row.drawn, row.memory) for row in self._rows.values()]

    @property
    def tickets(self) -> list[tuple[str, int]]:
        return [(running.ticket.id, running.ticket.attempt) for running in self._rows.values()]

    def add(self, ticket: Ticket) -> int:
        """The new row's number."""
        number = self._next_number
        self._insert(Running(number, ticket, 0))
        return number

    def find(self, ticket: str) -> Running | None:
        return self._by_ticket.get(ticket)

    def step(self, step: contract.Step) -> Mails:
        """Count an engine step in; what it means to each origin."""
        mails: Mails = {}
        for at, number in enumerate(step.rows):
            running = self._rows.get(number)
            if running is not None:
                running.drawn += 1
                ticket, token = running.ticket, step.tokens[at]
                drawn = Drawn(ticket.id, ticket.attempt, step.indexes[at], token, _logprob(step, at, token))
                _mail(mails, running).drawn.append(drawn)
        for ended in step.ended:
            self._depart(mails, ended.row, ended.reason, ended.detail)
        return mails

    def adopt(self, live: Sequence[contract.LiveRow]) -> Mails:
        """Take over what an engine has.  Rows known here that it has not are lost; a driver in between may have
        given their numbers to others."""
        found = {row.row: (row.ticket, row.attempt) for row in live}
        mails = self.lose(number for number, known in self._rows.items() if found.get(number) != _name(known))
        for row in live:
            if row.row not in self._rows:
                self._insert(Running(row.row, _ticket_of(row), 0))
            running = self._rows[row.row]
            running.drawn = len(row.tokens)
            _mail(mails, running).drawn.extend(
                Drawn(row.ticket, row.attempt, row.index + at, token, _logprob(row, at, token))
                for at, token in enumerate(row.tokens)
            )
            if row.ended is not None:
                self._depart(mails, row.row, row.ended, "")
        return mails

    def lose(self, numbers: Iterable[int] | None = None) -> Mails:
        """These rows (by default all) died with their engine."""
        mails: Mails = {}
        for number in list(self._rows if numbers is None else numbers):
            self._depart(mails, number, None, "")
        return mails

    def clear(self) -> None:
        """Another driver has them now."""
        self._rows.clear()
        self._by_ticket.clear()

    def _insert(self, running: Running) -> None:
        self._rows[running.number] = running
        self._by_ticket[running.ticket.id] = running
        self._next_number = max(self._next_number, running.number + 1)

    def _depart(self, mails: Mails, number: int, end: contract.End | None, detail: str) -> None:
        running = self._rows.pop(number, None)
        if running is None:
            return
        if self._by_ticket.get(running.ticket.id) is running:
            del self._by_ticket[running.ticket.id]
        num_tokens = running.ticket.index + running.drawn
        _mail(mails, running).departed.append(Departed(*_name(running), end, detail, num_tokens))


def _mail(mails: Mails, running: Running) -> Mail:
    origin = running.ticket.origin
    mail = mails.get(origin)
    if mail is None:
        mail = mails[origin] = Mail()
    return mail


def _name(running: Running) -> tuple[str, int]:
    return running.ticket.id, running.ticket.attempt


def _logprob(source: contract.Step | contract.LiveRow, at: int, token: int) -> TokenLogprob | None:
    if not source.logprobs:
        return None
    return TokenLogprob(token, source.logprobs[at], source.alternatives[at] if source.alternatives else [])


def _ticket_of(row: contract.LiveRow) -> Ticket:
    """What can be known of a ticket that another driver sent."""
    max_tokens = row.max_tokens + len(row.tokens)
    return Ticket(
        id=row.ticket,
        attempt=row.attempt,
        origin=row.origin,
        prompt_tokens=row.prompt_tokens,
        index=row.index,
        max_tokens=max_tokens,
        profile=Profile(max_tokens, max_tokens),
        tpot_s=row.tpot_s or NO_TARGET_S,
        bin=0,
        slack_s=0.0,
        cost_s=0.0,
        seconds=0.0,
        size_bytes=0,
    )
