"""The engine's own figures, for the gateway to size batches by."""

import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Protocol

from triton_backend.contract import Telemetry
from triton_backend.device import Figures, device_of
from triton_backend.memory import Ledger
from triton_backend.prefill_pace import PrefillPace

SMOOTHING = 0.1
"""Weight of the newest step in a rate: it follows a change within some ten steps and rides over a single slow
one."""
REFRESH_S = 0.2
"""How old the process's and the device's figures may be: reading them costs a good part of a fast step."""


class Gauges(Protocol):
    """What is read of the runner."""

    @property
    def device(self) -> str: ...

    @property
    def out_of_memory_total(self) -> int: ...

    @property
    def allocated_bytes(self) -> int:
        """KV bytes taken from the device."""


class Meter:
    """Smoothed rates, and the memory figures of the moment."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._process_bytes = 0
        self._device = Figures(0, 0)
        self._read_at = -inf
        self._step_s = 0.0
        self._decode_rows = 0
        self.decode_s = 0.0
        """The last step without a chunk."""
        self.prefill = PrefillPace()
        self._decode_tokens_per_s = 0.0

    def note_prefill(self, tokens: int, step_s: float, *, is_shared: bool) -> None:
        """Count a step with a chunk, which running rows may have shared.  Padding is counted too: it is what a
        batch's time goes by."""
        self._step_s, self._decode_rows = step_s, 0
        self.prefill.note(tokens, step_s, self.decode_s if is_shared else 0.0)

    def note_decode(self, rows: int, step_s: float) -> None:
        self._step_s, self._decode_rows = step_s, rows
        self.decode_s = step_s
        self._decode_tokens_per_s = _smooth(self._decode_tokens_per_s, rows / step_s)

    def rest(self) -> None:
        self._step_s, self._decode_rows = 0.0, 0

    def read(self, ledger: Ledger, gauges: Gauges, running: int, waiting: int) -> Telemetry:
        self._refresh(gauges.device)
        allocated_bytes = gauges.allocated_bytes
        return Telemetry(
            pool_capacity_bytes=allocated_bytes,
            pool_used_bytes=ledger.used_bytes,
            pool_growable_bytes=max(0, ledger.capacity_bytes - allocated_bytes),
            device_free_bytes=self._device.free_bytes,
            device_total_bytes=self._device.total_bytes,
            process_bytes=self._process_bytes,
            running=running,
            waiting=waiting,
            step_s=self._step_s,
            prefill_tokens_per_s=self.prefill.tokens_per_s,
            decode_tokens_per_s=self._decode_tokens_per_s,
            out_of_memory_total=gauges.out_of_memory_total,
            decode_rows=self._decode_rows,
        )

    def _refresh(self, device: str) -> None:
        now = self._clock()
        if now - self._read_at >= REFRESH_S:
            # proc(5): the second field is what is resident, in pages.
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._process_bytes = pages * os.sysconf("SC_PAGE_SIZE")
            self._device, self._read_at = device_of(device).figures(), now


def _smooth(old: float, new: float) -> float:
    return old + SMOOTHING * (new - old) if old else new
