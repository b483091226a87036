"""What a run leaves behind: report.json, requests.csv, pictures, and one page that shows it all."""

import csv
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from gateway.bench import tables
from gateway.bench.options import Options
from gateway.bench.run import Result, Run
from gateway.load import occupancy, page, plots
from gateway.load.record import ENDINGS, Ending, Records
from gateway.options import SettingsError

_COLUMNS = (
    *("offered_per_s", "class", "arrival_s", "prompt_tokens", "wanted_tokens", "output_tokens"),
    *("ttft_s", "tpot_s", "e2e_s", "max_gap_s", "ending"),
)


def make(folder: Path) -> None:
    """Before anything is measured.  Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {folder}: {error.strerror}") from None


def write(folder: Path, options: Options, result: Result) -> None:
    (folder / "report.json").write_bytes(msgspec.json.format(_json(options, result), indent=2))
    _write_requests(folder / "requests.csv", result.runs)
    pictures = _pictures(result.runs)
    for name, (_, png) in pictures.items():
        (folder / name).write_bytes(png)
    html = page.render(
        f"bucketserve bench: {result.model}",
        _facts(options, result.runs),
        tables.notes(result.runs, result.interrupted),
        tables.everything(result.runs),
        dict(pictures.values()),
    )
    (folder / "report.html").write_text(html)


def _json(options: Options, result: Result) -> bytes:
    return msgspec.json.encode(
        {
            "model": result.model,
            "options": msgspec.to_builtins(options, enc_hook=str),
            "interrupted": result.interrupted,
            "goodput_at_attainment": tables.goodput(result.runs),
            "runs": [{"rate": run.rate, "report": run.report, "client": run.own} for run in result.runs],
        }
    )


def _write_requests(path: Path, runs: Sequence[Run]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for run in runs:
            writer.writerows(_rows(run.rate, run.records))


def _rows(rate: float, records: Records) -> list[list[object]]:
    """What a request does not have is left empty."""
    served = ~np.isnan(records.first_token_s)
    columns = [
        [f"{rate:.6g}"] * len(records),
        [records.classes[index].name for index in records.class_index],
        [f"{arrival_s:.6f}" for arrival_s in records.arrival_s],
        records.prompt_tokens.tolist(),
        records.wanted_tokens.tolist(),
        records.output_tokens.tolist(),
        *(
            [f"{value:.6f}" if has else "" for value, has in zip(column, served, strict=True)]
            for column in (records.ttft_s, records.tpot_s, records.e2e_s, records.max_gap_s)
        ),
        [ENDINGS[ending].value for ending in records.ending],
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _pictures(runs: Sequence[Run]) -> dict[str, tuple[str, bytes]]:
    """File name -> description and PNG."""
    labels = [f"{run.rate:.3g} req/s" for run in runs]
    finished = {label: run.records.ended(Ending.FINISHED) for label, run in zip(labels, runs, strict=True)}
    ttft = {label: run.records.ttft_s[finished[label]] for label, run in zip(labels, runs, strict=True)}
    tpot = {label: run.records.tpot_s[finished[label]] for label, run in zip(labels, runs, strict=True)}
    attainment = {
        "all": [(run.rate, run.report.total.attainment) for run in runs],
        **_by_class(runs),
    }
    scales = {label: run.report.slo_scale for label, run in zip(labels, runs, strict=True)}
    pictures = {
        "attainment.png": ("SLO attainment against the rate", plots.attainment(attainment)),
        "slo_scale.png": ("Attainment with scaled targets", plots.slo_scale(scales)),
        "ttft.png": ("Time to the first token", plots.latency_cdf("Time to the first token", ttft)),
        "tpot.png": ("Time per further token", plots.latency_cdf("Time per further token", tpot)),
    }
    for number, (label, run) in enumerate(zip(labels, runs, strict=True)):
        title = f"Waiting by prompt length at {label}"
        pictures[f"waiting_{number}.png"] = (title, plots.occupancy(title, occupancy.of(run.records)))
    return pictures


def _by_class(runs: Sequence[Run]) -> dict[str, list[tuple[float, float]]]:
    names = list(runs[0].report.classes)
    if len(names) == 1:
        return {}
    return {name: [(run.rate, run.report.classes[name].attainment) for run in runs] for name in names}


def _facts(options: Options, runs: Sequence[Run]) -> dict[str, str]:
    targets = "; ".join(
        f"{traffic.name}: TTFT {_ms(traffic.ttft_slo_s)}, TPOT {_ms(traffic.tpot_slo_s)}"
        for traffic in runs[0].records.classes
    )
    return {
        "Server": f"{options.url}, {options.endpoint}",
        "Workload": f"{options.workload or options.trace}, seed {options.seed}",
        "Targets": targets,
        "Attainment": tables.kept(runs),
    }


def _ms(target_s: float | None) -> str:
    return "none" if target_s is None else f"{1000 * target_s:g} ms"
