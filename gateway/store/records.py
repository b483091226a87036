"""What calls can be run again from, in the memory store."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.ports import Adopted, LogWrite, Record, Written


@dataclass(slots=True)
class _Kept:
    epoch: int
    owner: str
    begun_s: float
    content: bytes
    expiry_s: float
    log: bytearray


class Records:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._max_kept = 64

    def keep(self, record: Record, ttl_s: float) -> Written:
        known = self._find(record.call)
        if known and known.epoch > record.epoch:
            return Written.FENCED
        now_s = self._clock()
        self._kept[record.call] = _Kept(
            record.epoch, record.owner, now_s - record.age_s, record.content, now_s + ttl_s, bytearray(record.log)
        )
        self._prune()
        return Written.DONE

    def log(self, write: LogWrite, ttl_s: float) -> Written:
        kept = self._find(write.call)
        if kept and kept.epoch != write.epoch:
            return Written.FENCED
        if kept is None or len(kept.log) < write.offset:
            return Written.MISSING
        if write.prolongs or not kept.log:
            kept.expiry_s = self._clock() + ttl_s
        kept.log[write.offset : write.offset + len(write.data)] = write.data
        return Written.DONE

    def adopt(self, call: str, owner: str, ttl_s: float) -> Adopted | None:
        kept = self._find(call)
        if kept is None or kept.owner != owner:
            return None
        now_s = self._clock()
        former, kept.epoch = kept.epoch, max(kept.epoch + 1, int(now_s * 1e6))
        kept.expiry_s = now_s + ttl_s
        return Adopted(kept.epoch, former, max(0.0, now_s - kept.begun_s), kept.content, bytes(kept.log))

    def _find(self, call: str) -> _Kept | None:
        kept = self._kept.get(call)
        return kept if kept and kept.expiry_s > self._clock() else None

    def _prune(self) -> None:
        # Seldom enough that keeping one costs the same however many there are.
        if len(self._kept) > self._max_kept:
            now_s = self._clock()
            self._kept = {call: kept for call, kept in self._kept.items() if kept.expiry_s > now_s}
            self._max_kept = 64 + 2 * len(self._kept)
