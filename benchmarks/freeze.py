"""What a frozen Redis does to streams: `python -m benchmarks.freeze`.

The chaos tests' site and crowd: three gateways, two engines, 215 clients that keep streams open.  Stops Valkey for
10 s, several times, and prints the longest pause of streams whose own gateway drives their engine, from the stop
until 2 s after the thaw, and how long after the thaw the first foreign stream, half of them and the last went on.
The first row is of as long a time in which nothing was stopped.
"""

import argparse
import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import numpy as np

from tests.stack.crowd import Crowd
from tests.stack.site import Site, now_s
from triton_backend.contract import End

STOP_S = 10.0
AFTER_S = 2.0
WARM_S = 10.0
LENGTHS = range(400, 800)
"""Of the answers, so that few end while Valkey is stopped."""
OPEN = 0.93
"""Of the streams that flow when Valkey is stopped."""
REASONS = ("gap", "silent", "unknown to the store", "engine died", *End)
CALM_S = 6.0
"""So long is listened after a thaw."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--streams", type=int, default=215)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    print("| | own | pause, s | foreign | first, half, last go on after, s | silent still | put back |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        async with Site(Path(folder)) as site, Crowd(site, options.streams, 1, LENGTHS) as crowd:
            await crowd.grown()
            await asyncio.sleep(WARM_S)
            for time in range(options.times + 1):
                print(await listen(site, crowd, options.streams, is_frozen=time > 0), flush=True)


async def listen(site: Site, crowd: Crowd, size: int, is_frozen: bool) -> str:
    """A row of the table."""
    # Streams that began together end together.
    while len(crowd.flowing) < OPEN * size:
        await asyncio.sleep(0.1)
    before = await put_backs(site)
    flowing, foreign_ids = crowd.flowing, await site.foreign()
    met = [stream for stream in flowing if stream.is_flowing]
    foreign = [stream for stream in met if stream.call_id in foreign_ids]
    own = [stream for stream in met if stream.call_id not in foreign_ids]
    begun_s = now_s()
    if is_frozen:
        site.signal("valkey", SIGSTOP)
    await asyncio.sleep(STOP_S)
    if is_frozen:
        site.signal("valkey", SIGCONT)
    thaw_s = now_s()
    await asyncio.sleep(CALM_S)
    pause_s = max((stream.pause_s(begun_s, thaw_s + AFTER_S) for stream in own), default=0.0)
    waiting = [stream for stream in foreign if not stream.end_s or stream.end_s > thaw_s]
    delays_s = [min(heard) for stream in waiting if (heard := [s - thaw_s for s in stream.heard_s if s > thaw_s])]
    spread = ", ".join(f"{s:.2f}" for s in np.quantile(delays_s or [0.0], [0.0, 0.5, 1.0]))
    silent = len(waiting) - len(delays_s)
    back = ", ".join(f"{n:.0f} {reason}" for reason, n in (await put_backs(site) - before).items())
    name = "frozen" if is_frozen else "calm"
    return f"| {name} | {len(own)} | {pause_s:.2f} | {len(waiting)} | {spread} | {silent} | {back} |"


async def put_backs(site: Site) -> Counter[str]:
    name = r'bucketserve_put_backs_total\{{reason="{}"\}}'
    return Counter({reason: round(await site.metric(name.format(reason))) for reason in REASONS})


if __name__ == "__main__":
    asyncio.run(main())
