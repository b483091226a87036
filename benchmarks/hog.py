"""Takes memory like another tenant: `python -m benchmarks.hog USAGE_FILE LIMIT_BYTES`.

Reads from stdin how many MiB it is to hold.  Takes a chunk whenever the control group has room for it, as a
process that tries again; frees at once.  Prints the time (CLOCK_MONOTONIC) when it has what it wants.
"""

import mmap
import sys
import threading
import time
from pathlib import Path

CHUNK_BYTES = 16 * 2**20
PAUSE_S = 0.25
"""So it takes 64 MiB/s: whoever wants to follow has to have seen it before what is left is gone."""
MARGIN_BYTES = 16 * 2**20


def main() -> None:
    usage, limit_bytes = Path(sys.argv[1]), int(sys.argv[2])
    wanted = [0]
    threading.Thread(target=_listen, args=(wanted,), daemon=True).start()
    held: list[mmap.mmap] = []
    said = 0
    while wanted[0] >= 0:
        if len(held) > wanted[0]:
            for chunk in held[wanted[0] :]:
                chunk.close()
            del held[wanted[0] :]
        elif len(held) < wanted[0] and limit_bytes - int(usage.read_text()) > CHUNK_BYTES + MARGIN_BYTES:
            held.append(mmap.mmap(-1, CHUNK_BYTES))
            held[-1].write(b"\1" * CHUNK_BYTES)
        if len(held) == wanted[0] != said:
            print(time.monotonic(), flush=True)
        said = wanted[0] if len(held) == wanted[0] else -1
        time.sleep(PAUSE_S)


def _listen(wanted: list[int]) -> None:
    for line in sys.stdin:
        wanted[0] = int(line) * 2**20 // CHUNK_BYTES
    wanted[0] = -1


if __name__ == "__main__":
    main()
