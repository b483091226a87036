"""What the gateway itself costs: `python -m benchmarks.gateway [--peer VENV]`.

One gateway, a real Valkey and a real Triton, and an engine without a model that draws a token for every row in
each step.  Prints the time to the first token at one client, processor time of each process per short request and
per streamed token, how evenly tokens reach the client, and what a client with a body of 5 MB and one that does not
read do to the others.  With `--peer` it then does the same with LiteLLM's proxy from that environment, before an
OpenAI server without a model (benchmarks/upstream.py), at a load that it can carry.
"""

import argparse
import asyncio
import io
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from benchmarks.transport import cpu_s
from gateway import local
from gateway.settings import DEMO_MODEL
from tests.stack import standin

STEP_US = 20_000
"""Of an engine under many streams; a step for one client takes no time."""
BIG_BYTES = 5_000_000
READY_S = 120.0


class Server(NamedTuple):
    session: aiohttp.ClientSession
    url: str
    pids: Mapping[str, int]
    """By name; the first is what answers clients."""


class Spent(NamedTuple):
    """Of one load."""

    wall_s: float
    cpu_s: Mapping[str, float]

    def each(self, count: int) -> str:
        return ", ".join(f"{name} {1e6 * spent / count:.1f}" for name, spent in self.cpu_s.items())


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--streams", type=int, default=256, help="at once")
    parser.add_argument("--tokens", type=int, default=300, help="of each of them")
    parser.add_argument("--peer", type=Path, help="an environment with litellm[proxy]")
    options = parser.parse_args()
    async with stand_in(0) as server:
        print(await first_token(server))
        print(await short_requests(server, 6000, 32))
    async with stand_in(STEP_US) as server:
        print(await streams(server, options.streams, options.tokens))
        print(await evenness(server, 32, 200))
        print(await neighbours(server, 32, 400))
    if options.peer:
        async with stand_in(STEP_US) as server:
            print(await short_requests(server, 600, 8))
            print(await streams(server, 8, 200))
        async with peer(options.peer) as server:
            print("LiteLLM")
            print(await short_requests(server, 600, 8))
            print(await streams(server, 8, 200))


async def first_token(server: Server, count: int = 1000) -> str:
    """One after the other, by a client that does as little as it can."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(body_of(2, stream=True)).encode()
    fields = {"Host": host, "Content-Length": len(body), **server.session.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    question = f"POST /v1/completions HTTP/1.1\r\n{head}\r\n".encode() + body
    took_ms = []
    for _ in range(count):
        begun_s = time.perf_counter()
        writer.write(question)
        await reader.readuntil(b'"text":')
        took_ms.append(1000 * (time.perf_counter() - begun_s))
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    p50, p99 = np.quantile(took_ms[100:], [0.5, 0.99])
    return f"first token, one client: P50 {p50:.1f} ms, P99 {p99:.1f} ms (wanted 3 and 10)"


async def short_requests(server: Server, count: int, clients: int) -> str:
    """As many as it can take, one token each."""
    await crowd(server, 2 * clients, clients, body_of(1))
    spent = await _spent(server, crowd(server, count, clients, body_of(1)))
    own_s = next(iter(spent.cpu_s.values()))
    return (
        f"short requests, {clients} at once: {count / spent.wall_s:.0f}/s, {count / own_s:.0f} a second and core "
        f"(wanted 800); us each: {spent.each(count)}"
    )


async def streams(server: Server, count: int, tokens: int) -> str:
    await crowd(server, min(count, 32), 32, body_of(16, stream=True))
    spent = await _spent(server, crowd(server, count, count, body_of(tokens, stream=True)))
    return (
        f"{count} streams, a step every {STEP_US / 1000:g} ms: {count * tokens / spent.wall_s:.0f} tokens/s; "
        f"us a token (wanted 40): {spent.each(count * tokens)}"
    )


async def evenness(server: Server, count: int, tokens: int) -> str:
    gaps_ms = np.concatenate(await asyncio.gather(*(_gaps_ms(server, tokens) for _ in range(count))))
    return f"{count} streams, gaps between tokens at the client: {_quantiles(gaps_ms)}"


async def neighbours(server: Server, count: int, tokens: int) -> str:
    """The gaps of others, and how late the loop is, while big bodies come in and somebody does not read."""
    before = await _lag(server)
    watched = asyncio.gather(*(_gaps_ms(server, tokens) for _ in range(count)))
    deaf = asyncio.create_task(_deaf(server))
    # Six bytes a character in JSON: within what is tokenised, and longer than the context.
    big = json.dumps(body_of(1) | {"prompt": "é" * (BIG_BYTES // 6)}).encode()
    statuses = []
    while not watched.done():
        async with server.session.post(
            f"{server.url}/v1/completions", data=io.BytesIO(big), headers=_JSON
        ) as response:
            statuses.append(response.status)
        await asyncio.sleep(0.2)
    deaf.cancel()
    gaps_ms = np.concatenate(await watched)
    lag = [(bound, now - then) for (bound, now), (_, then) in zip(await _lag(server), before, strict=True)]
    p99_s = next(bound for bound, below in lag if below >= 0.99 * lag[-1][1])
    return (
        f"{count} streams beside {len(statuses)} bodies of 5 MB (answered {sorted(set(statuses))}) and a client "
        f"that does not read: gaps {_quantiles(gaps_ms)}; the loop's lag, {lag[-1][1]:.0f} samples: "
        f"P99 below {1000 * p99_s:g} ms (wanted 20)"
    )


_JSON = {"Content-Type": "application/json"}


async def _gaps_ms(server: Server, tokens: int) -> Any:
    async with server.session.post(f"{server.url}/v1/completions", json=body_of(tokens, stream=True)) as response:
        lines = response.content
        came_s = [time.perf_counter() async for line in lines if line.startswith(b"data: {")]
    # The first wait is for a batch to begin, the last event the end.
    return 1000 * np.diff(came_s[1:-1])


async def _deaf(server: Server) -> None:
    """Asks for a long answer and does not read it."""
    async with server.session.post(f"{server.url}/v1/completions", json=body_of(4000, stream=True)):
        await asyncio.sleep(3600)


async def _lag(server: Server) -> list[tuple[float, float]]:
    """Cumulative counts by upper bound, s."""
    async with server.session.get(f"{server.url}/metrics") as response:
        text = await response.text()
    found = re.findall(r'^bucketserve_event_loop_lag_seconds_bucket\{le="(\S+)"\} (\S+)$', text, re.MULTILINE)
    return [(float(bound), float(count)) for bound, count in found]


def _quantiles(values_ms: Any) -> str:
    p1, p50, p99, most = np.quantile(values_ms, [0.01, 0.5, 0.99, 1.0])
    return f"P1 {p1:.1f}, P50 {p50:.1f}, P99 {p99:.1f}, longest {most:.1f} ms"


async def _spent(server: Server, load: Any) -> Spent:
    before, begun_s = {name: cpu_s(pid) for name, pid in server.pids.items()}, time.perf_counter()
    await load
    wall_s = time.perf_counter() - begun_s
    return Spent(wall_s, {name: cpu_s(pid) - before[name] for name, pid in server.pids.items()})


async def crowd(server: Server, requests: int, clients: int, body: dict[str, Any]) -> None:
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            async with server.session.post(f"{server.url}/v1/completions", json=body) as response:
                assert response.status == 200, await response.text()
                await response.read()

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
            upstream = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.upstream", str(upstream_port), str(STEP_US))
            )
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
