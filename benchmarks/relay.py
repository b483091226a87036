"""What sharing work between gateways costs: `python -m benchmarks.relay`.

Serves the demo model with two engines and 1, 2 and 4 gateways, puts the same closed load on all gateways alike,
and prints what one request and one streamed token cost in Redis (commands, server time) and in the gateways
(processor time), the share of tokens that pass through inboxes, and the time to the first token.
"""

import argparse
import asyncio
import itertools
import random
import re
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from benchmarks.transport import cpu_s
from gateway import local
from gateway.settings import DEMO_MODEL
from gateway.store.home import open_client

REPLICAS = 2
PROMPT_TOKENS = 50
PATIENT = {"x-slo-ttft-ms": "600000"}


class Meter(NamedTuple):
    """Sums since the start."""

    commands: float
    redis_s: float
    gateways_s: float
    relayed_tokens: float

    def since(self, before: "Meter") -> "Meter":
        return Meter(*(now - then for now, then in zip(self, before, strict=True)))


class Load(NamedTuple):
    requests: int
    tokens: int
    clients: int


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gateways", default="1,2,4", help="counts, with commas")
    parser.add_argument("--requests", type=int, default=600, help="for each count")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--clients", type=int, default=32, help="at once")
    options = parser.parse_args()
    load = Load(options.requests, options.tokens, options.clients)
    print("Redis commands and microseconds, and gateways' microseconds, are per request / per token.\n")
    print("| gateways | tokens relayed | Redis commands | Redis us | gateways us | TTFT P50 / P99 ms | idle |")
    print("|---|---|---|---|---|---|---|")
    for count in map(int, options.gateways.split(",")):
        print(await measure(count, load), flush=True)


async def measure(count: int, load: Load) -> str:
    """A row of the table."""
    async with local.Stack(model=DEMO_MODEL, name="demo", replicas=REPLICAS, threads=1) as stack:
        ports = [local.free_port() for _ in range(count)]
        servers = ["--redis", stack.redis_url, "--triton", stack.triton_address, "--model", DEMO_MODEL]
        pids = [(await stack.start_gateway([*servers, "--port", str(port)])).pid for port in ports]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=PATIENT) as session:
            for url in urls:
                await until_ready(session, url)
            # Seats are shared out, code is loaded, rates are measured.
            await _run(session, urls, Load(4 * load.clients, load.tokens, load.clients))
            await asyncio.sleep(2.0)
            before = await _read(session, stack, urls, pids)
            ttfts_ms = await _run(session, urls, load)
            one = (await _read(session, stack, urls, pids)).since(before)
            # What the gateways do unasked is not the requests'.
            idle_from = await _read(session, stack, urls, pids)
            await asyncio.sleep(5.0)
            idle = (await _read(session, stack, urls, pids)).since(idle_from)
    tokens = load.requests * load.tokens
    p50, p99 = np.quantile(ttfts_ms, [0.5, 0.99])
    return (
        f"| {count} | {one.relayed_tokens / tokens:.0%} "
        f"| {one.commands / load.requests:.1f} / {one.commands / tokens:.2f} "
        f"| {1e6 * one.redis_s / load.requests:.0f} / {1e6 * one.redis_s / tokens:.1f} "
        f"| {1e6 * one.gateways_s / load.requests:.0f} / {1e6 * one.gateways_s / tokens:.0f} "
        f"| {p50:.0f} / {p99:.0f} | {idle.commands / 5:.0f} commands/s, "
        f"Redis {20 * idle.redis_s:.1f} % of a core, a gateway {20 * idle.gateways_s / count:.1f} % |"
    )


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with session.get(f"{url}/ready") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)


async def _run(session: aiohttp.ClientSession, urls: list[str], load: Load) -> list[float]:
    """Times to the first token, ms."""
    ttfts_ms: list[float] = []
    rng = random.Random(1)
    numbers = itertools.count()

    async def client() -> None:
        while (number := next(numbers)) < load.requests:
            body: dict[str, Any] = {
                "model": "demo",
                "prompt": [rng.randrange(5, 1000) for _ in range(PROMPT_TOKENS)],
                "max_tokens": load.tokens,
                "ignore_eos": True,
                "stream": True,
            }
            begun_s = asyncio.get_running_loop().time()
            async with session.post(f"{urls[number % len(urls)]}/v1/completions", json=body) as response:
                assert response.status == 200, await response.text()
                await response.content.readline()
                ttfts_ms.append(1000 * (asyncio.get_running_loop().time() - begun_s))
                await response.read()

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return ttfts_ms


async def _read(session: aiohttp.ClientSession, stack: local.Stack, urls: list[str], pids: list[int]) -> Meter:
    relayed = 0.0
    for url in urls:
        async with session.get(f"{url}/metrics") as response:
            found = re.search(r"^bucketserve_relayed_tokens_total (\S+)$", await response.text(), re.MULTILINE)
            relayed += float(found[1]) if found else 0.0
    async with open_client(stack.redis_url) as redis:
        info = await redis.info("all")
    redis_s = info["used_cpu_user"] + info["used_cpu_sys"]
    return Meter(info["total_commands_processed"], redis_s, sum(map(cpu_s, pids)), relayed)


if __name__ == "__main__":
    asyncio.run(main())
