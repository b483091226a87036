"""From the options to the exit status."""

import argparse
import asyncio
import sys
from collections.abc import Mapping

from gateway.bench import demand, folder, options, run, tables
from gateway.bench.run import Result
from gateway.load import plots
from gateway.load.arrivals import LoadError
from gateway.options import SettingsError


def start(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """0 if every rate was measured and something finished at each, else 1.  Raises SettingsError."""
    wanted = options.check(given)
    workloads = demand.workloads(wanted)
    if wanted.out:
        _require_plots()
        folder.make(wanted.out)
    # Not on uvloop, whose clock goes in milliseconds: gaps between tokens are a few of these.
    try:
        result = asyncio.run(run.measure(wanted, workloads, options.api_key(environ)))
    except KeyboardInterrupt:
        print("bucketserve: interrupted while nothing was measured", file=sys.stderr)
        return 1
    _show(result)
    if wanted.out:
        folder.write(wanted.out, wanted, result)
        print(f"\nwritten: {wanted.out / 'report.html'}")
    return int(result.interrupted or any(not each.report.total.finished for each in result.runs))


def _require_plots() -> None:
    try:
        plots.require()
    except LoadError as error:
        raise SettingsError(f"--out: {error}") from None


def _show(result: Result) -> None:
    for table in tables.everything(result.runs):
        print(f"{table.title}\n{tables.text(table)}\n")
    if len(result.runs) > 1:
        print(f"Attainment: {tables.kept(result.runs)}")
    for note in tables.notes(result.runs, result.interrupted):
        print(f"! {note}")
