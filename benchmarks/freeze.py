"""What a frozen Redis does to streams: `python -m benchmarks.freeze`.

The chaos tests' site and crowd: three gateways, two engines, 215 clients that keep streams open.  Stops Valkey for
10 s, several times, and prints the longest pause of streams whose own gateway drives their engine, from the stop
until 2 s after the thaw, and how long after the thaw the first foreign stream, half of them and the last went on.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import numpy as np

from tests.stack.crowd import Crowd
from tests.stack.site import Site, now_s

STOP_S = 10.0
AFTER_S = 2.0
CALM_S = 6.0
"""So long is listened after a thaw."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--streams", type=int, default=215)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    print("| own | pause, s | foreign | first, half, last go on after, s | silent still | put back |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        async with Site(Path(folder)) as site, Crowd(site, options.streams, seed=1) as crowd:
            for _ in range(options.times):
                await crowd.grown()
                print(await freeze(site, crowd), flush=True)


async def freeze(site: Site, crowd: Crowd) -> str:
    """A row of the table."""
    put_backs = await site.metric("bucketserve_put_backs_total")
    foreign_ids = await site.foreign()
    met = crowd.flowing
    foreign = [stream for stream in met if stream.call_id in foreign_ids]
    own = [stream for stream in met if stream.call_id not in foreign_ids]
    begun_s = now_s()
    site.signal("valkey", SIGSTOP)
    await asyncio.sleep(STOP_S)
    site.signal("valkey", SIGCONT)
    thaw_s = now_s()
    await asyncio.sleep(CALM_S)
    pause_s = max((stream.pause_s(begun_s, thaw_s + AFTER_S) for stream in own), default=0.0)
    # What came with the thaw's first moments was under way before.
    frozen = [stream for stream in foreign if not stream.end_s or stream.end_s > thaw_s]
    delays_s = [min(heard) for stream in frozen if (heard := [s - thaw_s for s in stream.heard_s if s > thaw_s])]
    spread = ", ".join(f"{s:.2f}" for s in np.quantile(delays_s or [0.0], [0.0, 0.5, 1.0]))
    silent = len(frozen) - len(delays_s)
    put_backs = await site.metric("bucketserve_put_backs_total") - put_backs
    return f"| {len(own)} | {pause_s:.2f} | {len(frozen)} | {spread} | {silent} | {put_backs:.0f} |"


if __name__ == "__main__":
    asyncio.run(main())
