"""What is learned of the traffic, in the memory store: samples and the published model."""

import itertools
from collections import deque
from collections.abc import Sequence

from gateway.ports import MAX_SAMPLES


class Lessons:
    def __init__(self) -> None:
        self._samples: deque[tuple[int, bytes]] = deque(maxlen=MAX_SAMPLES)
        self._snapshot = (0, b"")

    def append(self, samples: Sequence[bytes], now_s: float) -> None:
        last = self._samples[-1][0] if self._samples else 0
        self._samples.extend(zip(itertools.count(max(last + 1, _us(now_s))), samples, strict=False))

    def after(self, id: str, limit: int) -> list[tuple[str, bytes]]:
        later = ((number, sample) for number, sample in self._samples if number > int(id or 0))
        return [(str(number), sample) for number, sample in itertools.islice(later, limit)]

    def publish(self, snapshot: bytes, version: int, now_s: float) -> bool:
        last, _ = self._snapshot
        if last > version:
            return False
        self._snapshot = (max(last + 1, _us(now_s)), snapshot)
        return True

    def newer_than(self, version: int) -> tuple[int, bytes] | None:
        return self._snapshot if self._snapshot[0] > version else None


def _us(seconds: float) -> int:
    return int(seconds * 1e6)
