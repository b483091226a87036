"""An hour's comings and goings in minutes, and what is left of them: `python -m benchmarks.churn`.

Starts several gateways over two engines and one queue and asks for many short answers: streams that are read to
their end, answers in one piece, clients that leave in the middle, and such that leave and read on at another
gateway.  After each sixth of them, once everything is idle, it prints memory, open files and sockets of each
process, the keys and the memory of the queue's server, and shared memory.

By default over the stand-in engine, which has no model; `--model` takes the demo model, with memory for so few
rows that some are evicted all the time.
"""

import argparse
import asyncio
import itertools
import os
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from benchmarks.relay import until_ready
from benchmarks.transport import resident_mib
from gateway import local
from gateway.run_folder import SHARED_MEMORY, shm_prefix
from gateway.settings import DEMO_MODEL
from gateway.store.home import open_client
from tests.stack import standin

REPLICAS = 2
PARTS = 6
READY_S = 60.0
RESUME_TTL_S = 10.0
"""Records of streams are gone so long after their end, and other things that expire before."""
IDLE_S = 14.0
TIGHT_BYTES = 12 * 2**20
HEADERS = {"x-slo-ttft-ms": "600000", "x-slo-tpot-ms": "600000", "Accept": "text/event-stream"}
DEEDS = {"read": 50, "whole": 15, "leave": 20, "leave and read on": 10, "leave running and read on": 5}
"""What clients do, and how often of 100."""


class Place(NamedTuple):
    url: str
    other_url: str


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, default=115_000, help="an hour's at 32 a second")
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--clients", type=int, default=48, help="at once")
    parser.add_argument("--model", action="store_true", help="the demo model instead of the stand-in engine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Any] = {"template": standin.template(Path(folder) / "template"), "threads": 500}
        if options.model:
            engines = {"kv_budget_bytes": TIGHT_BYTES, "threads": 1}
        run_dir = Path(folder) / "run"
        async with local.Stack(
            model=DEMO_MODEL, name="demo", replicas=REPLICAS, run_dir=run_dir, **engines
        ) as stack:
            await churn(stack, options.gateways, options.requests, options.clients)


async def churn(stack: local.Stack, num_gateways: int, requests: int, clients: int) -> None:
    ports = [local.free_port() for _ in range(num_gateways)]
    for port in ports:
        servers = ["--redis", stack.redis_url, "--triton", stack.triton_address]
        flags = ["--port", str(port), "--model-name", "demo", "--resume-ttl-s", str(RESUME_TTL_S)]
        await stack.start_gateway([*servers, *flags, "--log-level", "error"])
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    processes = {f"gateway-{number}": stack.pid(f"gateway-{number}") for number in range(num_gateways)}
    processes |= {name: stack.pid(name) for name in (*stack.tritons, "valkey")}
    processes |= {f"engine of {triton}": stack.stub_pid(triton) for triton in stack.tritons}
    did: Counter[str] = Counter()
    begun_s = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        async with asyncio.timeout(READY_S):
            for url in urls:
                await until_ready(session, url)
        print(f"each process: MiB resident / open files / sockets of them\n\n{head(processes)}")
        for part in range(PARTS + 1):
            if part:
                await crowd(session, urls, requests // PARTS, clients, part, did)
            await asyncio.sleep(IDLE_S)
            print(await row(stack, session, urls, processes, did.total(), time.monotonic() - begun_s), flush=True)
        for name in ("put_backs", "resumed_calls", "generated_tokens", "relayed_tokens"):
            print(f"{name}: {await metric(session, urls, name):.0f}", end="; ")
    print(dict(did))


def head(processes: dict[str, int]) -> str:
    names = ["requests", "minutes", *processes, "keys", "queue's memory, MiB", "shared memory, MiB"]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


async def row(
    stack: local.Stack,
    session: aiohttp.ClientSession,
    urls: list[str],
    processes: dict[str, int],
    done: int,
    s: float,
) -> str:
    async with open_client(stack.redis_url) as redis:
        keys = Counter(
            (key if isinstance(key, str) else key.decode()).split(":")[2] for key in await redis.keys("bs1:*")
        )
        memory = (await redis.info("memory"))["used_memory"]
    assert not await metric(session, urls, "live_calls") + keys["ticket"] + keys["leased"], "it is not idle"
    shared = sum(region.stat().st_size for region in SHARED_MEMORY.glob(f"{shm_prefix(stack.run_dir)}*"))
    sizes = [f"{resident_mib(pid):.0f} / {' / '.join(map(str, files(pid)))}" for pid in processes.values()]
    figures = [
        f"{done:,}",
        f"{s / 60:.1f}",
        *sizes,
        str(keys.total()),
        f"{memory / 2**20:.2f}",
        f"{shared / 2**20:.1f}",
    ]
    return f"| {' | '.join(figures)} |"


def files(pid: int) -> tuple[int, int]:
    """Open files, and how many of them are sockets."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(link))
        except FileNotFoundError:
            continue
    return len(links), sum(link.startswith("socket:") for link in links)


async def metric(session: aiohttp.ClientSession, urls: list[str], name: str) -> float:
    """Summed over gateways and labels."""
    total = 0.0
    for url in urls:
        async with session.get(f"{url}/metrics") as response:
            text = await response.text()
        total += sum(
            map(float, re.findall(rf"^bucketserve_{name}(?:_total)?(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        )
    return total


async def crowd(
    session: aiohttp.ClientSession, urls: list[str], requests: int, clients: int, seed: int, did: Counter[str]
) -> None:
    rng, numbers = random.Random(seed), itertools.count()

    async def client() -> None:
        while next(numbers) < requests:
            url, other_url = rng.sample(urls, 2) if len(urls) > 1 else urls * 2
            (deed,) = rng.choices(list(DEEDS), list(DEEDS.values()))
            did[await one(session, Place(url, other_url), deed, rng)] += 1

    await asyncio.gather(*(client() for _ in range(clients)))


async def one(session: aiohttp.ClientSession, place: Place, deed: str, rng: random.Random) -> str:
    """Do one thing; what it was, or how it was refused."""
    tokens = rng.randrange(2, 24)
    body = {
        "model": "demo",
        "prompt": [rng.randrange(5, 600) for _ in range(rng.randrange(1, 120))],
        "max_tokens": tokens,
        # Answers that end by themselves are learned from.
        "ignore_eos": rng.random() < 0.8,
        "service_tier": rng.choice(["priority", "default", "flex"]),
        "stream": deed != "whole",
    }
    headers = HEADERS | ({"x-keep-running": "true"} if "running" in deed else {})
    last_id = None
    async with session.post(f"{place.url}/v1/completions", json=body, headers=headers) as response:
        if response.status != 200:
            await response.read()
            return str(response.status)
        if not deed.startswith("leave"):
            await response.read()
            return deed
        leaves_at = rng.randrange(1, 2 * tokens)
        async for line in response.content:
            if line.startswith(b"id: "):
                last_id = str(line[4:].strip(), "utf-8")
            leaves_at -= line.startswith(b"data: ")
            if leaves_at <= 0:
                break
        call_id = response.headers["x-request-id"]
    if last_id is None or "read on" not in deed:
        return deed
    again = {"Last-Event-ID": last_id, **HEADERS}
    async with session.get(f"{place.other_url}/v1/streams/{call_id}", headers=again) as response:
        text = await response.read()
        return deed if response.status == 200 and b"[DONE]" in text else f"{deed}: {response.status}"


if __name__ == "__main__":
    asyncio.run(main())
