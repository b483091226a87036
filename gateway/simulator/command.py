"""From the options to the exit status."""

import argparse
import logging
from typing import NamedTuple

import structlog
from tqdm import tqdm  # type: ignore[import-untyped]

from gateway.bench import demand
from gateway.load import plots, report
from gateway.load.arrivals import LoadError
from gateway.load.report import Report
from gateway.load.workload import Workload
from gateway.options import SettingsError
from gateway.simulator import folder, options
from gateway.simulator.options import Options
from gateway.simulator.run import Result, simulate


class Run(NamedTuple):
    policy: str
    rate: float
    """Requests/s asked for."""
    result: Result
    report: Report

    @property
    def gpu_rate(self) -> float:
        return self.rate / self.result.gpus


def start(given: argparse.Namespace) -> int:
    """0 if something finished in every run, else 1.  Raises SettingsError."""
    wanted = options.check(given)
    workloads = demand.workloads(wanted)
    if wanted.out:
        _require_plots()
        folder.make(wanted.out)
    # Drivers tell of every attachment and every change of the buckets: thousands in a second.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    runs = [
        _run(wanted, policy, rate, workload) for policy in wanted.policies for rate, workload in workloads.items()
    ]
    print(folder.text(runs))
    if wanted.out:
        folder.write(wanted.out, wanted, runs)
        print(f"\nwritten: {wanted.out / 'report.html'}")
    return int(any(not run.report.total.finished for run in runs))


def _run(wanted: Options, policy: str, rate: float, workload: Workload) -> Run:
    # disable=None: nothing where nobody watches.
    with tqdm(total=len(workload), unit="req", desc=f"{policy} at {rate:.3g} req/s", disable=None) as bar:
        result = simulate(workload, wanted.config(policy), bar.update)
    made = report.make(result.records, result.padded_tokens, result.useful_tokens)
    return Run(policy, rate, result, made)


def _require_plots() -> None:
    try:
        plots.require()
    except LoadError as error:
        raise SettingsError(f"--out: {error}") from None
