"""Figures from records.  Pure functions of columns; a Report goes to JSON as it is (msgspec).

Definitions are DistServe's: a request attains its objective if TTFT and TPOT are both within their targets, and
whatever was rejected, failed or expired has missed it.  Latencies are those of finished requests.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from gateway.load import gaps
from gateway.load.record import Ending, Flags, Records
from gateway.load.workload import Floats, Ints

SLO_SCALES = (0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


class Spread(msgspec.Struct, frozen=True):
    """Seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    requests: int
    finished: int
    rejected: int
    failed: int
    expired: int
    requests_per_s: float
    """Finished ones."""
    output_tokens_per_s: float
    """Of whatever was delivered, also to requests that did not finish."""
    tokens_per_s: float
    """Those and the prompts of finished requests."""
    goodput_per_s: float
    """Requests that met both targets."""
    attainment: float
    """Part of all requests that met both targets."""
    ttft_s: Spread | None
    """None: nothing finished."""
    tpot_s: Spread | None
    itl_s: Spread | None
    """Gaps between the tokens (chunks, if one brings several) of all requests, within 1 %."""
    e2e_s: Spread | None
    max_gap_s: float
    """Longest pause inside any answer."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    duration_s: float
    """From the first arrival to the last token."""
    offered_per_s: float
    """Mean arrival rate."""
    total: Figures
    classes: dict[str, Figures]
    """By class name."""
    fairness: float
    """Jain's index of the served tokens over the shares, between tenants, or classes if there is one tenant."""
    padding_waste: float | None
    """Part of the prefilled tokens that was padding; None: not known, as of every server that was measured."""
    slo_scale: list[tuple[float, float]]
    """(factor on both targets, attainment)."""


def make(records: Records, padded_tokens: int | None = None, useful_tokens: int | None = None) -> Report:
    """`padded_tokens` were prefilled, padding included, for `useful_tokens` of prompts."""
    duration_s = records.duration_s
    everything = np.ones(len(records), dtype=np.bool_)
    return Report(
        duration_s=duration_s,
        offered_per_s=_offered_per_s(records),
        total=_figures(records, everything, records.gap_counts.sum(axis=0), duration_s),
        classes={
            traffic.name: _figures(records, records.of_class(index), records.gap_counts[index], duration_s)
            for index, traffic in enumerate(records.classes)
        },
        fairness=fairness(records),
        padding_waste=waste(padded_tokens, useful_tokens) if padded_tokens and useful_tokens else None,
        slo_scale=attainment_at_scales(records, SLO_SCALES),
    )


def _offered_per_s(records: Records) -> float:
    span_s = float(np.ptp(records.arrival_s)) if len(records) else 0.0
    return (len(records) - 1) / span_s if span_s > 0.0 else 0.0


def _figures(records: Records, of: Flags, gap_counts: gaps.Counts, duration_s: float) -> Figures:
    finished = of & records.ended(Ending.FINISHED)
    met = int((of & records.meets()).sum())
    output_tokens = int(records.output_tokens[of].sum())
    per_s = 1.0 / duration_s if duration_s > 0.0 else 0.0
    num_requests = int(of.sum())
    return Figures(
        requests=num_requests,
        finished=int(finished.sum()),
        rejected=int((of & records.ended(Ending.REJECTED)).sum()),
        failed=int((of & records.ended(Ending.FAILED)).sum()),
        expired=int((of & records.ended(Ending.EXPIRED)).sum()),
        requests_per_s=int(finished.sum()) * per_s,
        output_tokens_per_s=output_tokens * per_s,
        tokens_per_s=(output_tokens + int(records.prompt_tokens[finished].sum())) * per_s,
        goodput_per_s=met * per_s,
        attainment=met / num_requests if num_requests else 0.0,
        ttft_s=spread(records.ttft_s[finished]),
        tpot_s=spread(records.tpot_s[finished]),
        itl_s=_gap_spread(gap_counts),
        e2e_s=spread(records.e2e_s[finished]),
        max_gap_s=float(records.max_gap_s[of].max(initial=0.0)),
    )


def spread(values: Floats) -> Spread | None:
    """Of what is known: an answer that ended without a token has no latency.  None of nothing."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    return Spread(float(values.mean()), float(p50), float(p90), float(p99))


def _gap_spread(counts: gaps.Counts) -> Spread | None:
    mean, p50, p90, p99 = gaps.mean_s(counts), *(gaps.quantile_s(counts, part) for part in (0.5, 0.9, 0.99))
    if mean is None or p50 is None or p90 is None or p99 is None:
        return None
    return Spread(mean, p50, p90, p99)


def attainment_at_scales(records: Records, scales: Iterable[float]) -> list[tuple[float, float]]:
    """(factor on both targets, part of the requests that meet them)."""
    return [(scale, float(records.meets(scale).mean()) if len(records) else 0.0) for scale in scales]


def fairness(records: Records) -> float:
    """Between tenants, each with the same share; with one tenant between the classes, each with its part of the
    tokens that were asked for."""
    served = np.where(records.ended(Ending.FINISHED), records.prompt_tokens, 0) + records.output_tokens
    if len(records.tenants) > 1:
        return jain(_sums(records.tenant_index, served, len(records.tenants)))
    asked = records.prompt_tokens + records.wanted_tokens
    shares = _sums(records.class_index, asked, len(records.classes))
    got = _sums(records.class_index, served, len(records.classes))
    return jain(got[shares > 0] / shares[shares > 0])


def _sums(index: Ints, amounts: Ints, size: int) -> Floats:
    return np.bincount(index, amounts, size).astype(np.float64)


def jain(amounts: Floats) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything.  1 if nobody has anything."""
    most = float(amounts.max(initial=0.0))
    if not most:
        return 1.0
    # The largest part is 1, so that no square is lost to rounding.
    parts = amounts / most
    return float(parts.sum()) ** 2 / (len(parts) * float((parts**2).sum()))


def waste(padded_tokens: int, useful_tokens: int) -> float:
    """Part of the prefilled tokens that was padding."""
    return max(0.0, 1.0 - useful_tokens / padded_tokens)


def goodput_at(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """The largest rate up to which attainment stays at or above `target`, by linear interpolation.

    `curve` holds (rate, attainment).  None if even the lowest rate misses it; the highest rate if none does, which
    is then only a lower bound.
    """
    points = sorted(curve)
    if not points or points[0][1] < target:
        return None
    for (rate, attainment), (next_rate, next_attainment) in pairwise(points):
        if next_attainment < target:
            return rate + (next_rate - rate) * (attainment - target) / (attainment - next_attainment)
    return points[-1][0]
