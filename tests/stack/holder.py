"""Holds a session until it is killed: `python -m tests.stack.holder ADDRESS EPOCH`."""

import asyncio
import sys

from gateway.triton import TritonBackend
from triton_backend.contract import Attach


async def main(address: str, epoch: int) -> None:
    session = await TritonBackend(address, "llm").attach(Attach(epoch, "holder"))
    sys.stdout.write("attached\n")
    sys.stdout.flush()
    async for _ in session.events():
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
