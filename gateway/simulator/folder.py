"""What runs leave behind: report.json, summary.csv, requests.csv, pictures, and one page that shows it all."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gateway.load import occupancy, page, plots
from gateway.load.page import Table
from gateway.load.record import ENDINGS, Ending, Records
from gateway.load.report import goodput_at
from gateway.options import SettingsError
from gateway.simulator.options import Options

if TYPE_CHECKING:
    from gateway.simulator.command import Run

TARGETS = (0.9, 0.8)
"""Attainments at which the goodput is read off: DistServe's, BucketServe's."""
_SUMMARY = (
    *("policy", "rate_per_s", "gpus", "attainment", "goodput_per_s", "tokens_per_s", "output_tokens_per_s"),
    *("finished", "rejected", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s"),
    *("padding_waste", "jain", "put_backs", "returns", "returns_admitted", "preempted", "buckets"),
)
_REQUESTS = (
    *("policy", "rate_per_s", "class", "arrival_s", "prompt_tokens", "wanted_tokens", "output_tokens"),
    *("first_token_s", "last_token_s", "ending"),
)
_CHUNK = 50_000


def make(folder: Path) -> None:
    """Before anything is simulated.  Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {folder}: {error.strerror}") from None


def write(folder: Path, options: Options, runs: Sequence["Run"]) -> None:
    (folder / "report.json").write_bytes(_json(options, runs))
    with (folder / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([_SUMMARY, *map(_summary, runs)])
    with (folder / "requests.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_REQUESTS)
        for run in runs:
            writer.writerows(_rows(run.policy, run.rate, run.result.records))
    pictures = _pictures(runs)
    for name, (_, png) in pictures.items():
        (folder / name).write_bytes(png)
    facts = {
        "Workload": f"{options.workload or options.trace}, seed {options.seed}",
        "Replicas": f"{options.replicas} of {options.cost.name}, {options.padding.value}",
        "Answers' lengths": options.lengths.value,
    }
    html = page.render("bucketserve simulate", facts, [], _tables(runs), dict(pictures.values()))
    (folder / "report.html").write_text(html)


def text(runs: Sequence["Run"]) -> str:
    """For a terminal."""
    return "\n\n".join(f"{table.title}\n{_aligned(table)}" for table in _tables(runs))


def _json(options: Options, runs: Sequence["Run"]) -> bytes:
    tree = {
        "options": msgspec.to_builtins(options, enc_hook=str),
        "goodput_per_gpu_at_attainment": _goodputs(runs),
        "runs": [
            {
                "policy": run.policy,
                "rate": run.rate,
                "report": msgspec.to_builtins(run.report),
                **{name: getattr(run.result, name) for name in run.result._fields if name != "records"},
            }
            for run in runs
        ],
    }
    return json.dumps(tree, indent=2).encode()


def _goodputs(runs: Sequence["Run"]) -> dict[str, dict[str, float | None]]:
    """By policy and attainment: requests/s per GPU."""
    return {
        policy: {f"{target:g}": goodput_at(curve, target) for target in TARGETS}
        for policy, curve in _curves(runs).items()
    }


def _curves(runs: Sequence["Run"]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        curves.setdefault(run.policy, []).append((run.gpu_rate, run.report.total.attainment))
    return curves


def _summary(run: "Run") -> list[object]:
    total, result = run.report.total, run.result
    ttft, tpot = total.ttft_s, total.tpot_s
    return [
        *(run.policy, f"{run.rate:.6g}", result.gpus, f"{total.attainment:.4f}", f"{total.goodput_per_s:.4f}"),
        *(f"{total.tokens_per_s:.1f}", f"{total.output_tokens_per_s:.1f}", total.finished, total.rejected),
        *([f"{ttft.p50:.4f}", f"{ttft.p90:.4f}", f"{ttft.p99:.4f}"] if ttft else [""] * 3),
        *([f"{tpot.p50:.5f}", f"{tpot.p90:.5f}", f"{tpot.p99:.5f}"] if tpot else [""] * 3),
        "" if run.report.padding_waste is None else f"{run.report.padding_waste:.4f}",
        *(f"{run.report.fairness:.4f}", sum(result.put_backs.values()), result.returns),
        *(result.returns_admitted, result.preempted, result.buckets),
    ]


def _rows(policy: str, rate: float, records: Records) -> Iterable[list[object]]:
    """What a request does not have is left empty."""
    names = [traffic.name for traffic in records.classes]
    for start in range(0, len(records), _CHUNK):
        part = slice(start, start + _CHUNK)
        columns = zip(
            records.class_index[part].tolist(),
            records.arrival_s[part].tolist(),
            records.prompt_tokens[part].tolist(),
            records.wanted_tokens[part].tolist(),
            records.output_tokens[part].tolist(),
            records.first_token_s[part].tolist(),
            records.last_token_s[part].tolist(),
            records.ending[part].tolist(),
            strict=True,
        )
        for index, arrival_s, prompt, wanted, output, first_s, last_s, ending in columns:
            yield [
                *(policy, f"{rate:.6g}", names[index], f"{arrival_s:.6f}", prompt, wanted, output),
                "" if np.isnan(first_s) else f"{first_s:.6f}",
                "" if np.isnan(last_s) else f"{last_s:.6f}",
                ENDINGS[ending].value,
            ]


def _tables(runs: Sequence["Run"]) -> list[Table]:
    rows = [[str(cell) for cell in _summary(run)] for run in runs]
    goodputs = [
        [policy, *("-" if rate is None else f"{rate:.3g}" for rate in by_target.values())]
        for policy, by_target in _goodputs(runs).items()
    ]
    header = ("policy", *(f"req/s per GPU at {target:.0%}" for target in TARGETS))
    return [Table("Runs", _SUMMARY, rows), Table("Rate up to which attainment stays", header, goodputs)]


def _aligned(table: Table) -> str:
    """Turned on its side if it is wide: one line a column."""
    lines = [list(table.header), *map(list, table.rows)]
    if len(table.header) > len(lines):
        lines = [list(column) for column in zip(*lines, strict=True)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _pictures(runs: Sequence["Run"]) -> dict[str, tuple[str, bytes]]:
    """File name -> description and PNG.  The latencies are those at each policy's highest rate."""
    highest: dict[str, Run] = {}
    for run in runs:
        if run.policy not in highest or run.rate > highest[run.policy].rate:
            highest[run.policy] = run
    finished = {policy: run.result.records.ended(Ending.FINISHED) for policy, run in highest.items()}
    ttft = {policy: run.result.records.ttft_s[finished[policy]] for policy, run in highest.items()}
    tpot = {policy: run.result.records.tpot_s[finished[policy]] for policy, run in highest.items()}
    scales = {policy: run.report.slo_scale for policy, run in highest.items()}
    pictures = {
        "attainment.png": (
            "SLO attainment against the rate per GPU",
            plots.attainment(_curves(runs), "offered rate (requests/s per GPU)"),
        ),
        "slo_scale.png": ("Attainment with scaled targets", plots.slo_scale(scales)),
        "ttft.png": ("Time to the first token", plots.latency_cdf("Time to the first token", ttft)),
        "tpot.png": ("Time per further token", plots.latency_cdf("Time per further token", tpot)),
    }
    for policy, run in highest.items():
        title = f"{policy}: waiting by prompt length at {run.rate:.3g} req/s"
        pictures[f"waiting_{policy}.png"] = (title, plots.occupancy(title, occupancy.of(run.result.records)))
    return pictures
