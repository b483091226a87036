"""One run says whether the engine is exact on this GPU and how fast: `python -m benchmarks.gpu [--out FILE]`.

The table of what was found is printed last; also when the time is over, or when told to end.  `--device cpu
--tiny` runs every part on a toy model in seconds: the figures mean nothing then.
"""

import argparse
import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, PreTrainedModel

from benchmarks.gpu import exact, kernels, peer, saturation, steps
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import build, kv_bytes_per_token, matrix_weights
from benchmarks.gpu.steps import Ceilings
from triton_backend.engine import Engine, EngineConfig
from triton_backend.paged_runner import PagedRunner

PARTS = ("exact", "8b", "1.5b", "peer")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    exact_shape: str
    exact_bf16_shape: str
    kernel_copies: int
    exact_rows: int
    exact_tokens: int
    large: str
    small: str
    copied_bytes: int
    width: int
    step_rows: tuple[int, ...]
    target_rows: int
    """Rows at which the target for a step is stated."""
    num_steps: int
    prompts: tuple[tuple[int, int, int], ...]
    """Numbers of prompts in a chunk, their tokens in it and those before."""
    prompt_tokens: int
    output_tokens: int
    max_rows: int
    window_s: float
    max_prefill_tokens: int
    job_rows: int
    job_tokens: int
    job_limit_s: float
    kv_budget_bytes: int | None
    peer_config: ContinuousBatchingConfig

    @property
    def job(self) -> str:
        return f"{self.job_rows} requests, {self.prompt_tokens} in / {self.job_tokens} out"


FULL = Sizes(
    exact_shape="exact",
    exact_bf16_shape="exact-bfloat16",
    kernel_copies=8,
    exact_rows=16,
    exact_tokens=48,
    large="8b",
    small="1.5b",
    copied_bytes=4 * 2**30,
    width=8192,
    step_rows=(1, 8, 32, 64, 128, 256, 512),
    target_rows=64,
    num_steps=40,
    prompts=((1, 128, 0), (1, 500, 0), (1, 1000, 0), (4, 1000, 0), (1, 200, 3000), (1, 1000, 3000)),
    prompt_tokens=1000,
    output_tokens=1000,
    max_rows=512,
    window_s=30.0,
    max_prefill_tokens=4096,
    job_rows=128,
    job_tokens=256,
    job_limit_s=80.0,
    kv_budget_bytes=None,
    peer_config=ContinuousBatchingConfig(),
)
TINY = Sizes(
    exact_shape="tiny",
    exact_bf16_shape="tiny",
    kernel_copies=1,
    exact_rows=6,
    exact_tokens=10,
    large="tiny",
    small="tiny",
    copied_bytes=2**24,
    width=256,
    step_rows=(1, 4),
    target_rows=4,
    num_steps=5,
    prompts=((2, 20, 0), (2, 20, 40)),
    prompt_tokens=20,
    output_tokens=20,
    max_rows=8,
    window_s=1.0,
    max_prefill_tokens=64,
    job_rows=4,
    job_tokens=8,
    job_limit_s=10.0,
    kv_budget_bytes=2**20,
    peer_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
)


