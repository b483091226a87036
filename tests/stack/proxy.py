"""A line between two processes that can be cut without either being told, as a partition does.

line = Proxy("127.0.0.1", 6379)      passes on to that address
line = Proxy()                       to whatever address the client asks for by CONNECT, as gRPC does
line = Proxy(..., tls=CONTEXT)       the same, for clients that speak TLS
"""

import asyncio
import ssl
from contextlib import suppress

HOST = "127.0.0.1"
_CHUNK_BYTES = 2**16


class Proxy:
    def __init__(self, *target: object, tls: ssl.SSLContext | None = None) -> None:
        self._target = [str(part) for part in target]
        self._tls = tls
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._passing: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """From now on nothing passes, no end of a connection either."""
        self._is_whole.clear()

    def mend(self) -> None:
        """What was held back passes now."""
        self._is_whole.set()

    async def aclose(self) -> None:
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._is_whole.wait()
            host, port = self._target or await _asked_for(reader, writer)
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except (OSError, EOFError):
            writer.close()
            return
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._is_whole.wait()
                writer.write(data)
                await writer.drain()
        await self._is_whole.wait()
        # Both ways end together: no protocol here needs one half of a connection.
        writer.close()


async def _asked_for(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[str]:
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    return head.split()[1].decode().split(":")
