"""What the gateway itself costs: `python -m benchmarks.gateway [--peer VENV]`.

One gateway, a real Valkey and a real Triton, and an engine without a model that draws a token for every row in
each step.  Prints the time to the first token at one client, beside that of a server that does nothing else;
processor time of each process per short request and per streamed token; how evenly tokens reach the client; and
what a client with a body of 5 MB and one that does not read do to the others.  With `--peer` it then does the same
with LiteLLM's proxy from that environment, before an OpenAI server without a model (benchmarks/upstream.py), at a
load that it can carry.
"""

import argparse
import asyncio
import io
import json
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from benchmarks.transport import cpu_s
from gateway import local
from gateway.openai.answer import DONE
from gateway.settings import DEMO_MODEL
from tests.stack import standin

STEP_US = 20_000
"""Of an engine under many streams; a step for one client takes no time."""
BIG_BYTES = 5_000_000
DEAF_CHOICES = 4
"""Of the client that does not read: after some three seconds the gateway has to wait for it."""
READY_S = 120.0


class Server(NamedTuple):
    session: aiohttp.ClientSession
    url: str
    pids: Mapping[str, int]
    """By name; the first is what answers clients."""


Serving = AbstractAsyncContextManager[Server]


class Spent(NamedTuple):
    """Of one load of so many requests or tokens."""

    units: int
    wall_s: float
    cpu_s: Mapping[str, float]

    @property
    def own_us(self) -> float:
        """For each, by the process that answers."""
        return 1e6 * next(iter(self.cpu_s.values())) / self.units

    @property
    def each(self) -> str:
        return ", ".join(f"{name} {1e6 * spent / self.units:.1f}" for name, spent in self.cpu_s.items())


