"""Keeps the records of this gateway's streams in the store, and their logs up to date, for whoever adopts them.

All that is new goes in one write; while it is under way the next one grows, so that a slow store costs fewer and
longer writes.  In mode `strict` a token waits for its write, but no longer than WAIT_S; once a write took longer,
nothing waits until one is quick again.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from math import inf
from typing import NoReturn

import msgspec
import structlog

from gateway import token_log
from gateway.errors import StoreLost
from gateway.metrics import Metrics
from gateway.ports import LogWrite, Record, Store, Written

log = structlog.get_logger()

WAIT_S = 0.02
_RETRY_S = 0.2
_PROLONG_S = 1.0
"""A record may end so much too early: a token costs the store two commands less."""


class Mode(StrEnum):
    STRICT = "strict"
    FAST = "fast"
    OFF = "off"


class Config(msgspec.Struct, frozen=True):
    mode: Mode = Mode.STRICT
    ttl_s: float = 60.0
    """How long a record outlives its call, or its gateway."""
    max_bytes: int = 4 * 2**20
    """Of a call's record and log; a longer call cannot be adopted."""


class Recording:
    """One call's record and log, and how much of them the store has."""

    def __init__(
        self,
        recorder: "Recorder",
        call_id: str,
        owner: str,
        begun_s: float,
        epoch: int = 0,
        former_epoch: int | None = None,
    ) -> None:
        """`former_epoch`: of the origin from which the call was adopted."""
        self.call_id = call_id
        self.owner = owner
        self.begun_s = begun_s
        """On the event loop's clock."""
        self.epoch = epoch
        self.former_epoch = former_epoch
        self.content = b""
        """Empty until there is something to keep."""
        self.log = bytearray()
        self.is_kept = False
        """The store has the record."""
        self.written = 0
        """Bytes of the log that the store has."""
        self.prolonged_s = -inf
        """When its time began to run anew."""
        self.is_closed = False
        """Nobody may go on from here."""
        self.ended_s = inf
        self.on_written: Callable[[int], None] = _nobody_waits
        """Hears up to where the log needs no waiting for any more."""
        self._recorder = recorder

    @property
    def holds(self) -> bool:
        """What the log does not say yet must wait."""
        return self._recorder.holds

    def append(self, entry: bytes) -> None:
        if self.is_closed:
            return
        if len(self.content) + len(self.log) + len(entry) > self._recorder.max_bytes:
            entry = token_log.CLOSED
        self.is_closed = entry == token_log.CLOSED
        self.log += entry
        self._recorder.note(self)

    def wrote(self, size: int) -> None:
        """The store has the log up to there."""
        self.written = size
        self.on_written(size)

    def close(self) -> None:
        """The call has failed."""
        self.append(token_log.CLOSED)


