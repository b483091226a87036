"""Workloads by name, drawn from published figures: nothing is read, and any number of requests can be had.

A distribution of lengths is given by some of its quantiles and is log-normal between two of them: a few figures
are met exactly, and the tail is a tail.  Where the figures come from is said at each.  "Tokens" are the source's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import msgspec
import numpy as np

from gateway.load.workload import Floats, Generator, Ints, Lengths, TrafficClass, pick
from gateway.request import ServiceClass


class Quantiles(msgspec.Struct, frozen=True):
    """Lengths in tokens, between the first and the last of the given quantiles."""

    points: tuple[tuple[float, float], ...]
    """(part of the requests that are shorter, length), ascending."""

    def draw(self, num_requests: int, rng: Generator) -> Ints:
        scores = [NormalDist().inv_cdf(part) for part, _ in self.points]
        logs = np.log([length for _, length in self.points])
        lengths = np.exp(np.interp(rng.standard_normal(num_requests), scores, logs))
        return np.rint(lengths).astype(np.int64)


class Kind(msgspec.Struct, frozen=True):
    """Requests of one sort: their class, and how long they are."""

    traffic: TrafficClass
    prompt: Quantiles
    output: Quantiles
    limit_tokens: int = 2**31 - 1
    """Prompts are cut to this."""

    def prompts(self, num_requests: int, rng: Generator) -> Ints:
        return np.minimum(self.prompt.draw(num_requests, rng), self.limit_tokens)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A Source: each request is of one of the kinds, by their classes' shares."""

    kinds: tuple[Kind, ...]

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        return tuple(kind.traffic for kind in self.kinds)

    def lengths(self, num_requests: int, rng: Generator) -> Lengths:
        index = pick(self.classes, num_requests, rng)
        prompts = [kind.prompts(num_requests, rng) for kind in self.kinds]
        outputs = [kind.output.draw(num_requests, rng) for kind in self.kinds]
        return Lengths(np.choose(index, prompts), np.choose(index, outputs), index)

    def times(self, num_requests: int) -> Floats | None:
        return None


def _kind(
    name: str,
    targets_s: tuple[float, float],
    prompt: Sequence[tuple[float, float]],
    output: Sequence[tuple[float, float]],
) -> Kind:
    traffic = TrafficClass(name, 1.0, ServiceClass.DEFAULT, *targets_s)
    return Kind(traffic, Quantiles(tuple(prompt)), Quantiles(tuple(output)))


ALPACA = _kind(
    "instruction",
    # DistServe's targets for a chat with a 13B model.
    (0.25, 0.1),
    # BucketServe's mean and median (83.7, 69) with the shape of the public data set.  It says tokens, but these
    # are that data set's characters; kept, as it is the workload that its figures were measured with.
    ((0.001, 12), (0.5, 69), (0.9, 136), (0.99, 347), (0.9998, 1331)),
    # The data set's words (median 32, P90 101, P99 202, longest 471) at 1.33 tokens each.
    ((0.001, 2), (0.5, 43), (0.9, 134), (0.99, 269), (0.9998, 626)),
)
LONG = _kind(
    "document",
    # DistServe's targets for summaries of LongBench.
    (15.0, 0.15),
    # BucketServe's mean and median of LongBench (55,749 and 41,417): one log-normal.
    ((0.001, 3824), (0.5, 41417), (0.999, 448573)),
    # Median and P90 of public summaries of papers; the tail is ours, as theirs looks like extraction faults.
    ((0.001, 31), (0.5, 167), (0.9, 372), (0.999, 800)),
)
# Azure LLM inference trace 2023 (CC BY 4.0, Patel et al., Splitwise): quantiles of the whole trace.  The targets
# are DistServe's for a chat with a 66B model, since these prompts are many times longer than its chats with a 13B.
_AZURE_TARGETS_S = (2.5, 0.15)
_AZURE_PARTS = (0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
AZURE_CODE = _kind(
    "code",
    _AZURE_TARGETS_S,
    list(zip(_AZURE_PARTS, (7, 147, 578, 1469, 2744, 5194, 7436, 7437), strict=True)),
    list(zip(_AZURE_PARTS, (6, 7, 9, 13, 24, 55, 252, 825), strict=True)),
)
AZURE_CONV = _kind(
    "conversation",
    _AZURE_TARGETS_S,
    list(zip(_AZURE_PARTS, (8, 207, 396, 1020, 1189, 2735, 4142, 6179), strict=True)),
    list(zip(_AZURE_PARTS, (12, 54, 85, 129, 395, 424, 601, 954), strict=True)),
)
# For small models on CPUs; all figures are ours.
_CHAT_OUTPUT = ((0.001, 32.0), (0.5, 55.0), (0.999, 96.0))
CHAT_SHORT = _kind("short", (1.0, 0.15), ((0.001, 32), (0.5, 90), (0.999, 256)), _CHAT_OUTPUT)
CHAT_LONG = _kind("long", (10.0, 0.3), ((0.001, 2000), (0.5, 2450), (0.999, 3000)), _CHAT_OUTPUT)

DOCUMENT_LIMIT_TOKENS = 32_768
"""Where `long` and `mixed` are cut: a common context limit."""


def cut(kind: Kind, limit_tokens: int) -> Kind:
    return msgspec.structs.replace(kind, limit_tokens=limit_tokens)


def shared(*kinds_and_shares: tuple[Kind, float]) -> Synthetic:
    """Several kinds, each with its part of the requests."""
    return Synthetic(
        tuple(
            msgspec.structs.replace(kind, traffic=msgspec.structs.replace(kind.traffic, share=share))
            for kind, share in kinds_and_shares
        )
    )


def mixed(limit_tokens: int, long_share: float = 0.5) -> Synthetic:
    """BucketServe's Mixed: short instructions and very long documents, cut to `limit_tokens`.

    The paper does not give the ratio, and its readers disagree about the limit.
    """
    return shared((cut(ALPACA, limit_tokens), 1.0 - long_share), (cut(LONG, limit_tokens), long_share))


WORKLOADS: dict[str, Synthetic] = {
    "alpaca": Synthetic((ALPACA,)),
    "long": Synthetic((cut(LONG, DOCUMENT_LIMIT_TOKENS),)),
    "mixed": mixed(DOCUMENT_LIMIT_TOKENS),
    "mixed-1024": mixed(1024),
    "mixed-4096": mixed(4096),
    "azure-code": Synthetic((AZURE_CODE,)),
    "azure-conv": Synthetic((AZURE_CONV,)),
    "chat": shared((CHAT_SHORT, 0.8), (CHAT_LONG, 0.2)),
}
