"""A driver and the origins behind it, for tests of the engine: checks every rule of the contract as events
come in, and puts back what was evicted or refused, as origins do."""

from dataclasses import dataclass, field
from itertools import count

import msgspec

from triton_backend.contract import (
    Attach,
    Attached,
    AttachRefused,
    Batch,
    Cancel,
    End,
    Ended,
    Event,
    Evict,
    NewRow,
    Sampling,
    Step,
    Superseded,
    Telemetry,
)
from triton_backend.engine import Engine, SinkClosed

FIRST_ROW = 10**6
"""Number of the first row of epoch 1; each epoch has as many numbers."""
GREEDY = Sampling(temperature=0)


@dataclass
class Ticket:
    """One prompt, whatever attempts it takes."""

    first: NewRow
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    attempts: int = 0
    ending: Ended | None = None

    def next_row(self, number: int) -> NewRow:
        """The next attempt: what was drawn so far becomes part of the prompt."""
        self.attempts += 1
        return msgspec.structs.replace(
            self.first,
            row=number,
            attempt=self.attempts,
            prompt=self.first.prompt + self.tokens,
            index=len(self.tokens),
            max_tokens=self.first.max_tokens - len(self.tokens),
        )


class Peer:
    """Is the sink of its session.  `tickets` outlive it: hand them to the next peer to take over."""

    def __init__(self, engine: Engine, epoch: int = 1, tickets: dict[str, Ticket] | None = None) -> None:
        self.engine = engine
        self.epoch = epoch
        self.tickets = {} if tickets is None else tickets
        self.live: dict[int, Ticket] = {}
        self.attached: Attached | None = None
        self.last: Superseded | AttachRefused | None = None
        self.telemetry: Telemetry | None = None
        self.steps: list[Step] = []
        self.is_gone = False
        self.num_finished = 0
        self._seq = 0
        self._numbers = count(FIRST_ROW * epoch)
        engine.attach(Attach(epoch, f"peer {epoch}"), self)

    # What the engine calls.

    def send(self, event: Event) -> None:
        assert not self.num_finished, "an event after the final flag"
        assert self.last is None, "an event after the last one"
        if self.is_gone:
            raise SinkClosed
        match event:
            case Attached():
                self._take_over(event)
            case Step():
                self._take(event)
            case last:
                self.last = last

    def is_closed(self) -> bool:
        return self.is_gone

    def finish(self) -> None:
        self.num_finished += 1

    # What a test calls.

    def put(self, rows: list[NewRow]) -> None:
        """Send a batch of first attempts; each row's ticket is its own."""
        for row in rows:
            self.tickets[row.ticket] = Ticket(row)
        self.send_batch([self.tickets[row.ticket] for row in rows])

    def send_batch(self, tickets: list[Ticket]) -> None:
        numbered = {next(self._numbers): ticket for ticket in tickets}
        rows = [ticket.next_row(number) for number, ticket in numbered.items()]
        self.live.update(numbered)
        self._seq += 1
        assert self.engine.submit(Batch(self.epoch, self._seq, rows)) is None

    def put_back(self) -> None:
        """Send what waits for another attempt: nothing else has a ticket that neither lives nor has ended."""
        alive = {id(ticket) for ticket in self.live.values()}
        waiting = [one for one in self.tickets.values() if one.ending is None and id(one) not in alive]
        if waiting:
            self.send_batch(waiting)

    def end(self, control: type[Cancel] | type[Evict], rows: list[int]) -> None:
        self._seq += 1
        assert self.engine.submit(control(self.epoch, self._seq, rows)) is None

    def run(self) -> None:
        """Turn the crank, putting back, until every ticket has ended."""
        while any(ticket.ending is None for ticket in self.tickets.values()):
            self.put_back()
            while self.engine.step():
                pass

    # What an event means.

    def _take_over(self, attached: Attached) -> None:
        assert self.attached is None, "attached twice"
        self.attached = attached
        for row in attached.rows:
            ticket = self.tickets[row.ticket]
            known = ticket.tokens[row.index :]
            assert row.tokens[: len(known)] == known, "a token that was delivered has changed"
            ticket.tokens += row.tokens[len(known) :]
            ticket.logprobs += row.logprobs[len(known) :]
            self.live[row.row] = ticket
            if row.ended:
                self._end(Ended(row.row, row.ended))

    def _take(self, step: Step) -> None:
        assert self.attached is not None, "the first event is not Attached"
        assert step.seq <= self._seq
        self.telemetry = step.telemetry
        self.steps.append(step)
        assert len(step.rows) == len(step.indexes) == len(step.tokens) == len(set(step.rows))
        for at, (row, index, token) in enumerate(zip(step.rows, step.indexes, step.tokens, strict=True)):
            ticket = self.live[row]
            assert index == len(ticket.tokens), "a gap or a token twice"
            ticket.tokens.append(token)
            if step.logprobs:
                ticket.logprobs.append(step.logprobs[at])
        for ended in step.ended:
            self._end(ended)

    def _end(self, ended: Ended) -> None:
        ticket = self.live.pop(ended.row)
        if ended.reason not in (End.EVICTED, End.REFUSED):
            assert ticket.ending is None, "ended twice"
            ticket.ending = ended


def new_row(ticket: int, prompt: list[int], max_tokens: int, **fields: object) -> NewRow:
    """A greedy first attempt."""
    plain = NewRow(0, f"call/{ticket}", 0, "origin", prompt, 0, max_tokens, sampling=GREEDY, rank=float(ticket))
    return msgspec.structs.replace(plain, **fields)
