"""An engine's own figures, smoothed as the real one's are (triton_backend.telemetry, which imports torch)."""

from dataclasses import dataclass

from triton_backend.contract import Telemetry
from triton_backend.memory import Ledger
from triton_backend.prefill_pace import PrefillPace

SMOOTHING = 0.1
"""Weight of the newest step in a rate."""


@dataclass(slots=True)
class Tally:
    """Prompt tokens run."""

    padded_tokens: int = 0
    """Padding included."""
    useful_tokens: int = 0


class Meter:
    def __init__(self) -> None:
        self._step_s = 0.0
        self._decode_rows = 0
        self.prefill = PrefillPace()
        self.decode_s = 0.0
        """The last step without a chunk."""
        self._decode_tokens_per_s = 0.0

    def note_prefill(self, padded_tokens: int, step_s: float, *, is_shared: bool) -> None:
        self._step_s, self._decode_rows = step_s, 0
        self.prefill.note(padded_tokens, step_s, self.decode_s if is_shared else 0.0)

    def note_decode(self, rows: int, step_s: float, steps: int) -> None:
        """So many steps of one size, of which the last took `step_s`."""
        self._step_s, self._decode_rows = step_s, rows
        self.decode_s = step_s
        self._decode_tokens_per_s = _smooth(self._decode_tokens_per_s, rows / step_s, steps)

    def rest(self) -> None:
        self._step_s, self._decode_rows = 0.0, 0

    def read(self, ledger: Ledger, running: int, live: int) -> Telemetry:
        capacity_bytes = ledger.capacity_bytes
        return Telemetry(
            pool_capacity_bytes=capacity_bytes,
            pool_used_bytes=ledger.used_bytes,
            pool_growable_bytes=0,
            device_free_bytes=0,
            device_total_bytes=capacity_bytes,
            process_bytes=0,
            running=running,
            waiting=live - running,
            step_s=self._step_s,
            prefill_tokens_per_s=self.prefill.tokens_per_s,
            decode_tokens_per_s=self._decode_tokens_per_s,
            out_of_memory_total=0,
            decode_rows=self._decode_rows,
        )


def _smooth(old: float, new: float, steps: int) -> float:
    return new + (1 - SMOOTHING) ** steps * (old - new) if old else new
