"""A simulated engine behind the gateway's port, and a driver's roster that counts along with it.

The driver hears of a row twice, at its first token and at its end.  In between its roster asks the engine, so that
a token costs nothing and the policy still sees every one of them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from math import inf

from gateway.errors import BackendLost
from gateway.policy.batch import Unstarted
from gateway.policy.length import left_tokens
from gateway.request import Ticket
from gateway.roster import Mails, Roster, Running
from gateway.simulator.engine import Engine, Report
from triton_backend import contract
from triton_backend.memory import Row
from triton_backend.sequence import Status

_SILENT = 2**62
"""Of a ticket's tokens none is told apart: the vocabulary is never looked at."""


class Messages:
    """What an engine has told its only reader, who waits for more."""

    def __init__(self) -> None:
        self._steps: deque[contract.Step] = deque()
        self._news: asyncio.Future[None] | None = None

    def put(self, step: contract.Step) -> None:
        self._steps.append(step)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def read(self) -> AsyncIterator[contract.Event]:
        loop = asyncio.get_running_loop()
        while True:
            while self._steps:
                yield self._steps.popleft()
            self._news = loop.create_future()
            await self._news


class SimSession:
    def __init__(self, engine: Engine, messages: Messages, attached: contract.Attached) -> None:
        self.attached = attached
        self.events = messages.read
        self._engine = engine

    async def send(self, control: contract.Batch | contract.Cancel | contract.Evict | contract.Detach) -> None:
        self._engine.submit(control)

    async def aclose(self) -> None:
        pass


class SimBackend:
    """A replica that never fails, and serves one driver for ever."""

    def __init__(self, replica: str, make_engine: Callable[[Report], Engine]) -> None:
        self.replica = replica
        self._messages = Messages()
        self.engine = make_engine(self._messages.put)

    async def attach(self, attach: contract.Attach) -> SimSession:
        engine = self.engine
        model = contract.ModelInfo("simulated", engine.cost.kv_tokens, _SILENT, "none", "none")
        attached = contract.Attached(
            attach.epoch,
            contract.CONTRACT_VERSION,
            model,
            engine.layout,
            [],
            engine.telemetry_step().telemetry,
        )
        return SimSession(engine, self._messages, attached)

    async def revive(self) -> None:
        raise BackendLost("a simulated engine does not die")

    async def aclose(self) -> None:
        pass


class _Counted(Running):
    """A row whose tokens the engine counts."""

    __slots__ = ("_engine",)

    def __init__(self, number: int, ticket: Ticket, engine: Engine) -> None:
        self._engine = engine
        super().__init__(number, ticket, 0)

    @property
    def drawn(self) -> int:
        row = self._engine.live.get(self.number)
        return row.drawn(self._engine.decodes) if row is not None else 0

    @drawn.setter
    def drawn(self, value: int) -> None:
        """Events count nothing: they tell of some tokens only."""


class SimRoster(Roster):
    """What a choice asks of all rows is kept, or read from the engine in one go."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._unstarted: dict[int, Unstarted] = {}
        """The rows that have not been heard of."""
        self._tpots: dict[float, int] = {}
        """Rows by target."""

    @property
    def memory(self) -> list[Row]:
        self._engine.catch_up()
        decodes, live = self._engine.decodes, self._engine.live
        rows = []
        for number, running in self._rows.items():
            ticket, row = running.ticket, live.get(number)
            if row is None:
                drawn = 0
            elif row.status is Status.RUNNING:
                # As Row.drawn, without the call: every choice asks this of every row.
                drawn = row.base + decodes - row.prompt_tokens
            else:
                drawn = len(row.tokens)
            left = left_tokens(ticket.profile, drawn, ticket.max_tokens - drawn)
            rows.append(Row(ticket.prompt_tokens + drawn, left - 1 if left else 0))
        return rows

    @property
    def unstarted(self) -> list[Unstarted]:
        return list(self._unstarted.values())

    @property
    def tpot_s(self) -> float:
        return min(self._tpots, default=inf)

    def add(self, ticket: Ticket) -> int:
        number = self._next_number
        self._insert(_Counted(number, ticket, self._engine))
        self._unstarted[number] = Unstarted(ticket.score, ticket.prompt_tokens)
        self._tpots[ticket.tpot_s] = self._tpots.get(ticket.tpot_s, 0) + 1
        return number

    def step(self, step: contract.Step) -> Mails:
        for number in step.rows:
            self._unstarted.pop(number, None)
        return super().step(step)

    def _depart(self, mails: Mails, number: int, end: contract.End | None, detail: str) -> None:
        running = self._rows.get(number)
        if running is not None:
            self._unstarted.pop(number, None)
            tpot_s = running.ticket.tpot_s
            self._tpots[tpot_s] -= 1
            if not self._tpots[tpot_s]:
                del self._tpots[tpot_s]
        super()._depart(mails, number, end, detail)