class Recorder:
    def __init__(
        self, store: Store, config: Config, metrics: Metrics, on_fenced: Callable[[Recording], None]
    ) -> None:
        """`on_fenced` hears of recordings whose call another gateway has adopted."""
        self.max_bytes = config.max_bytes
        self._store = store
        self._ttl_s = config.ttl_s
        self._is_strict = config.mode is Mode.STRICT
        self._metrics = metrics
        self._on_fenced = on_fenced
        self._open: dict[Recording, None] = {}
        self._unwritten: dict[Recording, None] = {}
        self._in_flight: dict[Recording, None] = {}
        self._news = asyncio.Event()
        self._is_quick = True
        """The last write took no longer than WAIT_S."""
        self._since_s = 0.0
        """When the oldest of what is unwritten, and not being written, came."""
        self._patience: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> bool:
        return self._is_strict and self._is_quick

    @property
    def is_empty(self) -> bool:
        """The store has everything."""
        return not (self._unwritten or self._in_flight)

    def begin(self, recording: Recording) -> None:
        self._open[recording] = None

    def keep(self, recording: Recording, content: bytes) -> None:
        """Its record, once there is one.  The store gets it with the log, or when all are prolonged: before the
        first token nobody knows of the call."""
        if len(content) <= self.max_bytes:
            recording.content = content
        else:
            recording.content = b"too long"
            recording.close()
        if recording.log:
            self.note(recording)

    def end(self, recording: Recording) -> None:
        """Nobody reads or runs the call here any more; its time begins to run, if not with a write just now."""
        self._open.pop(recording, None)
        recording.ended_s = now_s = _now_s()
        recording.on_written = _nobody_waits
        is_late = recording.is_kept and recording.prolonged_s <= self._due_before(now_s)
        if is_late or recording.written < len(recording.log):
            self.note(recording)

    def forget(self, recording: Recording) -> None:
        """The call is another's, or never was."""
        self._open.pop(recording, None)
        self._unwritten.pop(recording, None)

    def note(self, recording: Recording) -> None:
        """There is something to write."""
        if not recording.content:
            return
        if not self._unwritten:
            self._since_s = _now_s()
        self._unwritten[recording] = None
        self._news.set()
        if self.holds and self._patience is None:
            self._wait_until(self._since_s + WAIT_S)

    def refresh(self) -> None:
        """Prolong every record, and find what the store has forgotten."""
        for recording in self._open:
            self.note(recording)

    async def run(self) -> NoReturn:
        while True:
            await self._news.wait()
            self._news.clear()
            self._in_flight, self._unwritten = self._unwritten, {}
            begun_s = _now_s()
            try:
                await self._write(list(self._in_flight))
            except StoreLost:
                self._take_back()
                self._hurry()
                await asyncio.sleep(_RETRY_S)
                self._news.set()
                continue
            self._in_flight = {}
            if _now_s() - begun_s > WAIT_S:
                self._hurry()
            else:
                self._is_quick = True
                self._wait_until(self._since_s + WAIT_S if self._unwritten else None)

    def _take_back(self) -> None:
        """What could not be written goes with the next, unless it would have expired by now."""
        since_s = _now_s() - self._ttl_s
        batch = self._in_flight | self._unwritten
        self._in_flight, self._unwritten = {}, {one: None for one in batch if one.ended_s > since_s}

    async def _write(self, batch: Sequence[Recording]) -> None:
        """Raises StoreLost."""
        new = [one for one in batch if not one.is_kept]
        kept = [one for one in batch if one.is_kept]
        if new:
            await self._keep(new)
        if kept:
            await self._log(kept)

    async def _keep(self, new: Sequence[Recording]) -> None:
        now_s = _now_s()
        records = [
            Record(one.call_id, one.epoch, one.owner, now_s - one.begun_s, one.content, bytes(one.log))
            for one in new
        ]
        for one, record, written in zip(new, records, await self._store.keep(records, self._ttl_s), strict=True):
            if written is Written.FENCED:
                self._fence(one)
            else:
                one.is_kept = True
                one.prolonged_s = now_s
                one.wrote(len(record.log))
        self._metrics.logged(sum(len(record.log) for record in records))

    async def _log(self, kept: Sequence[Recording]) -> None:
        now_s = _now_s()
        due_s = self._due_before(now_s)
        writes = [
            LogWrite(one.call_id, one.epoch, one.written, bytes(one.log[one.written :]), one.prolonged_s <= due_s)
            for one in kept
        ]
        for one, write, written in zip(kept, writes, await self._store.log(writes, self._ttl_s), strict=True):
            match written:
                case Written.DONE:
                    if write.prolongs:
                        one.prolonged_s = now_s
                    one.wrote(write.offset + len(write.data))
                case Written.MISSING:
                    one.is_kept = False
                    self.note(one)
                case Written.FENCED:
                    self._fence(one)
        self._metrics.logged(sum(len(write.data) for write in writes))

    def _due_before(self, now_s: float) -> float:
        """Recordings prolonged no later than then are to be prolonged."""
        return now_s - min(_PROLONG_S, self._ttl_s / 4)

    def _fence(self, recording: Recording) -> None:
        self.forget(recording)
        self._on_fenced(recording)

    def _wait_until(self, due_s: float | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = None if due_s is None else asyncio.get_running_loop().call_at(due_s, self._hurry)

    def _hurry(self) -> None:
        """The store takes too long: nothing waits for it."""
        self._wait_until(None)
        self._is_quick = False
        for recording in self._open:
            recording.on_written(len(recording.log))


def _nobody_waits(written: int) -> None:
    pass


def _now_s() -> float:
    return asyncio.get_running_loop().time()
