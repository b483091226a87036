"""What the store still has to be told: tickets that go back, that finished, that nobody wants any more.

Endings are decided at once and in memory; the store learns of them here, as often as it takes.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import NoReturn

import structlog

from gateway.call import Live
from gateway.errors import StoreLost
from gateway.ports import Store

log = structlog.get_logger()

Recall = Callable[[Iterable[tuple[str, int, str]]], None]
"""Frees the rows of these (ticket, attempt, replica)s, wherever they are driven."""

_RETRY_S = 0.2


class Outbox:
    def __init__(
        self,
        store: Store,
        wake: Callable[[], None],
        cancel: Callable[[Iterable[tuple[str, int]]], None],
        recall: Callable[[Iterable[tuple[str, int, str]]], None],
    ) -> None:
        """These reach the drivers: work was queued; free the rows of these (ticket, attempt)s that are driven
        here; of these (ticket, attempt, replica)s, wherever."""
        self._store = store
        self._wake = wake
        self._cancel = cancel
        self._recall = recall
        self._back: dict[str, Live] = {}
        self._finished: dict[str, int] = {}
        self._cancelled: dict[str, int] = {}
        self._unsettled = asyncio.Event()

    def put_back(self, live: Live) -> None:
        self._back[live.ticket.id] = live
        self._unsettled.set()

    def finish(self, live: Live) -> None:
        self._back.pop(live.ticket.id, None)
        self._finished[live.ticket.id] = live.ticket.attempt
        self._unsettled.set()

    def cancel(self, live: Live) -> None:
        self._back.pop(live.ticket.id, None)
        self._cancelled[live.ticket.id] = live.ticket.attempt
        self._unsettled.set()

    @property
    def is_empty(self) -> bool:
        return not (self._back or self._finished or self._cancelled)

    async def run(self) -> NoReturn:
        while True:
            await self._unsettled.wait()
            self._unsettled.clear()
            try:
                await self.settle()
            except StoreLost as error:
                log.debug("store.lost", error=str(error))
                await asyncio.sleep(_RETRY_S)
                self._unsettled.set()

    async def settle(self) -> None:
        """Bring the store up to date; what could not be told stays.  Raises StoreLost."""
        await self._settle_back()
        await self._settle_finished()
        await self._settle_cancelled()

    async def _settle_back(self) -> None:
        if not self._back:
            return
        entries = {id: live.entry for id, live in self._back.items()}
        await self._store.put_back(list(entries.values()))
        for id, entry in entries.items():
            live = self._back.get(id)
            if live is not None and live.ticket.attempt == entry.ticket.attempt:
                live.known = True
                del self._back[id]
        self._wake()

    async def _settle_finished(self) -> None:
        if finished := list(self._finished.items()):
            await self._store.finish(finished)
            _settled(self._finished, finished)

    async def _settle_cancelled(self) -> None:
        if cancelled := dict(self._cancelled):
            self._cancel(cancelled.items())
            leased = await self._store.cancel(list(cancelled.items()))
            # A claim may have taken one in the meantime; its driver can be told only now.
            self._recall((id, cancelled[id], replica) for id, replica in leased)
            _settled(self._cancelled, cancelled.items())


def _settled(pending: dict[str, int], told: Iterable[tuple[str, int]]) -> None:
    for id, attempt in told:
        if pending.get(id) == attempt:
            del pending[id]
