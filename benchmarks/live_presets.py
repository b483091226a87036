"""The presets live on this machine, beside the simulator: `python -m benchmarks.live_presets --out FOLDER`.

Serves the demo model under each preset and loads it twice with `bucketserve bench`: with a trace of bursts, to
whose steps a cost model is fitted (its error is printed), then with the workload `chat` at each rate, whose
requests are simulated with that cost model.  Some three minutes a preset, on an idle machine: another's work
changes what a step takes.  What lies in the folder is not measured again.
"""

import argparse
import csv
import json
import math
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from gateway.simulator import cost
from triton_backend.record import StepRecord, read

PRESETS = ("full", "uellm", "continuous", "bucketserve", "static")
FIT_BURSTS = 10
FIT_BURST_S = 3.0
FIT_BURST_REQUESTS, FIT_BURST_TOKENS = 128, 10_000
"""The most of a burst: many short prompts, or few long ones, so that rows and tokens can be told apart."""
FIT_PROMPT_TOKENS, FIT_ANSWER_TOKENS = (32, 3000), (8, 120)
CLI = (sys.executable, "-m", "gateway")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is measured")
    parser.add_argument("--presets", default=",".join(PRESETS), help="with commas")
    parser.add_argument("--rates", default="8,16,28", help="requests/s, with commas")
    parser.add_argument("--duration-s", type=int, default=20, help="at each rate")
    parser.add_argument("--port", type=int, default=8480)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    load = ["--workload", "chat", "--rates", options.rates, "--duration-s", str(options.duration_s)]
    rates = [float(rate) for rate in options.rates.split(",")]
    live, simulated = {}, {}
    for preset in options.presets.split(","):
        folder = options.out / preset
        if not (folder / "live" / "report.json").exists():
            _measure(preset, folder, options.port, load)
        live[preset], simulated[preset] = _attainments(folder / "live"), _simulate(preset, folder, load)
        print(f"{preset}\n{(folder / 'fit.txt').read_text()}  checked: {_drift(folder)}")
        for at, rate in enumerate(rates):
            real, model = live[preset][at], simulated[preset][at]
            print(f"  {rate:g}/s: live {real:.1%}, simulated {model:.1%}, {100 * (model - real):+.1f} points")
    for at, rate in enumerate(rates):
        of_rate = [{preset: figures[at] for preset, figures in side.items()} for side in (live, simulated)]
        _compare(rate, round(rate * options.duration_s), *of_rate)


def _measure(preset: str, folder: Path, port: int, load: list[str]) -> None:
    """Fill the folder."""
    folder.mkdir(exist_ok=True)
    trace = folder / "fit.csv"
    _write_trace(trace)
    url = ("--url", f"http://127.0.0.1:{port}")
    with _serving(preset, port, folder):
        _run("bench", *url, "--trace", str(trace), "--out", str(folder / "fit"))
        fit = _run("fit", "--steps", str(folder / "llm.steps"), "--out", str(folder / "cost.json"))
        (folder / "fit.txt").write_text("".join(f"  {line}\n" for line in fit.splitlines()[:3]))
        _run("bench", *url, *load, "--out", str(folder / "live"))


def _write_trace(path: Path) -> None:
    rng = random.Random(2)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("arrival_s", "prompt_tokens", "output_tokens"))
        for burst in range(FIT_BURSTS):
            longest = _log_uniform(rng, *FIT_PROMPT_TOKENS)
            for _ in range(min(FIT_BURST_REQUESTS, FIT_BURST_TOKENS // longest)):
                prompt_tokens = round(longest * rng.uniform(0.3, 1.0))
                writer.writerow((burst * FIT_BURST_S, prompt_tokens, _log_uniform(rng, *FIT_ANSWER_TOKENS)))


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


@contextmanager
def _serving(preset: str, port: int, records: Path) -> Iterator[None]:
    arguments = ("--port", str(port), "--threads", "1", "--policy", preset, "--step-records", str(records))
    up = subprocess.Popen([*CLI, "up", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert up.stdout
        if not any(re.search("ready after .* on http", line) for line in up.stdout):
            raise SystemExit(f"`up --policy {preset}` did not come up")
        yield
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate()


def _simulate(preset: str, folder: Path, load: list[str]) -> list[float]:
    """Attainment at each rate.  Clients of `bench` say how long their answers will be."""
    engine = ("--engine", "alternate", "--padding", "prompts", "--lengths", "oracle")
    out = ("--cost", str(folder / "cost.json"), "--out", str(folder / "simulated"))
    _run("simulate", "--policies", preset, *engine, *load, *out)
    return _attainments(folder / "simulated")


def _drift(folder: Path) -> str:
    """What the steps of all rates took, beside what the cost model says of them."""
    model = cost.load(str(folder / "cost.json"))
    _, steps = read(folder / "llm.steps")
    steps = steps[int((folder / "fit.txt").read_text().split()[0]) :]

    def predicted_s(step: StepRecord) -> float:
        if step.rows:
            return model.decode_s(step.rows, step.context_tokens, step.groups)
        return model.prefill_s(step.tokens, step.squares)

    took_s, said_s = sum(step.seconds for step in steps), sum(map(predicted_s, steps))
    return f"{len(steps)} steps took {took_s:.1f} s, the cost model says {said_s:.1f} ({said_s / took_s - 1:+.1%})"


def _compare(rate: float, requests: int, live: dict[str, float], simulated: dict[str, float]) -> None:
    """Print both orders, and how many pairs of presets stand the same way in both."""
    pairs = list(combinations(live, 2))
    ways = [(_way(live[a], live[b], requests), _way(simulated[a], simulated[b], requests)) for a, b in pairs]
    same, opposite = sum(a == b for a, b in ways), sum(a * b < 0 for a, b in ways)
    print(f"{rate:g}/s live: {_ranking(live)}; simulated: {_ranking(simulated)}")
    level = len(pairs) - same - opposite
    print(f"  pairs of presets: {same} of {len(pairs)} the same, {level} level in one only, {opposite} opposite")


def _way(one: float, other: float, requests: int) -> int:
    """1: the one is better, -1: the other is; 0: they are within two standard errors of each other."""
    noise = 2.0 * math.sqrt((one * (1.0 - one) + other * (1.0 - other)) / requests)
    return 0 if abs(one - other) <= noise else 1 if one > other else -1


def _ranking(attainments: dict[str, float]) -> str:
    best_first = sorted(attainments.items(), key=lambda item: -item[1])
    return ", ".join(f"{preset} {attainment:.0%}" for preset, attainment in best_first)


def _run(*arguments: str) -> str:
    """A command of ours; what it printed."""
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def _attainments(folder: Path) -> list[float]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return [run["report"]["total"]["attainment"] for run in report["runs"]]


if __name__ == "__main__":
    main()
