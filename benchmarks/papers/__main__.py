"""Reproduce the papers' comparison tables on the simulator."""

import argparse
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec

from benchmarks.papers import journal, study, tables, workloads
from benchmarks.papers.journal import Journal
from benchmarks.papers.study import FULL, QUICK, Pool
from gateway.load.arrivals import LoadError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Mixed only, two seeds, short runs: a few minutes")
    parser.add_argument("--out", type=Path, help="folder for all results; a run cut off goes on there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--traces", type=Path, help="folder with azure-code.csv[.gz] and azure-conv.csv[.gz]")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    try:
        sources = workloads.sources(options.traces)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 2
    if options.quick:
        sources = {name: sources[name] for name in workloads.MIXED}
    begun_s = time.perf_counter()
    log = Journal(options.out, journal.version(workloads.files(options.traces).values()))
    with closing(log), Pool(options.jobs, log) as pool:
        results = study.study(sources, plan, pool)
    text = tables.markdown(results, plan)
    print(text)
    print(f"{time.perf_counter() - begun_s:.0f} s with {options.jobs} processes")
    if options.out:
        (options.out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
        (options.out / "trials.csv").write_text(tables.as_csv(results.trials + results.ablation))
        (options.out / "tables.md").write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
