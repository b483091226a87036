"""What is asked for and when: one column per fact, one entry per request.

A workload is made of a *source* (which lengths), an arrival process (when) and classes (how urgent).  Each draws
from its own generator, all from one seed: another rate or another mix leaves the lengths as they are, so that
policies and rates are compared on the same requests.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.load.arrivals import Arrivals
from gateway.request import ServiceClass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Generator = np.random.Generator


class TrafficClass(msgspec.Struct, frozen=True):
    """Requests with the same promise.  A target of None is always met."""

    name: str
    """In reports."""
    share: float = 1.0
    """Part of all requests; only the ratios count."""
    service_class: ServiceClass = ServiceClass.DEFAULT
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None

    def scaled(self, factor: float) -> "TrafficClass":
        """Both targets times `factor`."""
        return msgspec.structs.replace(
            self, ttft_slo_s=_times(self.ttft_slo_s, factor), tpot_slo_s=_times(self.tpot_slo_s, factor)
        )


def _times(seconds: float | None, factor: float) -> float | None:
    return None if seconds is None else seconds * factor


class Arrival(NamedTuple):
    """One request of a workload."""

    arrival_s: float
    """Since the workload's start."""
    prompt_tokens: int
    output_tokens: int
    service_class: ServiceClass
    ttft_slo_s: float | None
    tpot_slo_s: float | None


class Lengths(NamedTuple):
    prompt_tokens: Ints
    output_tokens: Ints
    class_index: Ints
    """Into the source's classes."""


class Source(Protocol):
    @property
    def classes(self) -> tuple[TrafficClass, ...]: ...

    def lengths(self, num_requests: int, rng: Generator) -> Lengths: ...

    def times(self, num_requests: int) -> Floats | None:
        """The source's own arrivals in seconds, from 0; None if it has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """In the order of arrival."""

    classes: tuple[TrafficClass, ...]
    class_index: Ints
    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints

    def __post_init__(self) -> None:
        columns = (self.class_index, self.arrival_s, self.prompt_tokens, self.output_tokens)
        assert len({len(column) for column in columns}) == 1
        assert np.all(np.diff(self.arrival_s) >= 0.0)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __getitem__(self, request: int) -> Arrival:
        traffic = self.classes[self.class_index[request]]
        return Arrival(
            float(self.arrival_s[request]),
            int(self.prompt_tokens[request]),
            int(self.output_tokens[request]),
            traffic.service_class,
            traffic.ttft_slo_s,
            traffic.tpot_slo_s,
        )

    def __iter__(self) -> Iterator[Arrival]:
        return (self[request] for request in range(len(self)))

    @property
    def rate(self) -> float:
        """Mean requests/s offered; 0 for a single instant."""
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span_s if span_s > 0.0 else 0.0

    def with_classes(self, classes: tuple[TrafficClass, ...]) -> "Workload":
        """The same requests under other promises, class by class."""
        assert len(classes) == len(self.classes)
        return dataclasses.replace(self, classes=classes)


def generate(
    source: Source,
    num_requests: int,
    arrivals: Arrivals,
    seed: int,
    mix: Sequence[TrafficClass] = (),
) -> Workload:
    """`mix` replaces the source's classes by others, drawn by their shares whatever the length.

    Raises LoadError if the arrivals are to be the source's own and it has none.
    """
    lengths_rng, arrivals_rng, mix_rng = np.random.default_rng(seed).spawn(3)
    lengths = source.lengths(num_requests, lengths_rng)
    classes = tuple(mix) or source.classes
    return Workload(
        classes=classes,
        class_index=pick(classes, num_requests, mix_rng) if mix else lengths.class_index,
        arrival_s=arrivals.times(num_requests, source.times(num_requests), arrivals_rng),
        prompt_tokens=lengths.prompt_tokens,
        output_tokens=lengths.output_tokens,
    )


def pick(classes: Sequence[TrafficClass], num_requests: int, rng: Generator) -> Ints:
    """Indexes of classes, drawn by their shares."""
    shares = np.array([traffic.share for traffic in classes])
    return rng.choice(len(classes), size=num_requests, p=shares / shares.sum())
