"""The presets live on this machine, beside the simulator: `python -m benchmarks.live_presets --out FOLDER`.

Serves the demo model under each preset and loads it with `bucketserve bench`: with a trace of bursts, and with
the workload `chat` at each rate, each time begun anew and with that workload's targets, as a simulation is.  One
cost model is fitted to all steps of the bursts (its error is printed), and the `chat` requests are simulated with
it: as fitted, and at the speed that the machine had just then (every time of the model times what that load's
steps took over what the model says of them).  Some twenty minutes, on an idle machine: another's work changes what
a step takes.  What lies in the folder is not measured again.
"""

import argparse
import csv
import math
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.speed import servers
from gateway.load.named import WORKLOADS
from gateway.simulator import cost
from gateway.simulator.run import aims
from triton_backend.record import StepRecord, read

PRESETS = ("full", "uellm", "continuous", "bucketserve", "static")
FIT_BURSTS = 10
FIT_BURST_S = 5.0
FIT_BURST_REQUESTS, FIT_BURST_TOKENS = 128, 40_000
"""The most of a burst: many short prompts, or few long ones, so that rows and tokens can be told apart."""
FIT_PROMPT_TOKENS, FIT_ANSWER_TOKENS = (32, 3000), (8, 120)
WORKLOAD = "chat"
FIT, STEPS = "fit", "llm.steps"
"""The bursts' folder; the file of each load's steps, as `up` names it."""
CLI = (sys.executable, "-m", "gateway")

Total = dict[str, Any]
"""A report's figures of all requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is measured")
    parser.add_argument("--presets", default=",".join(PRESETS), help="with commas")
    parser.add_argument("--rates", default="8,16,28", help="requests/s, with commas")
    parser.add_argument("--duration-s", type=int, default=20, help="at each rate")
    parser.add_argument("--port", type=int, default=8480)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    workload = ["--workload", WORKLOAD, "--duration-s", str(options.duration_s), "--rates"]
    loads = {rate: [*workload, rate] for rate in options.rates.split(",")}
    folders = {preset: options.out / preset for preset in options.presets.split(",")}
    for preset, folder in folders.items():
        folder.mkdir(exist_ok=True)
        _write_trace(folder / "trace.csv")
        _measure(folder / FIT, options.port, ["--policy", preset], ["--trace", str(folder / "trace.csv")])
        for rate, load in loads.items():
            _measure(folder / rate, options.port, ["--policy", preset, *_targets()], load)
    cost_file = options.out / "cost.json"
    fitted = [str(folder / FIT / STEPS) for folder in folders.values()]
    print(_run("fit", "--steps", *fitted, "--out", str(cost_file)), end="")
    fit = cost.load(str(cost_file))
    live: dict[str, dict[str, Total]] = {rate: {} for rate in loads}
    simulated: dict[str, dict[str, Total]] = {rate: {} for rate in loads}
    for preset, folder in folders.items():
        print(preset)
        for rate, load in loads.items():
            real = live[rate][preset] = _total(folder / rate)
            speed = _speed(fit, folder / rate / STEPS)
            at_speed_file = folder / rate / "cost.json"
            at_speed_file.write_bytes(msgspec.json.encode(_at_speed(fit, speed)))
            model = _simulate(preset, folder / rate / "as_fitted", cost_file, load)
            then = simulated[rate][preset] = _simulate(preset, folder / rate / "at_speed", at_speed_file, load)
            print(f"  {rate}/s live           {_text(real)}")
            print(f"  {'':{len(rate)}}   as fitted      {_text(model)} | {_points(model, real)}")
            print(f"  {'':{len(rate)}}   times {speed:.3f}    {_text(then)} | {_points(then, real)}")
    for rate in loads:
        _compare(rate, live[rate], simulated[rate])


def _measure(folder: Path, port: int, served: list[str], load: list[str]) -> None:
    """Fill the folder, unless it was: a report, and the engine's steps."""
    if not (folder / "report.json").exists():
        with servers.ours(port, "--threads", "1", "--step-records", str(folder), *served) as url:
            servers.bench(url, folder, *load)


