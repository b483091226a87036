"""Sweep, then measure: a contender's settings on seeds of their own, the best ones on the seeds that count."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import msgspec
import structlog
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.papers import trials
from benchmarks.papers.contenders import CONTENDERS, Contender, Setting, ablations
from benchmarks.papers.journal import Journal
from benchmarks.papers.trials import Job, Trial
from benchmarks.papers.workloads import MIXED
from gateway.load.workload import Source
from gateway.simulator.job import Padding


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is run."""

    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    requests_per_gpu: int
    """At least (see trials.size)."""
    sweep_requests_per_gpu: int
    halvings: int
    """Of the bracket around each load that is looked for, which is a doubling at first."""
    sweep_halvings: int


FULL = Plan(
    seeds=(1, 2, 3, 4, 5),
    sweep_seeds=(101,),
    # As many as in DistServe's evaluation.
    requests_per_gpu=100,
    sweep_requests_per_gpu=100,
    halvings=1,
    sweep_halvings=1,
)
QUICK = Plan(
    seeds=(1, 2),
    sweep_seeds=(101,),
    requests_per_gpu=80,
    sweep_requests_per_gpu=50,
    halvings=1,
    sweep_halvings=1,
)


class Cell(NamedTuple):
    """What all contenders are compared on."""

    workload: str
    padding: Padding


ABLATED = Cell(MIXED[-1], Padding.PADDED)
"""Where buckets can matter most."""


class Best(NamedTuple):
    """Of one contender in one cell."""

    load: Setting
    throughput: Setting


Bests = Mapping[tuple[Cell, str], Best]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Trials carry the settings' names; a contender whose two best settings differ has both among them."""

    best: dict[str, tuple[str, str]]
    """By "workload/padding/contender": the settings for load and for throughput."""
    trials: list[Trial]
    ablation: list[Trial]


class Pool:
    """Runs what the journal does not have yet."""

    def __init__(self, jobs: int, journal: Journal) -> None:
        self._executor = ProcessPoolExecutor(jobs, initializer=_hush)
        self._journal = journal

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(self, what: str, jobs: Sequence[Job]) -> list[Trial]:
        finished = self._journal.finished
        left = {job.key: job for job in jobs if job.key not in finished}
        running = {self._executor.submit(trials.run, job): key for key, job in left.items()}
        for future in tqdm(as_completed(running), total=len(running), desc=what, unit="trial"):
            self._journal.add(running[future], future.result())
        return [finished[job.key] for job in jobs]


def _hush() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


def study(sources: Mapping[str, Source], plan: Plan, pool: Pool) -> Results:
    cells = [Cell(workload, padding) for workload in sources for padding in Padding]
    swept = pool.run("sweep", [*sweep(sources, cells, plan)])
    best = choose(cells, swept)
    measured = pool.run("measure", [*_measure(sources, cells, best, plan)])
    ablated = pool.run("ablate", [*_ablate(sources, cells, best, plan)])
    named = {
        "/".join((*cell, contender)): (settings.load.name, settings.throughput.name)
        for (cell, contender), settings in best.items()
    }
    return Results(best=named, trials=measured, ablation=ablated)


def sweep(sources: Mapping[str, Source], cells: Iterable[Cell], plan: Plan) -> Iterable[Job]:
    short = msgspec.structs.replace(
        plan,
        seeds=plan.sweep_seeds,
        requests_per_gpu=plan.sweep_requests_per_gpu,
        halvings=plan.sweep_halvings,
    )
    for cell in cells:
        for contender in CONTENDERS:
            for setting in contender.settings if contender.like is None else ():
                yield from _jobs(sources, cell, contender, setting, short, is_searched=setting.for_load)


def choose(cells: Iterable[Cell], swept: Sequence[Trial]) -> Bests:
    """The settings with the highest load (the sum of those at all targets) and the highest throughput."""
    best: dict[tuple[Cell, str], Best] = {}
    for cell in cells:
        for contender in CONTENDERS:
            whose = contender.like or contender.name
            of = [t for t in swept if (t.workload, t.padding) == cell and t.contender == whose]
            settings = {setting.name: setting for setting in contender.settings}
            load = settings[_top(of, lambda trial: sum(trial.load.values()))]
            throughput = settings[_top(of, lambda trial: trial.requests_per_s)]
            best[cell, contender.name] = Best(load, throughput)
    return best


def _top(swept: Sequence[Trial], worth: Callable[[Trial], float]) -> str:
    """The setting with the highest sum over its trials; the first of several."""
    sums: dict[str, float] = {}
    for trial in swept:
        sums[trial.setting] = sums.get(trial.setting, 0.0) + worth(trial)
    return max(sums, key=lambda name: sums[name])


def _measure(sources: Mapping[str, Source], cells: Iterable[Cell], best: Bests, plan: Plan) -> Iterable[Job]:
    for cell in cells:
        for contender in CONTENDERS:
            load, throughput = best[cell, contender.name]
            yield from _jobs(sources, cell, contender, load, plan, is_searched=True)
            if throughput != load:
                yield from _jobs(sources, cell, contender, throughput, plan, is_searched=False)


def _ablate(sources: Mapping[str, Source], cells: Iterable[Cell], best: Bests, plan: Plan) -> Iterable[Job]:
    for cell in cells:
        for contender in ablations(best[cell, "full"].load) if cell == ABLATED else ():
            yield from _jobs(sources, cell, contender, contender.settings[0], plan, is_searched=True)


def _jobs(
    sources: Mapping[str, Source],
    cell: Cell,
    contender: Contender,
    setting: Setting,
    plan: Plan,
    *,
    is_searched: bool,
) -> Iterable[Job]:
    for seed in plan.seeds:
        yield Job(
            workload=cell.workload,
            source=sources[cell.workload],
            padding=cell.padding,
            contender=contender.name,
            setting=setting,
            lengths=contender.lengths,
            seed=seed,
            requests_per_gpu=plan.requests_per_gpu,
            halvings=plan.halvings,
            is_searched=is_searched,
        )