class Beside(NamedTuple):
    """How streams fared beside those who ask for much."""

    gaps_ms: Any
    lags: int
    """Samples of the loop's lag."""
    lag_p99_ms: float
    """At most."""
    statuses: list[int]
    """Of the large bodies."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--streams", type=int, default=256, help="at once")
    parser.add_argument("--tokens", type=int, default=300, help="of each of them")
    parser.add_argument("--peer", type=Path, help="an environment with litellm[proxy]")
    options = parser.parse_args()
    async with bare(0) as server:
        bare_ms = await first_token(server)
    async with stand_in(0) as server:
        took_ms = await first_token(server)
        p50, p99 = (np.quantile(took_ms, at) - np.quantile(bare_ms, at) for at in (0.5, 0.99))
        print(f"first token, one client: {quantiles(took_ms)}; of a server without anything: {quantiles(bare_ms)}")
        print(f"added: P50 {p50:.1f}, P99 {p99:.1f} ms (wanted 3 and 10)")
        await _print_short(server, 6000, 32)
    async with stand_in(STEP_US) as server:
        await _print_streams(server, options.streams, options.tokens)
        gaps = await gaps_ms(server, 32, 200)
        # Each step gives every stream a token, so the mean is the engine's, however they come.
        step_ms = np.mean(gaps)
        print(
            f"32 streams, steps of {step_ms:.1f} ms, gaps between tokens at the client: {quantiles(gaps)}; "
            f"{np.mean(gaps < step_ms / 2):.2%} under half a step"
        )
        beside = await neighbours(server, 32, 400)
        print(
            f"32 streams beside {len(beside.statuses)} bodies of 5 MB (answered {sorted(set(beside.statuses))}) "
            f"and a client that does not read: gaps {quantiles(beside.gaps_ms)}; the loop's lag, {beside.lags} "
            f"samples: P99 below {beside.lag_p99_ms:g} ms (wanted 20)"
        )
    if options.peer:
        async with stand_in(STEP_US) as server:
            await _print_short(server, 600, 8)
            await _print_streams(server, 8, 200)
        async with peer(options.peer) as server:
            print("LiteLLM")
            await _print_short(server, 600, 8)
            await _print_streams(server, 8, 200)


async def _print_short(server: Server, count: int, clients: int) -> None:
    spent = await short_requests(server, count, clients)
    print(
        f"short requests, {clients} at once: {count / spent.wall_s:.0f}/s, {1e6 / spent.own_us:.0f} a second and "
        f"core (wanted 800); us each: {spent.each}"
    )


async def _print_streams(server: Server, count: int, tokens: int) -> None:
    spent = await streams(server, count, tokens)
    print(
        f"{count} streams, a step every {STEP_US / 1000:g} ms: {spent.units / spent.wall_s:.0f} tokens/s; "
        f"us a token (wanted 40): {spent.each}"
    )


async def first_token(server: Server, count: int = 1000) -> list[float]:
    """Milliseconds each: one after the other, by a client that does as little as it can."""
    reader, writer = await asyncio.open_connection(*_address(server))
    question = _question(server, body_of(2, stream=True))
    took_ms = []
    for _ in range(count):
        begun_s = time.perf_counter()
        writer.write(question)
        await reader.readuntil(b'"text":')
        took_ms.append(1000 * (time.perf_counter() - begun_s))
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return took_ms[count // 10 :]


async def short_requests(server: Server, count: int, clients: int) -> Spent:
    """As many as it can take, one token each."""
    await crowd(server, 2 * clients, clients, body_of(1))
    return await _spent(server, count, crowd(server, count, clients, body_of(1)))


async def streams(server: Server, count: int, tokens: int) -> Spent:
    """Of a token."""
    await crowd(server, min(count, 32), 32, body_of(16, stream=True))
    return await _spent(server, count * tokens, crowd(server, count, count, body_of(tokens, stream=True)))


async def gaps_ms(server: Server, count: int, tokens: int) -> Any:
    """Between tokens at the client, of so many streams."""
    return np.concatenate(await asyncio.gather(*(_gaps_ms(server, tokens) for _ in range(count))))


async def neighbours(server: Server, count: int, tokens: int) -> Beside:
    """While big bodies come in and somebody does not read."""
    before = await _lag(server)
    deaf = await deaf_client(_address(server), _question(server, body_of(4000, stream=True) | {"n": DEAF_CHOICES}))
    watched = asyncio.create_task(gaps_ms(server, count, tokens))
    # Six bytes a character in JSON: within what is tokenised, and longer than the context.
    big = json.dumps(body_of(1) | {"prompt": "é" * (BIG_BYTES // 6)}).encode()
    statuses = []
    while not watched.done():
        async with server.session.post(
            f"{server.url}/v1/completions", data=io.BytesIO(big), headers=_JSON
        ) as response:
            statuses.append(response.status)
        await asyncio.sleep(0.2)
    deaf.close()
    lag = [(bound, now - then) for (bound, now), (_, then) in zip(await _lag(server), before, strict=True)]
    p99_s = next(bound for bound, below in lag if below >= 0.99 * lag[-1][1])
    return Beside(await watched, int(lag[-1][1]), 1000 * p99_s, statuses)


_JSON = {"Content-Type": "application/json"}


async def _gaps_ms(server: Server, tokens: int) -> Any:
    async with server.session.post(f"{server.url}/v1/completions", json=body_of(tokens, stream=True)) as response:
        assert response.status == 200, await response.text()
        events = [(time.perf_counter(), line) async for line in response.content if line.startswith(b"data: ")]
    assert events[-1][1] == DONE.removesuffix(b"\n"), events[-1][1]
    # The first wait is for a batch to begin; the last two events are the end.
    return 1000 * np.diff([came_s for came_s, _ in events[1:-2]])


async def deaf_client(address: tuple[str, int], question: bytes) -> socket.socket:
    """Asks and does not read, and its kernel takes little for it: between sockets of one machine it would be
    megabytes, which no run of this length fills."""
    deaf = socket.socket()
    deaf.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(deaf, address)
    await loop.sock_sendall(deaf, question)
    return deaf


def _address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def _question(server: Server, body: dict[str, Any]) -> bytes:
    """As it goes over the wire."""
    payload = json.dumps(body).encode()
    fields = {"Host": _address(server)[0], "Content-Length": len(payload), **_JSON, **server.session.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/completions HTTP/1.1\r\n{head}\r\n".encode() + payload


async def _lag(server: Server) -> list[tuple[float, float]]:
    """Cumulative counts by upper bound, s."""
    async with server.session.get(f"{server.url}/metrics") as response:
        text = await response.text()
    found = re.findall(r'^bucketserve_event_loop_lag_seconds_bucket\{le="(\S+)"\} (\S+)$', text, re.MULTILINE)
    return [(float(bound), float(count)) for bound, count in found]


def quantiles(values_ms: Any) -> str:
    p1, p50, p99, most = np.quantile(values_ms, [0.01, 0.5, 0.99, 1.0])
    return f"P1 {p1:.1f}, P50 {p50:.1f}, P99 {p99:.1f}, longest {most:.1f} ms"


async def _spent(server: Server, count: int, load: Any) -> Spent:
    before, begun_s = {name: cpu_s(pid) for name, pid in server.pids.items()}, time.perf_counter()
    await load
    wall_s = time.perf_counter() - begun_s
    return Spent(count, wall_s, {name: cpu_s(pid) - before[name] for name, pid in server.pids.items()})


async def crowd(server: Server, requests: int, clients: int, body: dict[str, Any]) -> None:
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            async with server.session.post(f"{server.url}/v1/completions", json=body) as response:
                answer = await response.read()
                assert response.status == 200, answer
                # An error after the first byte has no other status.
                assert not body["stream"] or answer.endswith(DONE), answer[-1000:]

    await asyncio.gather(*(client() for _ in range(clients)))


@asynccontextmanager
async def stand_in(step_us: int) -> AsyncIterator[Server]:
    key = secrets.token_hex()
    with tempfile.TemporaryDirectory() as folder:
        template = standin.template(Path(folder) / "llm")
        async with local.Stack(model="standin", template=template, threads=step_us) as stack:
            port = local.free_port()
            flags = {
                "redis": stack.redis_url,
                "triton": stack.triton_address,
                "model": DEMO_MODEL,
                "model-name": "demo",
                "port": port,
                "api-keys": key,
                "http-max-body-bytes": "8MiB",
            }
            gateway = await stack.start_gateway([f"--{name}={value}" for name, value in flags.items()])
            pids = {
                "gateway": gateway.pid,
                "valkey": stack.pid("valkey"),
                "triton": stack.pid("triton"),
                "stub": stack.stub_pid("triton"),
            }
            async with _client(key) as session:
                yield Server(session, await _until_ready(session, port, "ready"), pids)


@asynccontextmanager
async def peer(environment: Path) -> AsyncIterator[Server]:
    """LiteLLM's proxy, one worker, before an OpenAI server that has no model."""
    key = "sk-" + secrets.token_hex()
    port, upstream_port = local.free_port(), local.free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        to = {
            "model": "text-completion-openai/demo",
            "api_base": f"http://127.0.0.1:{upstream_port}/v1",
            "api_key": "x",
        }
        config.write_text(json.dumps({"model_list": [{"model_name": "demo", "litellm_params": to}]}))
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env["LITELLM_MASTER_KEY"] = key
        with (Path(folder) / "log").open("wb") as log:
            upstream = await _upstream(upstream_port, STEP_US)
            proxy = await asyncio.create_subprocess_exec(
                *(environment / "bin" / "litellm", "--config", config, "--num_workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                env=env,
                stdout=log,
                stderr=log,
            )
            try:
                async with _client(key) as session:
                    url = await _until_ready(session, port, "health/liveliness")
                    yield Server(session, url, {"litellm": proxy.pid})
            finally:
                for process in (proxy, upstream):
                    process.send_signal(signal.SIGTERM)
                    await process.wait()


@asynccontextmanager
async def bare(step_us: int) -> AsyncIterator[Server]:
    """The OpenAI server without a model alone."""
    port = local.free_port()
    process = await _upstream(port, step_us)
    try:
        async with _client("") as session:
            yield Server(session, await _until_ready(session, port, "v1/models"), {"bare": process.pid})
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _upstream(port: int, step_us: int) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "benchmarks.upstream", str(port), str(step_us))
    return await asyncio.create_subprocess_exec(*command)


def _client(key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=READY_S),
    )


async def _until_ready(session: aiohttp.ClientSession, port: int, path: str) -> str:
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(READY_S):
        while True:
            try:
                async with session.get(f"{url}/{path}") as response:
                    if response.status == 200:
                        return url
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def body_of(tokens: int, stream: bool = False) -> dict[str, Any]:
    return {"model": "demo", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True, "stream": stream}


if __name__ == "__main__":
    asyncio.run(main())
