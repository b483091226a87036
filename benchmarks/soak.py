"""What a million tokens and a storm leave behind: `python -m benchmarks.soak`.

Over the stand-in engine, with a real Valkey and a real Triton: streams through one gateway, with the memory of
each process and of /dev/shm as they go on; then rows cancelled one by one and sessions broken off, and whether
Triton and the model's process still run.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.gateway import Server, body_of, crowd, stand_in
from benchmarks.transport import resident_mib, shared_mib
from gateway import local
from gateway.triton import TritonBackend
from tests.stack import standin, storm
from triton_backend.contract import Attach

STREAMS = 256
LENGTH_TOKENS = 390
STEP_US = 10_000


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--cancels", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    async with stand_in(STEP_US) as server:
        await soak(server, options.tokens)
    print(await storms(options.cancels, options.kills))


async def soak(server: Server, tokens: int) -> None:
    print(f"| streamed tokens | {' | '.join(server.pids)} | /dev/shm |  (MiB)")
    done = 0
    while done <= tokens:
        resident = " | ".join(f"{resident_mib(pid):.1f}" for pid in server.pids.values())
        print(f"| {done:,} | {resident} | {shared_mib():.1f} |", flush=True)
        await crowd(server, STREAMS, STREAMS, body_of(LENGTH_TOKENS, stream=True))
        done += STREAMS * LENGTH_TOKENS


async def storms(cancels: int, kills: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        template = standin.template(Path(folder) / "llm")
        async with local.Stack(model="standin", template=template, redis_url="none", threads=STEP_US) as stack:
            backend = TritonBackend(stack.triton_address, "llm")
            before = stack.pid("triton"), stack.stub_pid("triton")
            shm_mib, begun_s = shared_mib(), time.perf_counter()
            await storm.cancels(backend, 1, cancels)
            cancelled_s = time.perf_counter()
            await storm.kills(stack.triton_address, "llm", 2, kills)
            killed_s = time.perf_counter()
            session = await backend.attach(Attach(2 + kills, "after"))
            await session.aclose()
            await backend.aclose()
            is_same = (stack.pid("triton"), stack.stub_pid("triton")) == before and stack.is_running("triton")
            return (
                f"{cancels} rows cancelled in {cancelled_s - begun_s:.1f} s, {kills} sessions broken off in "
                f"{killed_s - cancelled_s:.1f} s: Triton and the model's process "
                f"{'go on' if is_same else 'have died'}, "
                f"/dev/shm {shm_mib:.1f} -> {shared_mib():.1f} MiB"
            )


if __name__ == "__main__":
    asyncio.run(main())
