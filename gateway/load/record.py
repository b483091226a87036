"""What became of each request: one column per fact, filled while it happens.

All times are on the workload's clock.  A request counts from when it should have arrived, so that a client or a
front that falls behind does not flatter the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gateway.load import gaps
from gateway.load.workload import Floats, Ints, TrafficClass, Workload

Flags = NDArray[np.bool_]


class Ending(StrEnum):
    """The one ending of every request."""

    FINISHED = "finished"
    REJECTED = "rejected"
    """Told to come back later."""
    FAILED = "failed"
    EXPIRED = "expired"
    """Its hard deadline passed, queued or running."""


ENDINGS = tuple(Ending)
_LIVE = len(ENDINGS)


# No repr: asyncio's runner asks for the repr of what it returns, and writing arrays out takes long.
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Records:
    """The requests that have ended, in the order of arrival."""

    classes: tuple[TrafficClass, ...]
    tenants: tuple[str, ...]
    class_index: Ints
    tenant_index: Ints
    arrival_s: Floats
    first_token_s: Floats
    """NaN: there was none."""
    last_token_s: Floats
    """NaN: there was none."""
    prompt_tokens: Ints
    wanted_tokens: Ints
    """How long the answer should have been."""
    output_tokens: Ints
    """How long it was."""
    max_gap_s: Floats
    """Longest pause between two of its tokens."""
    ending: NDArray[np.uint8]
    """Index into ENDINGS."""
    gap_counts: NDArray[np.int64]
    """Gaps between tokens, also of requests still running: a histogram (`gaps`) for each class."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def ended(self, how: Ending) -> Flags:
        flags: Flags = self.ending == ENDINGS.index(how)
        return flags

    def of_class(self, index: int) -> Flags:
        flags: Flags = self.class_index == index
        return flags

    @property
    def ttft_s(self) -> Floats:
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Time per token after the first; 0 for an answer of one token (DistServe's definition)."""
        return (self.last_token_s - self.first_token_s) / np.maximum(self.output_tokens - 1, 1)

    @property
    def e2e_s(self) -> Floats:
        return self.last_token_s - self.arrival_s

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last thing that happened."""
        if not len(self):
            return 0.0
        last_s = np.fmax(self.arrival_s, self.last_token_s).max()
        return float(last_s - self.arrival_s.min())

    def meets(self, scale: float = 1.0) -> Flags:
        """Finished, with both targets met when they are multiplied by `scale`."""
        ttft_slo_s, tpot_slo_s = self._targets_s()
        on_time = (self.ttft_s <= scale * ttft_slo_s) & (self.tpot_s <= scale * tpot_slo_s)
        return self.ended(Ending.FINISHED) & on_time

    def _targets_s(self) -> tuple[Floats, Floats]:
        ttft = [np.inf if traffic.ttft_slo_s is None else traffic.ttft_slo_s for traffic in self.classes]
        tpot = [np.inf if traffic.tpot_slo_s is None else traffic.tpot_slo_s for traffic in self.classes]
        return np.array(ttft)[self.class_index], np.array(tpot)[self.class_index]


class Recorder:
    """Takes what happens to a workload's requests, which are named by their index."""

    def __init__(
        self, workload: Workload, tenants: Sequence[str] = ("",), tenant_index: Ints | None = None
    ) -> None:
        size = len(workload)
        self._workload = workload
        self._tenants = tuple(tenants)
        self._tenant_index = np.zeros(size, dtype=np.int64) if tenant_index is None else tenant_index
        self._first_s = np.full(size, np.nan)
        self._last_s = np.full(size, np.nan)
        self._prompt_tokens = workload.prompt_tokens.copy()
        self._output_tokens = np.zeros(size, dtype=np.int64)
        self._max_gap_s = np.zeros(size)
        self._ending = np.full(size, _LIVE, dtype=np.uint8)
        self._gap_counts = np.zeros((len(workload.classes), gaps.NUM_BINS), dtype=np.int64)

    def token(self, request: int, now_s: float, count: int = 1) -> None:
        """`count` tokens came at once: one gap, as whoever reads sees it."""
        if self._output_tokens[request]:
            gap_s = now_s - float(self._last_s[request])
            self._gap_counts[self._workload.class_index[request], gaps.bin_of(gap_s)] += 1
            self._max_gap_s[request] = max(self._max_gap_s[request], gap_s)
        else:
            self._first_s[request] = now_s
        self._last_s[request] = now_s
        self._output_tokens[request] += count

    def tokens(self, requests: Ints, now_s: float) -> None:
        """One token for each of different requests: an engine's step."""
        firsts = requests[self._output_tokens[requests] == 0]
        others = requests[self._output_tokens[requests] > 0]
        gaps_s = now_s - self._last_s[others]
        np.add.at(self._gap_counts, (self._workload.class_index[others], gaps.bins_of(gaps_s)), 1)
        self._max_gap_s[others] = np.maximum(self._max_gap_s[others], gaps_s)
        self._first_s[firsts] = now_s
        self._last_s[requests] = now_s
        self._output_tokens[requests] += 1

    def counted(self, request: int, prompt_tokens: int, output_tokens: int) -> None:
        """The server's own count, which goes before ours."""
        self._prompt_tokens[request] = prompt_tokens
        self._output_tokens[request] = output_tokens

    def end(self, request: int, how: Ending) -> None:
        assert self._ending[request] == _LIVE
        self._ending[request] = ENDINGS.index(how)

    def records(self) -> Records:
        """Of the requests that have ended by now."""
        ended = self._ending != _LIVE
        workload = self._workload
        return Records(
            classes=workload.classes,
            tenants=self._tenants,
            class_index=workload.class_index[ended],
            tenant_index=self._tenant_index[ended],
            arrival_s=workload.arrival_s[ended],
            first_token_s=self._first_s[ended],
            last_token_s=self._last_s[ended],
            prompt_tokens=self._prompt_tokens[ended],
            wanted_tokens=workload.output_tokens[ended],
            output_tokens=self._output_tokens[ended],
            max_gap_s=self._max_gap_s[ended],
            ending=self._ending[ended],
            gap_counts=self._gap_counts.copy(),
        )
