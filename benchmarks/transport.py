"""What the transport alone costs: `python -m benchmarks.transport [events]`, over the stand-in engine.

Prints events per second flat out, CPU per event of each process, how the stub's memory and /dev/shm grow, and
the latency of a control and its answer beside a stream.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gateway import local
from gateway.session import TritonSession
from gateway.triton import TritonBackend
from tests.stack import standin
from tests.stack.serving import resident_bytes
from triton_backend.contract import Attach, Batch, NewRow

ROWS = 32
WARM_UP = 1000
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def resident_mib(pid: int) -> float:
    return resident_bytes(pid) / 2**20


def shared_mib() -> float:
    return sum(file.stat().st_size for file in Path("/dev/shm").iterdir()) / 2**20


def rows(first: int, tokens: int) -> list[NewRow]:
    return [NewRow(first + row, f"call/{row}", 1, "origin", [1] * 200, 0, tokens) for row in range(ROWS)]


async def drain(session: TritonSession, count: int) -> None:
    seen = 0
    async for _ in session.events():
        seen += 1
        if seen == count:
            return


async def flat_out(backend: TritonBackend, stack: local.Stack, events: int) -> list[str]:
    session = await backend.attach(Attach(1, "bench"))
    await session.send(Batch(1, 1, rows(0, events)))
    pids = {"gateway": os.getpid(), "triton": stack.pid("triton"), "stub": stack.stub_pid("triton")}
    await drain(session, WARM_UP)
    before, shm, rss = (
        {name: cpu_s(pid) for name, pid in pids.items()},
        shared_mib(),
        resident_mib(pids["stub"]),
    )
    started = time.perf_counter()
    count = events - WARM_UP - 1
    await drain(session, count)
    wall_s = time.perf_counter() - started
    cpu = (f"{name} {(cpu_s(pid) - before[name]) / count * 1e6:.0f}" for name, pid in pids.items())
    grown = f"/dev/shm {shm:.1f} -> {shared_mib():.1f}, stub {rss:.1f} -> {resident_mib(pids['stub']):.1f}"
    await session.aclose()
    return [
        f"{count / wall_s:.0f} events/s of {ROWS} rows; CPU us per event: {', '.join(cpu)}",
        f"MiB: {grown}",
    ]


async def paced(backend: TritonBackend, count: int) -> str:
    session = await backend.attach(Attach(2, "bench"))
    reader = asyncio.create_task(drain(session, sys.maxsize))
    took_ms = []
    for seq in range(1, count + 1):
        await asyncio.sleep(0.005)
        if seq % 2:
            await session.send(Batch(2, seq, rows(seq * ROWS + 10**6, 64)))
        started = time.perf_counter()
        await session.probe()
        took_ms.append((time.perf_counter() - started) * 1e3)
    reader.cancel()
    await session.aclose()
    took_ms.sort()
    return f"answer to a control P50 {took_ms[count // 2]:.2f} ms, P99 {took_ms[count * 99 // 100]:.2f} ms"


async def main(events: int, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        template = standin.template(Path(folder) / "llm")
        async with local.Stack(model="standin", template=template, redis_url="none", say=say) as stack:
            backend = TritonBackend(stack.triton_address, "llm")
            for line in [*await flat_out(backend, stack, events), await paced(backend, 2000)]:
                say(line)
            await backend.aclose()


if __name__ == "__main__":
    raise SystemExit(local.supervise(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000, print)))
