"""What the gateway itself costs: `python -m benchmarks.gateway`.

One gateway, a real Valkey and a real Triton, and an engine without a model that draws a token for every row in
each step.  Prints the time to the first token at one client (through gateway, Redis and Triton), the gateway's
processor time per streamed token, and short requests per second and core.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from benchmarks.transport import cpu_s
from gateway import local
from gateway.settings import DEMO_MODEL
from tests.stack import standin

STEP_US = 20_000
"""Of the engine under many streams; a step for one client takes no time."""


class Server(NamedTuple):
    session: aiohttp.ClientSession
    url: str
    pid: int


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--streams", type=int, default=256, help="at once")
    parser.add_argument("--tokens", type=int, default=200, help="of each of them")
    options = parser.parse_args()
    print(await _with_engine(0, first_token))
    print(await _with_engine(0, short_requests))
    print(await _with_engine(STEP_US, lambda server: streams(server, options.streams, options.tokens)))


async def first_token(server: Server, count: int = 500) -> str:
    took_ms = []
    for _ in range(count):
        begun_s = asyncio.get_running_loop().time()
        async with server.session.post(f"{server.url}/v1/completions", json=_body(2, stream=True)) as response:
            await response.content.readline()
            took_ms.append(1000 * (asyncio.get_running_loop().time() - begun_s))
            await response.read()
    p50, p99 = np.quantile(took_ms[50:], [0.5, 0.99])
    return f"first token, one client: P50 {p50:.1f} ms, P99 {p99:.1f} ms (wanted 3 and 10)"


async def short_requests(server: Server, count: int = 3000, clients: int = 32) -> str:
    """As many as the gateway can take, one token each."""
    await _crowd(server, clients, clients, _body(1))
    before_s, begun_s = cpu_s(server.pid), asyncio.get_running_loop().time()
    await _crowd(server, count, clients, _body(1))
    spent_s, took_s = cpu_s(server.pid) - before_s, asyncio.get_running_loop().time() - begun_s
    return (
        f"short requests: {count / took_s:.0f}/s, {1e6 * spent_s / count:.0f} us each, "
        f"{count / spent_s:.0f} a second and core (wanted 800)"
    )


async def streams(server: Server, count: int, tokens: int) -> str:
    await _crowd(server, 32, 32, _body(16, stream=True))
    before_s, begun_s = cpu_s(server.pid), asyncio.get_running_loop().time()
    await _crowd(server, count, count, _body(tokens, stream=True))
    spent_s, took_s = cpu_s(server.pid) - before_s, asyncio.get_running_loop().time() - begun_s
    return (
        f"{count} streams, a step every {STEP_US / 1000:g} ms: {count * tokens / took_s:.0f} tokens/s, "
        f"{1e6 * spent_s / (count * tokens):.1f} us a token (wanted 40)"
    )


async def _crowd(server: Server, requests: int, clients: int, body: dict[str, Any]) -> None:
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            async with server.session.post(f"{server.url}/v1/completions", json=body) as response:
                assert response.status == 200, await response.text()
                await response.read()

    await asyncio.gather(*(client() for _ in range(clients)))


async def _with_engine(step_us: int, measure: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        template = standin.template(Path(folder) / "llm")
        async with local.Stack(model="standin", template=template, threads=step_us) as stack:
            port = local.free_port()
            servers = ("--redis", stack.redis_url, "--triton", stack.triton_address, "--model", DEMO_MODEL)
            gateway = await stack.start_gateway([*servers, "--model-name", "demo", "--port", str(port)])
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                url = f"http://127.0.0.1:{port}"
                await _until_ready(session, url)
                return str(await measure(Server(session, url, gateway.pid)))


async def _until_ready(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with session.get(f"{url}/ready") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)


def _body(tokens: int, stream: bool = False) -> dict[str, Any]:
    return {"model": "demo", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True, "stream": stream}


if __name__ == "__main__":
    asyncio.run(main())
