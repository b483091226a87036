"""What may break, each by name: it breaks, stays so for a while and is whole again when the coroutine returns."""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any, NamedTuple

from tests.stack.site import Gateway, Site, now_s

STOP_S = 10.0
REVIVAL_S = 60.0


async def kill_gateway(site: Site, rng: random.Random) -> None:
    async with site.victim(rng) as gateway:
        gateway.is_open = False
        gateway.killed_s = now_s()
        site.signal(gateway.name, SIGKILL)
        await asyncio.sleep(rng.uniform(1, 5))
        await _restart(site, gateway)


async def stop_gateway(site: Site, rng: random.Random) -> None:
    async with site.victim(rng) as gateway:
        gateway.is_open = False
        site.signal(gateway.name, SIGSTOP)
        await asyncio.sleep(STOP_S)
        site.signal(gateway.name, SIGCONT)
        gateway.is_open = True


async def drain_gateway(site: Site, rng: random.Random) -> None:
    async with site.victim(rng) as gateway:
        await _drain(site, gateway)


async def rolling_restart(site: Site, rng: random.Random) -> None:
    for gateway in site.gateways:
        async with site.victim(rng, gateway):
            await _drain(site, gateway)


async def kill_triton(site: Site, rng: random.Random) -> None:
    async with site.engine:
        site.engine_deaths += 1
        triton = rng.choice(site.tritons)
        site.signal(triton, SIGKILL)
        await asyncio.sleep(rng.uniform(0, 2))
        await site.restart(triton)


async def kill_stub(site: Site, rng: random.Random) -> None:
    await _break_stub(site, rng, SIGKILL)


async def hang_stub(site: Site, rng: random.Random) -> None:
    await _break_stub(site, rng, SIGSTOP)


async def kill_valkey(site: Site, rng: random.Random) -> None:
    async with site.valkey:
        site.signal("valkey", SIGKILL)
        await asyncio.sleep(rng.uniform(0.5, 4))
        await site.restart("valkey")


async def stop_valkey(site: Site, rng: random.Random) -> None:
    async with site.valkey:
        site.signal("valkey", SIGSTOP)
        await asyncio.sleep(STOP_S)
        site.signal("valkey", SIGCONT)


async def part_from_valkey(site: Site, rng: random.Random) -> None:
    async with site.victim(rng) as gateway:
        gateway.to_valkey.cut()
        await asyncio.sleep(STOP_S)
        gateway.to_valkey.mend()


async def part_from_triton(site: Site, rng: random.Random) -> None:
    async with site.victim(rng) as gateway:
        gateway.to_triton.cut()
        await asyncio.sleep(STOP_S)
        gateway.to_triton.mend()


class Fault(NamedTuple):
    name: str
    strike: Callable[[Site, random.Random], Coroutine[Any, Any, None]]
    kills_engines: bool = False


FAULTS = [
    Fault("kill a gateway", kill_gateway),
    Fault("stop a gateway for 10 s", stop_gateway),
    Fault("drain a gateway", drain_gateway),
    Fault("kill Triton", kill_triton, kills_engines=True),
    Fault("kill a stub", kill_stub, kills_engines=True),
    Fault("hang a stub", hang_stub, kills_engines=True),
    Fault("kill Valkey, back empty", kill_valkey),
    Fault("stop Valkey for 10 s", stop_valkey),
    Fault("part a gateway from Valkey", part_from_valkey),
    Fault("part a gateway from Triton", part_from_triton),
]
ALL = [*FAULTS, Fault("rolling restart", rolling_restart)]


async def _restart(site: Site, gateway: Gateway) -> None:
    await site.restart(gateway.name)
    await site.ready([gateway])
    gateway.is_open = True


async def _drain(site: Site, gateway: Gateway) -> None:
    site.signal(gateway.name, SIGTERM)
    gateway.is_open = False
    await site.gone(gateway.name)
    await _restart(site, gateway)


async def _break_stub(site: Site, rng: random.Random, number: Signals) -> None:
    """It takes its server along, once the gateways have found one that hangs; `up` would start another."""
    async with site.engine:
        site.engine_deaths += 1
        triton = rng.choice(site.tritons)
        stub = site.stub_pid(triton)
        assert stub is not None
        os.kill(stub, number)
        async with asyncio.timeout(REVIVAL_S):
            await site.gone(triton)
        await site.restart(triton)
