"""How many requests wait for their first token over time, by length: what the queue's buckets held, as seen from
outside."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gateway.load.record import Records
from gateway.load.workload import Floats

_GROUPS = 6
_POINTS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Occupancy:
    times_s: Floats
    waiting: dict[str, Floats]
    """Requests at each of the times, by a label that tells the prompts' lengths; shortest first."""


def of(records: Records) -> Occupancy:
    """In at most 6 groups of equal width on a logarithmic scale.  Requests without a token are left out."""
    served = ~np.isnan(records.first_token_s)
    lengths = records.prompt_tokens[served]
    if not len(lengths):
        return Occupancy(np.zeros(0), {})
    arrivals, firsts = records.arrival_s[served], records.first_token_s[served]
    times_s = np.linspace(float(arrivals.min()), float(firsts.max()), _POINTS)
    edges = np.unique(np.rint(np.geomspace(lengths.min(), lengths.max() + 1, _GROUPS + 1)).astype(np.int64))
    waiting = {}
    for low, up in pairwise(edges.tolist()):
        inside = (lengths >= low) & (lengths < up)
        if inside.any():
            label = f"{lengths[inside].min()} to {lengths[inside].max()} tokens"
            waiting[label] = _waiting(arrivals[inside], firsts[inside], times_s)
    return Occupancy(times_s, waiting)


def _waiting(arrivals: Floats, firsts: Floats, times_s: Floats) -> Floats:
    came = np.searchsorted(np.sort(arrivals), times_s, side="right")
    left = np.searchsorted(np.sort(firsts), times_s, side="right")
    return (came - left).astype(np.float64)
