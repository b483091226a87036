"""What admission promises, on the simulator: a steady overload; a burst whose refused clients come back when told.

`python -m benchmarks.overload [--workload NAME] [--cost NAME] [--seeds N]`.  For the steady overload, capacity is
the highest goodput at any load, even if what is long is refused for it.  For the burst, after which everybody is
to be served, it is also the highest load of which nine in ten are within their targets.
"""

import argparse
import dataclasses
from statistics import mean

import numpy as np

from gateway.load import report
from gateway.load.arrivals import Arrivals, Process
from gateway.load.named import WORKLOADS
from gateway.load.workload import Workload, generate
from gateway.simulator.cost import COSTS
from gateway.simulator.run import Config, Result, simulate

MULTIPLES = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
STEADY_REQUESTS = 4000
SERVED = 0.9
BURST_S, AFTER_S = 60.0, 240.0
POLICY = "full"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, default="azure-conv")
    parser.add_argument("--cost", choices=COSTS, default="distserve-opt13b-tp1")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    capacity, served = capacities(options.workload, options.cost)
    print(f"{options.workload} on {options.cost}: at most {capacity:.2f} requests/s within their targets")
    print(f"at least {SERVED:.0%} of all are up to {served:.2f} requests/s\n")
    print("load / capacity | refused | of the admitted, in SLO | goodput / capacity")
    for multiple in MULTIPLES:
        runs = [steady(options.workload, options.cost, multiple * capacity, seed) for seed in seeds]
        refused, kept, goodput = (mean(figures) for figures in zip(*runs, strict=True))
        print(f"{multiple:15.1f} | {refused:7.1%} | {kept:23.1%} | {goodput / capacity:.2f}")
    print("\nTwice the capacity for 60 s, then 0.7 of it; refused clients come back when told:")
    for load in (served, capacity):
        for seed in seeds:
            result = _run(_burst(options.workload, load, seed), options.cost, seed, max_returns=5)
            let_in = result.returns_admitted / max(1, result.returns)
            gave_up = report.make(result.records).total.rejected
            print(f"{load:.2f}/s, seed {seed}: {result.returns} returns, {let_in:.1%} let in; {gave_up} gave up")


def capacities(workload: str, cost: str) -> tuple[float, float]:
    """Requests/s within their targets, at most; and the highest load of which SERVED are."""
    rate, best, served = 0.25, 0.0, 0.0
    while rate < 1000:
        refused, kept, goodput = steady(workload, cost, rate, 1, num_requests=1000)
        if goodput < 0.9 * best:
            break
        best = max(best, goodput)
        if (1 - refused) * kept >= SERVED:
            served = rate
        rate *= 1.1
    return best, served


def steady(
    workload: str, cost: str, rate: float, seed: int, num_requests: int = STEADY_REQUESTS
) -> tuple[float, float, float]:
    """Refused share, share of the admitted within their targets, goodput."""
    asked = generate(WORKLOADS[workload], num_requests, Arrivals(Process.POISSON, rate), seed)
    figures = report.make(_run(asked, cost, seed).records).total
    admitted = figures.requests - figures.rejected
    in_slo = figures.attainment * figures.requests
    return figures.rejected / figures.requests, in_slo / max(1, admitted), figures.goodput_per_s


def _burst(workload: str, capacity: float, seed: int) -> Workload:
    rng = np.random.default_rng(seed)
    gaps = [
        rng.exponential(1 / rate, round(rate * lasts_s))
        for rate, lasts_s in ((2 * capacity, BURST_S), (0.7 * capacity, AFTER_S))
    ]
    arrival_s = np.cumsum(np.concatenate(gaps))
    asked = generate(WORKLOADS[workload], len(arrival_s), Arrivals(Process.POISSON, capacity), seed)
    return dataclasses.replace(asked, arrival_s=arrival_s)


def _run(asked: Workload, cost: str, seed: int, max_returns: int = 0) -> Result:
    return simulate(asked, Config(policy=POLICY, cost=COSTS[cost], seed=seed, max_returns=max_returns))


if __name__ == "__main__":
    main()