def _targets() -> list[str]:
    """The classes' targets for a gateway that is to serve the workload."""
    targets = []
    for name, aim in aims(WORKLOADS[WORKLOAD].classes).items():
        targets += [f"--classes-{name}-ttft-s={aim.ttft_s}", f"--classes-{name}-tpot-s={aim.tpot_s}"]
    return targets


def _write_trace(path: Path) -> None:
    """Bursts of ever longer prompts."""
    rng, (shortest, limit) = random.Random(2), FIT_PROMPT_TOKENS
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("arrival_s", "prompt_tokens", "output_tokens"))
        for burst in range(FIT_BURSTS):
            longest = round(shortest * (limit / shortest) ** (burst / (FIT_BURSTS - 1)))
            for _ in range(min(FIT_BURST_REQUESTS, FIT_BURST_TOKENS // longest)):
                prompt_tokens = round(longest * rng.uniform(0.3, 1.0))
                writer.writerow((burst * FIT_BURST_S, prompt_tokens, rng.randint(*FIT_ANSWER_TOKENS)))


def _simulate(preset: str, out: Path, cost_file: Path, load: list[str]) -> Total:
    """Clients of `bench` say how long their answers will be, hence the oracle."""
    engine = ("--engine", "ours", "--padding", "packed", "--lengths", "oracle")
    _run("simulate", "--policies", preset, *engine, *load, "--cost", str(cost_file), "--out", str(out))
    return _total(out)


def _speed(model: cost.Cost, records: Path) -> float:
    """What the steps took, over what the cost model says of them."""
    steps = read(records)[1]

    def predicted_s(step: StepRecord) -> float:
        return model.mixed_s(step.tokens, step.squares, step.rows, step.context_tokens, step.groups)

    return sum(step.seconds for step in steps) / sum(map(predicted_s, steps))


def _at_speed(model: cost.Cost, factor: float) -> cost.Cost:
    """A fitted model with all its times multiplied."""
    times = ("prefill_fixed_s", "prefill_token_s", "prefill_square_s", "mixed_fixed_s", "decode_group_s")
    scaled = {name: factor * seconds for name in times if (seconds := getattr(model, name)) is not None}
    decode = cost.DecodeCost(*(factor * part for part in msgspec.structs.astuple(model.decode)))
    return msgspec.structs.replace(model, decode=decode, **scaled)


def _compare(rate: str, live: dict[str, Total], simulated: dict[str, Total]) -> None:
    """Print both orders, and how many pairs of presets stand the same way in both."""
    pairs = list(combinations(live, 2))
    ways = [(_way(live[one], live[other]), _way(simulated[one], simulated[other])) for one, other in pairs]
    same, opposite = sum(a == b for a, b in ways), sum(a * b < 0 for a, b in ways)
    print(f"{rate}/s live: {_ranking(live)}; simulated: {_ranking(simulated)}")
    level = len(pairs) - same - opposite
    print(f"  pairs of presets: {same} of {len(pairs)} the same, {level} level in one only, {opposite} opposite")


def _way(one: Total, other: Total) -> int:
    """1: the one is better, -1: the other is; 0: they are within two standard errors of each other."""
    a, b = one["attainment"], other["attainment"]
    noise = 2.0 * math.sqrt((a * (1.0 - a) + b * (1.0 - b)) / one["requests"])
    return 0 if abs(a - b) <= noise else 1 if a > b else -1


def _ranking(totals: dict[str, Total]) -> str:
    best_first = sorted(totals.items(), key=lambda item: -item[1]["attainment"])
    return ", ".join(f"{preset} {total['attainment']:.0%}" for preset, total in best_first)


def _run(*arguments: str) -> str:
    """A command of ours; what it printed."""
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def _total(folder: Path) -> Total:
    total: Total = servers.report(folder)["total"]
    return total


def _points(model: Total, real: Total) -> str:
    return f"{100 * (model['attainment'] - real['attainment']):+.1f} points"


def _text(total: Total) -> str:
    ttft, tpot = total["ttft_s"], total["tpot_s"]
    times = f"TTFT P50 {ttft['p50']:.2f} P90 {ttft['p90']:.2f} s, TPOT P50 {1e3 * tpot['p50']:.0f} ms"
    return f"{total['attainment']:.1%} in SLO, {total['rejected']} refused, {times}"


if __name__ == "__main__":
    main()
