"""What matters most, measured anew in short and set beside the committed figures: `make bench`.

A figure of this machine is a multiple of a floor that is measured in the same run: an engine's step over reading
its memory once, the gateway over a server that gives the same answers without doing anything for them.  One of the
simulator is the same everywhere, and differs only if a decision does.  `--write` commits this run's figures.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from benchmarks import gateway, overload
from benchmarks.papers import trials, workloads
from benchmarks.papers.contenders import CONTENDERS
from benchmarks.papers.trials import Job, Trial
from benchmarks.speed import profile
from gateway.simulator.job import Padding

COMMITTED = Path(__file__).with_name("figures.json")
STEPS = (("prefill", 1), ("decode", 1), ("decode", 8), ("decode", 32))
WORKLOAD = "mixed-1024"
SETTINGS = {
    "full": "batch 64, budget 8192",
    "bucketserve": "batch 64, budget 8192",
    "uellm": "cap 64",
    "distserve": "1:1, budget 8192",
}
OVERLOAD = "azure-conv", "distserve-opt13b-tp1"

Figures = Iterator[tuple[str, float]]
"""A name ends with which way is better."""


def engine() -> Figures:
    bench = profile.prepared(None, None)
    for kind, count in STEPS:
        step = dict(zip(profile.COLUMNS[1:], bench.cells(kind, count)[1:], strict=True))
        yield f"{kind} of {count}: step over floor (less)", step["step / floor"]


def front() -> Figures:
    ours, bare = asyncio.run(_cost(gateway.stand_in)), asyncio.run(_cost(gateway.bare))
    for name, cost in ours.items():
        yield f"{name}: gateway over bare server (less)", cost / bare[name]
    yield from asyncio.run(_evenness()).items()


async def _cost(serve: Callable[[int], gateway.Serving]) -> dict[str, float]:
    async with serve(0) as server:
        first_ms = float(np.median(await gateway.first_token(server)))
        request = await gateway.short_requests(server, 4000, 32)
    async with serve(gateway.STEP_US) as server:
        token = await gateway.streams(server, 256, 200)
    return {
        "first token, median": first_ms,
        "processor time of a short request": request.own_us,
        "processor time of a token, 256 streams": token.own_us,
    }


async def _evenness() -> dict[str, float]:
    async with gateway.stand_in(gateway.STEP_US) as server:
        gaps_ms = await gateway.gaps_ms(server, 32, 200)
        beside = await gateway.neighbours(server, 32, 300)
    return {
        "gaps of 32 streams: P99 over the engine's step (less)": _p99_over_mean(gaps_ms),
        "the same beside bodies of 5 MB (less)": _p99_over_mean(beside.gaps_ms),
        "the loop's lag there: P99 below, ms (less)": beside.lag_p99_ms,
    }


def _p99_over_mean(gaps_ms: Any) -> float:
    """Each step gives every stream a token, so the mean is the engine's step."""
    return float(np.quantile(gaps_ms, 0.99) / np.mean(gaps_ms))


def simulator() -> Figures:
    full, *others = (_trial(contender) for contender in SETTINGS)
    yield f"{WORKLOAD}: full, requests/s at once (more)", full.requests_per_s
    yield f"{WORKLOAD}: full, load at 80 % (more)", full.load["0.8"]
    for other in others:
        yield f"{WORKLOAD}: full over {other.contender}, load at 80 % (more)", full.load["0.8"] / other.load["0.8"]


def _trial(name: str) -> Trial:
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    setting = next(setting for setting in contender.settings if setting.name == SETTINGS[name])
    return trials.run(
        Job(
            workload=WORKLOAD,
            source=workloads.sources(None)[WORKLOAD],
            padding=Padding.PADDED,
            contender=name,
            setting=setting,
            lengths=contender.lengths,
            seed=1,
            requests_per_gpu=80,
            halvings=1,
        )
    )


def overloaded() -> Figures:
    capacity, _ = overload.capacities(*OVERLOAD)
    yield "overload: capacity, requests/s (more)", capacity
    for multiple in (1, 2):
        _, kept, goodput = overload.steady(*OVERLOAD, multiple * capacity, seed=1)
        yield f"at {multiple} times that: of the admitted, in SLO (more)", kept
        yield f"at {multiple} times that: goodput over capacity (more)", goodput / capacity


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regress", description=str(__doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write this run's figures to {COMMITTED.name}")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    begun_s = time.perf_counter()
    found: dict[str, float] = {}
    print("| figure | now | committed | ratio |", "|---|---|---|---|", sep="\n")
    for part in (engine, front, simulator, overloaded):
        for name, value in part():
            found[name] = value
            before = committed.get(name)
            cells = ("", "") if before is None else (f"{before:.3g}", f"{value / before:.2f}")
            print(f"| {name} | {value:.3g} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.perf_counter() - begun_s:.0f} s")
    if options.write:
        COMMITTED.write_text(
            json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
