"""Clients that go away at random moments leave nothing behind: no row, no lease, no KV byte, no memory."""

import asyncio
import contextlib
import random

import aiohttp
import pytest

from gateway.store.home import open_client
from tests.stack import client
from tests.stack.serving import Serving, eventually, resident_bytes

pytestmark = pytest.mark.timeout(300)

CLIENTS = 300
ROUNDS = 10
DEADLINE_S = 2.0


async def leave(session: aiohttp.ClientSession, model: str, rng: random.Random) -> None:
    """Ask for a long answer and go away before it is complete."""
    body = {
        "model": model,
        "prompt": [rng.randrange(5, 200) for _ in range(rng.randrange(1, 300))],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": rng.random() < 0.5,
    }
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(rng.random() * 0.8):
            async with session.post("/v1/completions", json=body) as response:
                async for _ in response.content:
                    pass


async def storm(serving: Serving, seed: int) -> None:
    rng = random.Random(seed)
    async with client.session(serving.url) as session:
        await asyncio.gather(*(leave(session, serving.model, rng) for _ in range(CLIENTS)))


async def tickets(serving: Serving) -> int:
    """Tickets, queued or leased, that the store still holds."""
    async with open_client(serving.redis_url) as redis:
        return len(await redis.keys("bs1:*:ticket:*"))


def is_idle(serving: Serving) -> bool:
    figures = ("bucketserve_running_rows", "bucketserve_waiting_rows", "bucketserve_kv_used_bytes")
    return not any(serving.metric(name) for name in figures) and not client.run(tickets(serving))


def test_storms_of_disconnects_leave_nothing_behind(serving: Serving) -> None:
    [gateway] = serving.descendants("-m gateway gateway")
    sizes = []
    for seed in range(ROUNDS):
        client.run(storm(serving, seed))
        assert eventually(lambda: is_idle(serving), DEADLINE_S)
        sizes.append(resident_bytes(gateway))
    # The first rounds fill caches and pools.
    assert sizes[-1] - sizes[3] < 8 * 2**20, sizes
