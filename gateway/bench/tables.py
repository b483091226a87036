"""Runs as tables, for the terminal and the page."""

from collections.abc import Iterator, Sequence

from gateway.bench.run import Run
from gateway.load.page import Table
from gateway.load.report import Figures, Spread, goodput_at

TARGETS = (0.9, 0.8)
"""Attainments at which the goodput is read off: DistServe's, BucketServe's."""
_COUNTS = ("sent", "done", "refused", "failed", "expired")
_RATES = ("req/s", "out tok/s", "goodput/s", "in SLO")


def served(runs: Sequence[Run]) -> Table:
    rows = [(*place, *_counts(figures)) for place, figures in _rows(runs)]
    return Table("Served", ("offered/s", "class", *_COUNTS, *_RATES), rows)


def latencies(runs: Sequence[Run]) -> Table:
    rows = [
        (
            *place,
            _spread(figures.ttft_s, 1000.0, 0),
            _spread(figures.tpot_s, 1000.0, 1),
            _spread(figures.itl_s, 1000.0, 1),
            _spread(figures.e2e_s, 1.0, 2),
        )
        for place, figures in _rows(runs)
    ]
    header = ("offered/s", "class", "TTFT ms", "TPOT ms", "ITL ms", "E2E s")
    return Table("Latencies (P50 / P90 / P99)", header, rows)


def balance(runs: Sequence[Run]) -> Table:
    rows = [(f"{run.rate:.3g}", f"{run.report.fairness:.3f}") for run in runs]
    return Table("Balance", ("offered/s", "Jain"), rows)


def _rows(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], Figures]]:
    """((rate, class), figures): all together, then each class if there are several."""
    for run in runs:
        rate = f"{run.rate:.3g}"
        yield (rate, "all"), run.report.total
        if len(run.report.classes) > 1:
            yield from (((rate, name), figures) for name, figures in run.report.classes.items())


def everything(runs: Sequence[Run]) -> list[Table]:
    return [served(runs), latencies(runs), balance(runs)]


def goodput(runs: Sequence[Run]) -> dict[str, float | None]:
    """By target: the largest rate that keeps it, between the lowest and the highest that were measured."""
    curve = [(run.rate, run.report.total.attainment) for run in runs]
    return {f"{target:g}": goodput_at(curve, target) for target in TARGETS}


def kept(runs: Sequence[Run]) -> str:
    """`goodput` in words."""
    highest = max(run.rate for run in runs)
    said = []
    for target, rate in goodput(runs).items():
        where = "not even at the lowest rate" if rate is None else f"up to {rate:.3g} req/s"
        said.append(f"{float(target):.0%} {where}" + (" and perhaps beyond" if rate == highest else ""))
    return ", ".join(said)


def notes(runs: Sequence[Run], interrupted: bool) -> list[str]:
    """What whoever reads the figures should know."""
    said = ["Interrupted: the last rate's figures are of what had ended by then."] if interrupted else []
    for run in runs:
        at = f"At {run.rate:.3g} req/s"
        if run.own.is_late:
            said.append(
                f"{at} this client itself fell behind (P99: sends {1000 * run.own.late_p99_s:.0f} ms late, event "
                f"loop {1000 * run.own.lag_p99_s:.0f} ms late): these figures are not the server's alone."
            )
        if run.own.short_answers:
            said.append(f"{at} {run.own.short_answers} answers were shorter than asked for.")
        said += [f"{at}, {count} times: {reason}" for reason, count in list(run.own.reasons.items())[:5]]
        if told := run.own.retry_after_s:
            said.append(
                f"{at} refused clients were told to wait {told.p50:.1f} s (median), {told.p99:.1f} s (P99)."
            )
    return said


def text(table: Table) -> str:
    """Aligned for a terminal."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _counts(figures: Figures) -> tuple[str, ...]:
    return (
        str(figures.requests),
        str(figures.finished),
        str(figures.rejected),
        str(figures.failed),
        str(figures.expired),
        f"{figures.requests_per_s:.2f}",
        f"{figures.output_tokens_per_s:.1f}",
        f"{figures.goodput_per_s:.2f}",
        _percent(figures.attainment),
    )


def _spread(spread: Spread | None, unit: float, digits: int) -> str:
    if spread is None:
        return "-"
    return " / ".join(f"{unit * value:.{digits}f}" for value in (spread.p50, spread.p90, spread.p99))


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f} %"
