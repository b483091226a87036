"""Three gateways over two replicas, to be broken: real Valkey, real Triton, lines between them that can be cut.

A gateway has a line of its own to Valkey and to Triton, so one of them can be cut off from one of the others.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import aiohttp

from gateway import local
from gateway.run_folder import SHARED_MEMORY, shm_prefix
from gateway.settings import DEMO_MODEL
from gateway.store.home import open_client
from tests.stack.proxy import HOST, Proxy

GATEWAYS = 3
REPLICAS = 2
READY_S = 60.0
POLL_S = 0.1
GRACE_S = 120.0
"""Streams that were open at a gateway's SIGTERM end by themselves."""


class Gateway:
    """One place for a gateway: whichever process has it, its port and its lines stay."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = local.free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.to_valkey: Proxy
        self.to_triton = Proxy()
        self.killed_s = 0.0
        """When it was last killed (time.monotonic)."""
        self.is_open = True
        """Clients may go there."""


class Site:
    def __init__(self, folder: Path, kv_budget_bytes: int | None = None) -> None:
        """`folder` keeps the logs."""
        self._stack = local.Stack(
            model=DEMO_MODEL,
            name="demo",
            replicas=REPLICAS,
            dtype="float32",
            kv_budget_bytes=kv_budget_bytes,
            run_dir=folder,
        )
        self.gateways = [Gateway(f"gateway-{number}") for number in range(GATEWAYS)]
        self._untouched = set(self.gateways)
        self.tritons = self._stack.tritons
        self.valkey, self.engine = asyncio.Lock(), asyncio.Lock()
        """Held by whoever breaks it, or one of them."""
        self.engine_deaths = 0

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            for gateway in self.gateways:
                await self._start(gateway)
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
            await self.ready()
        except BaseException:
            await self._stack.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._stack.__aexit__()
        for gateway in self.gateways:
            await gateway.to_valkey.aclose()
            await gateway.to_triton.aclose()

    async def _start(self, gateway: Gateway) -> None:
        gateway.to_valkey = Proxy(HOST, self._stack.redis_url.rpartition(":")[2])
        await gateway.to_valkey.start()
        await gateway.to_triton.start()
        flags = {
            "port": gateway.port,
            "redis": f"redis://{HOST}:{gateway.to_valkey.port}",
            "triton": self._stack.triton_address,
            "http-grace-s": GRACE_S,
        }
        env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        env["grpc_proxy"] = f"http://{HOST}:{gateway.to_triton.port}"
        await self._stack.start_gateway([f"--{name}={value}" for name, value in flags.items()], env)

    # What breaks

    @asynccontextmanager
    async def victim(self, rng: random.Random, *among: Gateway) -> AsyncIterator[Gateway]:
        """A gateway, by default any, that nobody else breaks; one always stays whole."""
        while len(self._untouched) < 2 or not (
            free := [g for g in among or self.gateways if g in self._untouched]
        ):
            await asyncio.sleep(POLL_S)
        gateway = rng.choice(free)
        self._untouched.remove(gateway)
        try:
            yield gateway
        finally:
            self._untouched.add(gateway)

    def signal(self, name: str, number: signal.Signals) -> None:
        self._stack.kill(name, number)

    def stub_pid(self, triton: str) -> int | None:
        """None while there is none."""
        try:
            return self._stack.stub_pid(triton)
        except StopIteration:
            return None

    def is_running(self, name: str) -> bool:
        return self._stack.is_running(name)

    async def gone(self, name: str) -> None:
        """Returns when a process has ended."""
        while self._stack.is_running(name):
            await asyncio.sleep(POLL_S)

    async def restart(self, name: str) -> None:
        await self._stack.restart(name)

    # What is seen

    async def ready(self, gateways: Collection[Gateway] = ()) -> None:
        """Returns when these gateways, by default all, are ready."""
        async with asyncio.timeout(READY_S):
            for gateway in gateways or self.gateways:
                while not await self.is_ready(gateway):
                    await asyncio.sleep(POLL_S)

    async def is_ready(self, gateway: Gateway) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._client.get(f"{gateway.url}/ready") as response:
                return response.status == 200
        return False

    async def metric(self, name: str) -> float:
        """Summed over gateways, replicas and classes."""
        total = 0.0
        for gateway in self.gateways:
            async with self._client.get(f"{gateway.url}/metrics") as response:
                text = await response.text()
            total += sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
        return total

    async def foreign(self) -> set[str]:
        """Calls that run on a replica which another gateway than theirs drives."""
        async with open_client(self._stack.redis_url, connect_timeout_s=60) as redis:
            [drivers] = await redis.keys("bs1:*:drivers")
            leases = await redis.hgetall(drivers)
            driver_of = {replica: lease.split()[2] for replica, lease in leases.items() if len(lease.split()) > 2}
            found = set()
            for key in await redis.keys("bs1:*:ticket:*"):
                replica, origin = await redis.hmget(key, ["replica", "origin"])
                if replica and driver_of.get(replica) != origin:
                    found.add((key if isinstance(key, str) else key.decode()).split(":ticket:")[1].split("/")[0])
        return found

    async def figures(self) -> dict[str, float]:
        """What has to come back to where it was."""
        async with open_client(self._stack.redis_url, connect_timeout_s=60) as redis:
            tickets = len(await redis.keys("bs1:*:ticket:*"))
            leased = len(await redis.keys("bs1:*:leased:*"))
            queued = len(await redis.keys("bs1:*:set:*"))
            owned = len(await redis.keys("bs1:*:origin:*"))
            inboxes = len(await redis.keys("bs1:*:inbox:*"))
        metrics = ("running_rows", "waiting_rows", "kv_used_bytes", "streams", "live_calls")
        regions = list(SHARED_MEMORY.glob(f"{shm_prefix(self._stack.run_dir)}*"))
        return {
            "tickets": tickets,
            "leased": leased,
            "queued": queued,
            "owned": owned,
            "inboxes": inboxes,
            **{name: await self.metric(f"bucketserve_{name}") for name in metrics},
            **{f"files of {name}": _files(self._stack.pid(name)) for name in self._processes},
            **{f"files of {name}'s engine": _files(self._stack.stub_pid(name)) for name in self.tritons},
            **{f"threads of {name}": _threads(self._stack.pid(name)) for name in self.tritons},
            "shared memory regions": len(regions),
            "shared memory bytes": sum(region.stat().st_size for region in regions),
        }

    def thread_names(self) -> dict[str, Counter[str]]:
        """By Triton, to tell what has grown."""
        return {name: Counter(_thread_names(self._stack.pid(name))) for name in self.tritons}

    @property
    def _processes(self) -> list[str]:
        return ["valkey", *self.tritons, *(gateway.name for gateway in self.gateways)]


def _files(pid: int) -> int:
    """Open files and sockets."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _threads(pid: int) -> int:
    """But for those of gRPC's pool, which grows with a burst of connections (2 to 7 threads in one of 100) and
    ends a thread only when it had nothing to do for 30 s: keepalives can keep one busy for ever; and those that
    run gRPC's timers, of which there is always one more than had something to run at the same time."""
    return sum(name not in ("event_engine", "grpc_global_tim") for name in _thread_names(pid))


def _thread_names(pid: int) -> Iterator[str]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            yield (task / "comm").read_text().strip()


def now_s() -> float:
    return time.monotonic()
