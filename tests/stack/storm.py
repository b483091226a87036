"""What has crashed Triton (server#7368, #8034): rows cancelled by the hundred, and streams that break off."""

import asyncio

from gateway.session import TritonSession
from gateway.triton import TritonBackend
from triton_backend.contract import Attach, Batch, Cancel, NewRow

ROWS = 32
FOREVER = 10**6


def _rows(first: int) -> list[NewRow]:
    return [NewRow(first + number, f"call/{number}", 1, "origin", [1, 2, 3], 0, FOREVER) for number in range(ROWS)]


async def cancels(backend: TritonBackend, epoch: int, count: int) -> None:
    """Cancel so many rows while they run, each by a message of its own."""
    session = await backend.attach(Attach(epoch, "storm"))
    # A session whose events nobody reads hears no more acknowledgements in the end.
    reading = asyncio.create_task(_read(session))
    seq = 0
    for first in range(0, count, ROWS):
        rows = _rows(first)
        await session.send(Batch(epoch, seq := seq + 1, rows))
        for row in rows[: count - first]:
            await session.send(Cancel(epoch, seq := seq + 1, [row.row]))
    await session.aclose()
    await reading


async def kills(address: str, model: str, epoch: int, count: int) -> None:
    """Break off so many sessions whose rows run, without a word: each loses its connection."""
    for number in range(count):
        backend = TritonBackend(address, model)
        session = await backend.attach(Attach(epoch + number, "storm"))
        await session.send(Batch(epoch + number, 1, _rows(number * ROWS)))
        await _first_event(session)
        await backend.aclose()


async def _read(session: TritonSession) -> None:
    async for _ in session.events():
        pass


async def _first_event(session: TritonSession) -> None:
    async for _ in session.events():
        return
