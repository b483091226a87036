"""Who is being served: at most one driver, the one with the highest epoch that ever attached.

A sink is owned from the moment it comes in with an attach until it is finished, exactly once, here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from triton_backend.contract import CONTRACT_VERSION, Attach, Attached, AttachRefused, Event, Step, Superseded


class SinkClosed(Exception):
    """The peer of a session is gone."""


class Sink(Protocol):
    """The response sender of one session; used by the engine's thread only."""

    def send(self, event: Event) -> None:
        """Raises SinkClosed if the peer is gone."""

    def is_closed(self) -> bool: ...

    def finish(self) -> None:
        """Send the final flag; idempotent."""


@dataclass(slots=True)
class Reception:
    """The engine's door: fences epochs and delivers events."""

    clock: Callable[[], float]
    epoch: int = 0
    """The highest that ever attached."""
    version: int = CONTRACT_VERSION
    """What that one speaks."""
    vacant_since: float | None = None
    """When the last session ended; None while one is served."""
    last_sent: float = 0.0
    _sink: Sink | None = None

    def __post_init__(self) -> None:
        self.vacant_since = self.last_sent = self.clock()

    def admit(self, attach: Attach, sink: Sink) -> bool:
        """Make this the session, in place of a lower epoch's.  False: it was told why not and finished."""
        if not CONTRACT_VERSION - 1 <= attach.version <= CONTRACT_VERSION:
            speaks = f"contract version {attach.version} is not spoken here, use {CONTRACT_VERSION}"
            _dismiss(sink, AttachRefused(CONTRACT_VERSION, speaks))
            return False
        if attach.epoch <= self.epoch:
            _dismiss(sink, Superseded(self.epoch))
            return False
        if self._sink:
            _dismiss(self._sink, Superseded(attach.epoch))
        self._sink, self.epoch, self.version, self.vacant_since = sink, attach.epoch, attach.version, None
        return True

    def send(self, event: Attached | Step) -> bool:
        """Whether the session took it; a session whose peer is gone is over."""
        self.last_sent = self.clock()
        if self._sink is None:
            return False
        try:
            self._sink.send(event)
        except SinkClosed:
            self.close()
            return False
        return True

    def look(self) -> None:
        """Notice that the peer has gone."""
        if self._sink and self._sink.is_closed():
            self.close()

    def close(self) -> None:
        """End the session, if there is one."""
        if self._sink:
            self._sink.finish()
            self._sink, self.vacant_since = None, self.clock()


def _dismiss(sink: Sink, last: Event) -> None:
    try:
        sink.send(last)
    except SinkClosed:
        pass  # Nobody is left to be told.
    finally:
        sink.finish()
