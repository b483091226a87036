"""Results as Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from benchmarks.papers.contenders import CONTENDERS
from benchmarks.papers.figures import Figure, figure
from benchmarks.papers.study import ABLATED, Plan, Results
from benchmarks.papers.targets import TARGETS, THROUGHPUT, Target, compare, is_met, values, why, without_padding
from benchmarks.papers.trials import Trial
from benchmarks.papers.workloads import MIXED
from gateway.simulator.job import Padding

CONDITIONS = """\
OPT-13B on A100s by DistServe's published coefficients. Requests/s are per GPU, DistServe's GPUs being those of
both phases. Answers have the workload's lengths for everybody. Targets for first token and time per token are
DistServe's: 0.25 and 0.1 s for instructions, 15 and 0.15 s for documents, 2.5 and 0.15 s for Azure's; a refusal
is a miss. "At once": all requests are there from the start, without targets. "Padded" is an engine without
ragged attention, in which a step costs its longest row times its rows; of "prompts" only those in a step do;
engines of vLLM's and DistServe's kind do not pad, so their padded rows say what if. Settings were chosen on
other seeds. Predicted lengths (`full`, `uellm`) are off by more than a factor of 1.4 for one in three, unless
said. Poisson arrivals; ± and brackets are 95 % intervals over seeds."""


def markdown(results: Results, plan: Plan) -> str:
    cells = sorted({(trial.workload, trial.padding) for trial in results.trials}, key=_rank)
    parts = [
        f"{CONDITIONS}\n{_runs(plan)}",
        "### Targets\n\n" + _targets(results),
        *(f"### {workload}, {padding}\n\n" + _cell(results, workload, padding) for workload, padding in cells),
        f"### `full`, one choice replaced: {', '.join(ABLATED)}\n\n" + _ablation(results.ablation),
    ]
    return "\n\n".join(parts) + "\n"


def _runs(plan: Plan) -> str:
    size = f"{plan.requests_per_gpu} requests a GPU or more"
    return f"{len(plan.seeds)} seeds; a run has {size}, and lasts ten times the longest target or more."


def _rank(cell: tuple[str, Padding]) -> tuple[bool, str, int]:
    """The papers' main comparison first."""
    workload, padding = cell
    return workload not in MIXED, workload, list(Padding).index(padding)


def _targets(results: Results) -> str:
    heads = ["workload", "what", "wanted", "padded", "", "packed", "without padding", "why missed"]
    workloads = sorted({trial.workload for trial in results.trials} & {*MIXED})
    return table(heads, (_target(results, workload, target) for workload in workloads for target in TARGETS))


def _target(results: Results, workload: str, target: Target) -> list[str]:
    figure = target.figure
    (ours, theirs), (ours_packed, theirs_packed) = (
        [of(results, workload, padding, name, figure) for name in ("full", target.rival)]
        for padding in (Padding.PADDED, Padding.PACKED)
    )
    padded, packed = compare(ours, theirs, figure), compare(ours_packed, theirs_packed, figure)
    met = is_met(padded, target.wanted)
    reasons = why(figure, "full", ours), why(figure, target.rival, theirs)
    return [
        *(workload, target.words, f"{target.wanted:g}", _times(padded), "met" if met else "**missed**"),
        *(_times(packed), without_padding(padded, packed), "" if met else "; ".join(reasons)),
    ]


def _cell(results: Results, workload: str, padding: Padding) -> str:
    heads = ["who", "best setting: load / at once", "at once, requests/s", "tokens/s", "at 90 %", "at 80 %"]
    heads += ["full over it: at once", "at 90 %", "at 80 %"]
    rows = []
    for contender in CONTENDERS:
        name = contender.name
        load, throughput = results.best["/".join((workload, padding, name))]
        once = of(results, workload, padding, name, THROUGHPUT)
        loaded = of(results, workload, padding, name, "0.8")
        unfinished = sum(trial.unfinished for trial in once)
        rows.append(
            [
                name,
                load if load == throughput else f"{load} / {throughput}",
                _plus_minus(figure(values(once, THROUGHPUT)))
                + (f" ({unfinished} unfinished)" if unfinished else ""),
                f"{figure([trial.tokens_per_s for trial in once]).mean:,.0f}",
                *(_plus_minus(figure(values(loaded, target))) for target in ("0.9", "0.8")),
                *(
                    _times(compare(of(results, workload, padding, "full", what), of_, what))
                    for what, of_ in ((THROUGHPUT, once), ("0.9", loaded), ("0.8", loaded))
                ),
            ]
        )
    return table(heads, rows)


def _ablation(trials: Sequence[Trial]) -> str:
    whole = [trial for trial in trials if trial.contender == "full"]
    rows = []
    for name in dict.fromkeys(trial.contender for trial in trials):
        those = [trial for trial in trials if trial.contender == name]
        found = [cell for what in (THROUGHPUT, "0.9", "0.8") for cell in _beside(those, whole, what)]
        rows.append([name, *found])
    return table(["changed", "at once", "to full", "at 90 %", "to full", "at 80 %", "to full"], rows)


def _beside(trials: Sequence[Trial], whole: Sequence[Trial], what: str) -> tuple[str, str]:
    return _plus_minus(figure(values(trials, what))), _times(compare(trials, whole, what))


def of(results: Results, workload: str, padding: Padding, contender: str, what: str) -> list[Trial]:
    """The trials of a contender's best setting for a figure."""
    setting = results.best["/".join((workload, padding, contender))][what == THROUGHPUT]
    return [
        trial
        for trial in results.trials
        if (trial.workload, trial.padding, trial.contender, trial.setting)
        == (workload, padding, contender, setting)
    ]


def _plus_minus(found: Figure) -> str:
    return f"{found.mean:.3g} ±{found.high - found.mean:.2g}"


def _times(found: Figure | None) -> str:
    return "none" if found is None else f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_csv(trials: Iterable[Trial]) -> str:
    """One row per trial."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    heads = "workload engine contender setting seed requests_per_s tokens_per_s padding_waste unfinished"
    writer.writerow([*heads.split(), "load_at_90", "load_at_80"])
    for t in trials:
        figures = (t.requests_per_s, t.tokens_per_s, t.padding_waste, t.unfinished, t.load["0.9"], t.load["0.8"])
        writer.writerow([t.workload, t.padding.value, t.contender, t.setting, t.seed, *figures])
    return file.getvalue()
