"""One seed of one contender at one setting: everything at once, then ever more load.  Runs in any process."""

from dataclasses import dataclass
from math import ceil

import msgspec
import numpy as np

from benchmarks.papers import search, workloads
from benchmarks.papers.contenders import Setting
from gateway.load import report
from gateway.load.record import Ending, Records
from gateway.load.workload import Source, Workload
from gateway.simulator.cost import COSTS
from gateway.simulator.job import Padding
from gateway.simulator.lengths import LengthsName
from gateway.simulator.run import Config, Result, simulate

COST = COSTS["distserve-opt13b-tp1"]
TARGETS = (0.9, 0.8)
AT_ONCE = 4
"""So many times the fewest requests are there at once for the throughput."""
_LONGEST_TARGETS = 10
"""A run lasts so many times the longest target: else an overload is only ever postponed."""
_FIRST_PART = 0.25
"""Of the throughput with everything there at once: where the search begins."""


@dataclass(frozen=True, slots=True)
class Job:
    workload: str
    source: Source
    padding: Padding
    contender: str
    setting: Setting
    lengths: LengthsName
    seed: int
    requests_per_gpu: int
    halvings: int
    is_searched: bool = True
    """False: only everything at once."""

    @property
    def key(self) -> str:
        """Tells it from all others."""
        of = (self.workload, self.padding, self.contender, self.setting.name, self.lengths, self.seed)
        return "/".join(map(str, (*of, self.requests_per_gpu, self.halvings, self.is_searched)))

    @property
    def gpus(self) -> int:
        replicas: int = self.setting.options.get("replicas", 1)
        return replicas * COST.gpus


class Point(msgspec.Struct, frozen=True):
    """Parts of all requests, at one load."""

    load: float
    """Requests/s per GPU."""
    attainment: float
    refused: float
    late_first: float
    """First token after its target."""
    late_tokens: float
    """Only the others were too slow."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    workload: str
    padding: Padding
    contender: str
    setting: str
    seed: int
    requests_per_s: float
    """Per GPU, all there at once."""
    tokens_per_s: float
    """Per GPU: prompts and answers, no padding."""
    padding_waste: float
    """Part of the prefilled tokens, all there at once."""
    unfinished: int
    """Of the requests that were there at once."""
    load: dict[str, float]
    """Requests/s per GPU at an attainment ("0.9"); 0: missed at any load tried."""
    points: list[Point]


class Truncated(AssertionError):
    """An answer ended before its length: the run is worth nothing."""


def run(job: Job) -> Trial:
    # Long enough that the end, when the last answers run alone, does not count for much.
    num_requests = AT_ONCE * job.requests_per_gpu * job.gpus
    once = simulated(job, workloads.all_at_once(job.source, num_requests, job.seed))
    figures = report.make(once.records).total
    throughput = figures.requests_per_s / job.gpus
    points: list[Point] = []
    if job.is_searched:
        measured = search.curve(
            lambda load: _point(job, load), _attainment, _FIRST_PART * throughput, TARGETS, job.halvings
        )
        points = list(measured.values())
    curve = [(point.load, point.attainment) for point in points]
    return Trial(
        workload=job.workload,
        padding=job.padding,
        contender=job.contender,
        setting=job.setting.name,
        seed=job.seed,
        requests_per_s=throughput,
        tokens_per_s=figures.tokens_per_s / job.gpus,
        padding_waste=report.waste(once.padded_tokens, once.useful_tokens),
        unfinished=figures.requests - figures.finished,
        load={str(target): report.goodput_at(curve, target) or 0.0 for target in TARGETS},
        points=points,
    )


def size(job: Job, load: float) -> int:
    """How many requests a run at so many requests/s per GPU has."""
    longest_s = max(traffic.ttft_slo_s or 0.0 for traffic in job.source.classes)
    return job.gpus * max(job.requests_per_gpu, ceil(_LONGEST_TARGETS * longest_s * load))


def _point(job: Job, load: float) -> Point:
    workload = workloads.at_rate(job.source, size(job, load), load * job.gpus, job.seed)
    records = simulated(job, workload).records
    finished, met = records.ended(Ending.FINISHED), records.meets()
    first_slo_s = np.array([traffic.ttft_slo_s for traffic in records.classes])[records.class_index]
    is_late = finished & (records.ttft_s > first_slo_s)
    return Point(
        load=load,
        attainment=float(met.mean()),
        refused=float((~finished).mean()),
        late_first=float(is_late.mean()),
        late_tokens=float((finished & ~is_late & ~met).mean()),
    )


def _attainment(point: Point) -> float:
    return point.attainment


def simulated(job: Job, workload: Workload) -> Result:
    setting = job.setting
    result = simulate(
        workload,
        Config(
            policy=setting.engine,
            rules=setting.rules,
            cost=COST,
            padding=job.padding,
            lengths=job.lengths,
            seed=job.seed,
            **setting.options,
        ),
    )
    check(result.records)
    return result


def check(records: Records) -> None:
    """Raises Truncated."""
    finished = records.ended(Ending.FINISHED)
    short = finished & (records.output_tokens != records.wanted_tokens)
    if short.any():
        raise Truncated(f"{int(short.sum())} of {int(finished.sum())} answers are not as long as they should be")
