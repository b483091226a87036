"""What is asked: the papers' workloads, with targets for a load or without any for a throughput."""

import dataclasses
from pathlib import Path

import numpy as np

from gateway.load import named, trace
from gateway.load.arrivals import Arrivals, Process
from gateway.load.trace import Trace
from gateway.load.workload import Floats, Generator, Lengths, Source, TrafficClass, Workload, generate
from gateway.request import ServiceClass

LIMIT_TOKENS = 4096
"""The longest prompt of BucketServe's model; its document workload is cut there."""
MIXED = ("mixed-1024", "mixed-4096")
_NEVER_S = 1e6
_TRACED = {"azure-code": named.AZURE_CODE.traffic, "azure-conv": named.AZURE_CONV.traffic}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Excerpt:
    """A Source: a stretch of a recorded trace that starts anywhere, so that seeds differ."""

    trace: Trace
    traffic: TrafficClass

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        return (self.traffic,)

    def lengths(self, num_requests: int, rng: Generator) -> Lengths:
        at = (int(rng.integers(len(self.trace))) + np.arange(num_requests)) % len(self.trace)
        index = np.zeros(num_requests, dtype=np.int64)
        return Lengths(self.trace.prompt_tokens[at], self.trace.output_tokens[at], index)

    def times(self, num_requests: int) -> Floats | None:
        return None


def sources(traces: Path | None) -> dict[str, Source]:
    """By name.  A file azure-code.csv or azure-conv.csv (or .csv.gz) in `traces` goes before the synthetic one.

    Raises LoadError for a file that is no trace.
    """
    found: dict[str, Source] = {
        "alpaca": named.WORKLOADS["alpaca"],
        "long": named.shared((named.cut(named.LONG, LIMIT_TOKENS), 1.0)),
        **{name: named.WORKLOADS[name] for name in (*MIXED, *_TRACED)},
    }
    return found | {name: Excerpt(trace.read(path), _TRACED[name]) for name, path in files(traces).items()}


def files(traces: Path | None) -> dict[str, Path]:
    """The traces there are, by workload."""
    paths = [(name, traces / (name + suffix)) for name in _TRACED for suffix in (".csv.gz", ".csv") if traces]
    return {name: path for name, path in paths if path.exists()}


def at_rate(source: Source, num_requests: int, rate: float, seed: int) -> Workload:
    """Poisson arrivals, `rate` requests/s.  Another rate is the same requests, closer together."""
    return generate(source, num_requests, Arrivals(Process.POISSON, rate), seed)


def all_at_once(source: Source, num_requests: int, seed: int) -> Workload:
    """The same requests as bulk: there from the start, in no hurry."""
    workload = at_rate(source, num_requests, 1.0, seed)
    classes = tuple(
        TrafficClass(traffic.name, traffic.share, ServiceClass.FLEX, _NEVER_S, _NEVER_S)
        for traffic in workload.classes
    )
    return dataclasses.replace(workload.with_classes(classes), arrival_s=np.zeros(num_requests))
