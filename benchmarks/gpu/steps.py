"""The time of decode steps and of chunks of prompts, and what the device can do at best."""

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch._dynamo.utils import counters

from triton_backend.contract import NewRow
from triton_backend.paged_runner import PagedRunner
from triton_backend.sampling import Reading
from triton_backend.sequence import Sequence

GIB = 2**30
KINDS = {
    "attention": ("_attend_part", "_weigh_parts", "flash"),
    "matrices": ("gemm", "cutlass", "nvjet", "gemv", "splitk", "cublas"),
    "copies": ("memcpy", "memset"),
    "compiled": ("triton_",),
}
"""Parts of the names of a device's kernels; all others are small ones, of sampling for the most part."""


class Ceilings(NamedTuple):
    bytes_per_s: float
    """Read and written by a large copy."""
    flops_per_s: float
    """Of a large product of bf16 matrices."""


def best_s(action: Callable[[], object], repeats: int, wait: Callable[[], None]) -> float:
    """The shortest of the runs, after one that does not count."""
    times = []
    for _ in range(1 + repeats):
        wait()
        began_s = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - began_s)
    return min(times[1:])


def waiter(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def measure_ceilings(device: str, copied_bytes: int, width: int) -> Ceilings:
    source = torch.randint(0, 255, (copied_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source), 5, waiter(device))
    one, two = torch.randn(2, width, width, device=device).bfloat16()
    product_s = best_s(lambda: one @ two, 5, waiter(device))
    return Ceilings(2 * copied_bytes / copy_s, 2 * width**3 / product_s)


class Pool:
    """Rows in the middle of their answers, in a runner of their own."""

    def __init__(self, runner: PagedRunner, count: int, context_tokens: int, num_steps: int) -> None:
        """Room for `num_steps` steps; what the rows hold is noise."""
        self._runner = runner
        self.rows = [self._row(number, context_tokens) for number in range(count)]
        room = runner.layout.room_tokens(context_tokens + num_steps + 1)
        runner.arrange({row.row: room for row in self.rows}, [])
        self._unread: deque[Reading] = deque()
        self.start_s = 0.0
        """What starting the steps took of the host's time."""

    @staticmethod
    def _row(number: int, context_tokens: int) -> Sequence:
        row = Sequence(NewRow(number, str(number), 0, "", [1] * context_tokens, index=0, max_tokens=10**9))
        row.prefill(context_tokens)
        row.draw(1, 10**9)
        return row

    def step(self) -> None:
        """Start a step, then read the one before."""
        began_s = time.perf_counter()
        rows, reading = self._runner.decode(self.rows)
        self.start_s += time.perf_counter() - began_s
        for row in rows:
            row.fly()
        self._unread.append(reading)
        if len(self._unread) > 1:
            self._unread.popleft().read()

    def drain(self) -> None:
        while self._unread:
            self._unread.popleft().read()


class StepTimes(NamedTuple):
    step_s: float
    start_s: float
    """The host's part of it, before the device runs by itself."""


def measure_steps(runner: PagedRunner, count: int, context_tokens: int, num_steps: int) -> StepTimes:
    """At a mean context of about `context_tokens`."""
    pool = Pool(runner, count, context_tokens - num_steps // 2, 4 + num_steps)
    for _ in range(4):
        pool.step()
    pool.drain()
    pool.start_s = 0.0
    began_s = time.perf_counter()
    for _ in range(num_steps):
        pool.step()
    pool.drain()
    step_s = (time.perf_counter() - began_s) / num_steps
    runner.arrange({}, [])
    return StepTimes(step_s, pool.start_s / num_steps)


def measure_prompts(runner: PagedRunner, count: int, tokens: int, start: int = 0, repeats: int = 7) -> StepTimes:
    """So many tokens of so many prompts in one chunk, behind `start` others: medians."""
    prompt = [at % runner.vocabulary for at in range(start + tokens)]
    rows = [Sequence(NewRow(row, str(row), 0, "", prompt, index=0, max_tokens=2)) for row in range(count)]
    runner.arrange({row.row: runner.layout.room_tokens(len(prompt) + 1) for row in rows}, [])
    times = []
    for _ in range(1 + repeats):
        began_s = time.perf_counter()
        _, reading = runner.prefill(rows, start, tokens)
        started_s = time.perf_counter()
        reading.read()
        times.append(StepTimes(time.perf_counter() - began_s, started_s - began_s))
    runner.arrange({}, [])
    step_s, start_s = (median(column) for column in zip(*times[1:], strict=True))
    return StepTimes(step_s, start_s)


def break_down(runner: PagedRunner, count: int, context_tokens: int, num_steps: int) -> dict[str, float]:
    """Seconds of a step on the device, by kind of kernel."""
    pool = Pool(runner, count, context_tokens, 2 + num_steps)
    for _ in range(2):
        pool.step()
    pool.drain()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num_steps):
            pool.step()
        pool.drain()
        torch.cuda.synchronize()
    runner.arrange({}, [])
    spent = dict.fromkeys([*KINDS, "small kernels"], 0.0)
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "small kernels"
        )
        spent[kind] += event.self_device_time_total / 1e6 / num_steps
    return spent


def made(runner: PagedRunner) -> str:
    """What the runner was made faster by, to see that nothing was left out without a word."""
    chunks = runner._beginnings, *runner._chunks.values()
    num_steps, *num_chunks = (len(graphs._graphs) if graphs else 0 for graphs in (runner._graphs, *chunks))
    compiled = counters["stats"]["unique_graphs"]
    return f"{compiled} layers compiled so far, {num_steps} steps and {sum(num_chunks)} chunks recorded"


def fill_with_noise(runner: PagedRunner) -> None:
    """Zeros would be read faster, and what was never written is zeros."""
    for tensor in runner._cache._tensors:
        tensor.normal_()
