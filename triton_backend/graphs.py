"""Steps recorded as CUDA graphs, one for each size of a ladder: the host starts hundreds of kernels by one call.

A recorded step reads its inputs and the cache at the addresses it was recorded with, so it is void once the cache
was resized.  What a size has too much reads and writes block 0, which is nobody's.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, *range(16, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, 513, 64))
"""Of the recorded decode steps."""
PROMPT_TOKENS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Of the recorded beginnings of prompts: larger ones take the device longer than starting them takes the host."""
CHUNK_TOKENS = (256, 512, 1024, 2048)
"""Of the recorded chunks that go on with prompts, each for all SEEN_TOKENS."""
SEEN_TOKENS = (4096, 8192, 16384, 32768)
"""What such a chunk sees, itself included."""
_WARM_UPS = 2
"""Runs before the recording: the first allocates workspaces and compiles kernels, which a graph must not."""


def padded(size: int, sizes: Sequence[int]) -> int:
    """The first of the sizes that is as large; beyond them the size itself."""
    at = bisect_left(sizes, size)
    return sizes[at] if at < len(sizes) else size


class Graphs:
    """`step` maps inputs [size, width] int32 to logits [rows, vocabulary], all on the device."""

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        sizes: Sequence[int],
        width: int,
        device: torch.device,
        beside: "Graphs | None" = None,
    ) -> None:
        """`beside` are others, never run at the same time: these use their memory."""
        self._step = step
        self._sizes = sizes
        self._inputs = torch.zeros(sizes[-1], width, dtype=torch.int32, device=device)
        self._logits: Tensor | None = None
        """Where all of them leave their logits: each with its own would keep as much memory apart."""
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = beside._pool if beside else torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = beside._stream if beside else _stream(device)
        self._is_recordable = True

    def run(self, inputs: Tensor) -> Tensor:
        """The logits of the step, void after the next one; inputs are in pinned memory, and of a `padded` size or
        beyond the ladder."""
        size = len(inputs)
        if not self.takes(size):
            return self._step(inputs.to(self._inputs.device, non_blocking=True))
        self._inputs[:size].copy_(inputs, non_blocking=True)
        if size not in self._graphs and not self._record(size):
            return self._step(self._inputs[:size])
        self._graphs[size].replay()
        assert self._logits is not None
        return self._logits[:size]

    def takes(self, size: int) -> bool:
        """Whether steps of this size are recorded."""
        return size <= self._sizes[-1] and self._is_recordable

    def record_all(self) -> None:
        """The largest first: the smaller ones find room in its memory."""
        for size in reversed(self._sizes):
            if self._is_recordable and size not in self._graphs:
                self._inputs.zero_()
                self._record(size)

    def clear(self) -> None:
        """Forget the recorded steps, whose addresses are void."""
        self._graphs.clear()

    def _record(self, size: int) -> bool:
        """False: a step of this model cannot be recorded."""
        inputs = self._inputs[:size]
        current = torch.cuda.current_stream(inputs.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                logits = self._step(inputs)
        current.wait_stream(self._stream)
        if self._logits is None:
            self._logits = torch.empty_like(logits)  # The largest step is recorded first.
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on using the device, if there are any.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                logits = self._step(inputs)
                self._logits[: len(logits)].copy_(logits)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("steps of this model cannot be recorded as CUDA graphs, and are slower for it: %s", error)
            self._is_recordable = False
            return False
        self._graphs[size] = graph
        return True


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