class Bench:
    def __init__(self, device: str, sizes: Sizes, report: Report) -> None:
        self._device = device
        self._sizes = sizes
        self._report = report
        self._dtype = torch.bfloat16
        self._ceilings: Ceilings
        self._job_per_s: float | None = None

    def run(self, parts: list[str], until_s: float) -> None:
        """Part by part; one that breaks is told of, and the next one begins."""
        sizes = self._sizes
        actions: dict[str, Callable[[], None]] = {
            "exact": self.exact,
            "8b": partial(self.model, sizes.large, with_job=True),
            "1.5b": partial(self.model, sizes.small, with_job=False),
            "peer": partial(self.peer, sizes.large),
        }
        self.ceilings()
        for part in parts:
            if time.monotonic() < until_s:
                self._attempt(part, actions[part])
                self._release()

    def _attempt(self, part: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._report.add(part, "broke", f"{type(error).__name__}: {error}"[:300])
            traceback.print_exc()

    def ceilings(self) -> None:
        name = torch.cuda.get_device_name() if self._device.startswith("cuda") else "CPU"
        self._report.add("device", "name", f"{name}, torch {torch.__version__}")
        self._ceilings = steps.measure_ceilings(self._device, self._sizes.copied_bytes, self._sizes.width)
        self._report.add("device", "large copy, read and written", f"{self._ceilings.bytes_per_s / 1e12:.2f} TB/s")
        self._report.add("device", "large bf16 product", f"{self._ceilings.flops_per_s / 1e12:.0f} TFLOP/s")

    def exact(self) -> None:
        sizes, add = self._sizes, partial(self._report.add, "exact")
        for dtype in (torch.float32, torch.bfloat16):
            errors = [
                kernels.largest_error(self._device, dtype, case, sizes.kernel_copies) for case in kernels.CASES
            ]
            name = str(dtype).removeprefix("torch.")
            add(f"{name}: attention's largest error, by case", ", ".join(f"{error:.0e}" for error in errors))
        add("float32: noise's largest difference from a CPU's", f"{kernels.noise_difference(self._device):.0e}")
        for shape, dtype in ((sizes.exact_shape, torch.float32), (sizes.exact_bf16_shape, torch.bfloat16)):
            found = exact.compare(shape, self._device, dtype, sizes.exact_rows, sizes.exact_tokens)
            name = str(dtype).removeprefix("torch.")
            equal = f"{found.num_equal} of {found.num_rows} rows, put back {found.num_put_back} times"
            add(f"{name}: all tokens as generate()", equal)
            if dtype is torch.float32:
                add(
                    f"{name}: not the reference's best",
                    f"{found.num_ties} ties, {found.num_wrong} wrong of {found.num_tokens} tokens",
                )
            add(
                f"{name}: teacher-forced argmax agrees",
                f"{found.agreement:.2%} (with generate() itself: {found.own_agreement:.2%})",
            )
        same = exact.compare_seeded(sizes.exact_shape, self._device, sizes.exact_rows, sizes.exact_tokens)
        add("float32: seeded rows the same when put back", f"{same} of {sizes.exact_rows}")

    def model(self, shape: str, *, with_job: bool) -> None:
        """Steps, throughput, and the job that the peer gets."""
        began_s = time.monotonic()
        model = build(shape, self._device, self._dtype)
        built_s = time.monotonic() - began_s
        runner = PagedRunner(
            model,
            max_prefill_tokens=self._sizes.max_prefill_tokens,
            kv_budget_bytes=self._sizes.kv_budget_bytes,
        )
        num_tokens = runner.kv_budget_bytes // runner.layout.bytes_per_token
        ready_s = time.monotonic() - began_s - built_s
        self._report.add(
            shape,
            "ready",
            f"model {built_s:.1f} s, engine {ready_s:.1f} s, {steps.made(runner)}, "
            f"KV room for {num_tokens:,} tokens",
        )
        steps.fill_with_noise(runner)
        self._attempt(shape, lambda: self._steps(shape, model, runner))
        self._attempt(shape, lambda: self._prompts(shape, model, runner))
        if self._device.startswith("cuda"):
            self._attempt(shape, lambda: self._break_down(shape, runner))
        self._attempt(shape, lambda: self._saturate(shape, model, runner))
        if with_job:
            self._attempt(shape, lambda: self._job(shape, runner))

    def _steps(self, shape: str, model: PreTrainedModel, runner: PagedRunner) -> None:
        sizes, floors = self._sizes, Floors(model, self._ceilings)
        context_tokens = sizes.prompt_tokens + sizes.output_tokens // 2
        for count in sizes.step_rows:
            if count * (context_tokens + sizes.num_steps + 64) > runner.kv_budget_bytes // kv_bytes_per_token(
                model
            ):
                continue
            found = steps.measure_steps(runner, count, context_tokens, sizes.num_steps)
            floor_s = floors.step_s(count, context_tokens)
            if count == sizes.target_rows:
                self._report.ratios[f"{shape} step floor share"] = floor_s / found.step_s
            self._report.add(
                shape,
                f"decode step, {count} rows at {context_tokens} tokens",
                f"{found.step_s * 1e3:.2f} ms, floor {floor_s * 1e3:.2f} ms: {floor_s / found.step_s:.0%}; "
                f"host {found.start_s * 1e3:.2f} ms",
            )

    def _prompts(self, shape: str, model: PreTrainedModel, runner: PagedRunner) -> None:
        for count, tokens, start in self._sizes.prompts:
            found = steps.measure_prompts(runner, count, tokens, start)
            flops = 2 * matrix_weights(model) * count * tokens
            self._report.add(
                shape,
                f"{count} prompts of {tokens} tokens{f' behind {start}' if start else ''}",
                f"{found.step_s * 1e3:.1f} ms, {flops / found.step_s / 1e12:.0f} TFLOP/s; host "
                f"{found.start_s * 1e3:.1f} ms",
            )

    def _break_down(self, shape: str, runner: PagedRunner) -> None:
        sizes = self._sizes
        for count in (sizes.target_rows, sizes.step_rows[-1]):
            spent = steps.break_down(runner, count, sizes.prompt_tokens + sizes.output_tokens // 2, 5)
            parts = ", ".join(f"{kind} {seconds * 1e3:.2f}" for kind, seconds in spent.items())
            self._report.add(shape, f"on the device at {count} rows, ms", parts)

    def _engine(self, runner: PagedRunner) -> Engine:
        config = EngineConfig(model="", name="gpu", max_prefill_tokens=self._sizes.max_prefill_tokens)
        return Engine(config, lambda _: runner)

    def _saturate(self, shape: str, model: PreTrainedModel, runner: PagedRunner) -> None:
        sizes = self._sizes
        row_tokens = sizes.prompt_tokens + sizes.output_tokens // 2 + runner.layout.block_tokens
        row_bytes = row_tokens * kv_bytes_per_token(model)
        num_rows = min(sizes.max_rows, int(0.95 * runner.kv_budget_bytes / row_bytes))
        engine = self._engine(runner)
        found = saturation.measure(
            engine, runner.vocabulary, num_rows, sizes.prompt_tokens, sizes.output_tokens, sizes.window_s
        )
        engine.stop(0.0)
        runner.arrange({}, [])
        floor_s = Floors(model, self._ceilings).request_s(num_rows, sizes.prompt_tokens, sizes.output_tokens)
        ceiling = sizes.output_tokens / floor_s
        self._report.ratios[f"{shape} output tokens/s"] = found.output_per_s
        self._report.add(
            shape,
            f"saturated, {sizes.prompt_tokens} in / {sizes.output_tokens} out, {found.rows:.0f} rows",
            f"{found.output_per_s:,.0f} output tok/s, {found.prompt_per_s:,.0f} prompt tok/s in {found.num_steps} "
            f"steps; one after the other at their floors {ceiling:,.0f} output tok/s: "
            f"{found.output_per_s / ceiling:.0%}; evicted {found.num_evicted}",
        )
        self._report.add(
            shape,
            "filling up",
            f"{found.filled_tokens:,} prompt tokens in {found.filling_s:.1f} s, decoding between",
        )

    def _job(self, shape: str, runner: PagedRunner) -> None:
        sizes = self._sizes
        engine = self._engine(runner)
        job_s = saturation.time_job(
            engine, runner.vocabulary, sizes.job_rows, sizes.prompt_tokens, sizes.job_tokens
        )
        engine.stop(0.0)
        self._job_per_s = sizes.job_rows * sizes.job_tokens / job_s
        self._report.add(shape, sizes.job, f"{job_s:.1f} s, {self._job_per_s:,.0f} output tok/s")

    def peer(self, shape: str) -> None:
        """The job of the same model's engine."""
        sizes = self._sizes
        model = build(shape, self._device, self._dtype)
        job_s, is_done = peer.time_job(
            model, sizes.peer_config, sizes.job_rows, sizes.prompt_tokens, sizes.job_tokens, sizes.job_limit_s
        )
        per_s = sizes.job_rows * sizes.job_tokens / job_s
        figure = f"{'' if is_done else 'over '}{job_s:.1f} s, {per_s:,.0f} output tok/s"
        if self._job_per_s:
            self._report.ratios["times transformers"] = self._job_per_s / per_s
            figure += f"; this engine {self._job_per_s / per_s:.1f} times as fast{'' if is_done else ' at least'}"
        self._report.add("transformers", sizes.job, figure)

    def _release(self) -> None:
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()


def _end_with_table(report: Report, seconds: float) -> None:
    """Whatever happens, the table comes: at the latest when the time is over, or at SIGTERM."""

    def end(*_: Any) -> None:
        print("the time is over\n" + report.table(), flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    signal.signal(signal.SIGTERM, end)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy models, to see that every part runs")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which the table is printed")
    parser.add_argument("--out", type=Path, help="JSON of what was found, written as it comes")
    options = parser.parse_args()
    if options.tiny:
        torch.set_num_threads(1)  # Tiny matrices: a second thread only waits.
    report = Report(options.out)
    _end_with_table(report, options.seconds)
    bench = Bench(options.device, TINY if options.tiny else FULL, report)
    bench.run(options.parts.split(","), time.monotonic() + options.seconds)
    print(report.table(), flush=True)


if __name__ == "__main__":
    main()
