"""What the benchmarks are made of: they count what they say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import torch
from aiohttp import web

from benchmarks import gateway, scheduling_cost
from benchmarks.gateway import Server, body_of
from benchmarks.gpu.shapes import SHAPES, build, matrix_weights, read_bytes
from benchmarks.speed import profile


@asynccontextmanager
async def serving(*events: bytes) -> AsyncIterator[Server]:
    """A server that gives these to everybody who asks for a stream."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"".join(events))

    app = web.Application()
    app.add_routes([web.post("/v1/completions", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield Server(session, f"http://127.0.0.1:{runner.addresses[0][1]}", {})
    finally:
        await runner.cleanup()


TOKENS = [b'data: {"choices": []}\n\n'] * 5
DONE = b"data: [DONE]\n\n"


def test_a_stream_that_breaks_is_not_counted() -> None:
    async def run() -> None:
        async with serving(*TOKENS, DONE) as server:
            await gateway.crowd(server, 2, 2, body_of(5, stream=True))
            assert len(await gateway.gaps_ms(server, 2, 5)) == 2 * 2
        async with serving(*TOKENS, b'data: {"error": {"message": "no"}}\n\n') as server:
            with pytest.raises(AssertionError, match="no"):
                await gateway.crowd(server, 1, 1, body_of(5, stream=True))
            with pytest.raises(AssertionError, match="no"):
                await gateway.gaps_ms(server, 1, 5)

    asyncio.run(run())


def test_a_refused_stream_is_not_left_out_of_the_gaps() -> None:
    async def run() -> None:
        async with serving() as server:
            nowhere = server._replace(url=f"{server.url}/nowhere")
            with pytest.raises(AssertionError, match="404"):
                await gateway.gaps_ms(nowhere, 1, 5)

    asyncio.run(run())


def test_a_client_that_does_not_read_is_waited_for() -> None:
    async def run() -> None:
        unsent: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"?")
            for _ in range(100):
                writer.write(bytes(1000))
                await asyncio.sleep(0)
            unsent.set_result(writer.transport.get_write_buffer_size())
            writer.transport.abort()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            deaf = await gateway.deaf_client(server.sockets[0].getsockname(), b"?")
            assert await unsent > 2**14
            deaf.close()

    asyncio.run(run())


def test_what_deciding_costs_is_told_by_step() -> None:
    async def run() -> None:
        spent_us, scene = await scheduling_cost.measure(40, 20)
        assert list(spent_us) == list(scheduling_cost.STEPS)
        assert min(spent_us.values()) > 0
        assert scene.depth == 40

    asyncio.run(run())


def test_a_floor_counts_no_table_of_embeddings(tmp_path: Path) -> None:
    SHAPES["tiny"].save_pretrained(tmp_path)
    model = build("tiny", "cpu", torch.bfloat16)
    assert profile.weights_of(tmp_path) == (read_bytes(model), matrix_weights(model))
    assert read_bytes(model) == 2 * (sum(weight.numel() for weight in model.parameters()) - 96 * 32)
