"""The papers' claims, asked of our figures: met or missed, and what stands in the way."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.papers.figures import Figure, ratio
from benchmarks.papers.trials import Point, Trial

THROUGHPUT = "throughput"


class Target(NamedTuple):
    """`full` is to reach so many times the rival's figure."""

    rival: str
    figure: str
    """THROUGHPUT, or the attainment of a load."""
    wanted: float

    @property
    def words(self) -> str:
        what = "throughput" if self.figure == THROUGHPUT else f"load at {float(self.figure):.0%}"
        return f"{what}, full over {self.rival}"


TARGETS = (
    Target("uellm", THROUGHPUT, 3.58),
    Target("distserve", "0.8", 1.93),
    Target("uellm", "0.8", 1.975),
    Target("bucketserve", "0.9", 1.2),
)


def values(trials: Sequence[Trial], figure: str) -> list[float]:
    """One per seed, in the seeds' order."""
    ordered = sorted(trials, key=lambda trial: trial.seed)
    return [trial.requests_per_s if figure == THROUGHPUT else trial.load[figure] for trial in ordered]


def compare(ours: Sequence[Trial], theirs: Sequence[Trial], figure: str) -> Figure | None:
    """The ratio of the two over the same seeds."""
    return ratio(values(ours, figure), values(theirs, figure))


def is_met(found: Figure | None, wanted: float) -> bool:
    return found is not None and found.mean >= wanted


def without_padding(padded: Figure | None, packed: Figure | None) -> str:
    """What is left of a gain when nothing is padded."""
    if padded is None or packed is None:
        return "not comparable"
    if padded.low <= 1.0:
        return "no gain to lose"
    if packed.low <= 1.0:
        return "the gain vanishes"
    return f"{(packed.mean - 1.0) / (padded.mean - 1.0):.0%} of the gain is left"


def why(figure: str, name: str, trials: Sequence[Trial]) -> str:
    """Where a contender's figure comes from: what it misses just past the load, or how much it pads."""
    if figure == THROUGHPUT:
        waste = float(np.mean([trial.padding_waste for trial in trials]))
        return f"{name} pads {waste:.0%} of its prefill"
    points = [point for trial in trials if (point := past(trial, float(figure)))]
    if not points:
        return f"{name} keeps {float(figure):.0%} at all loads tried"
    load, refused, first, tokens = (
        float(np.mean([getattr(point, field) for point in points]))
        for field in ("load", "refused", "late_first", "late_tokens")
    )
    return f"{name} at {load:.2f}/s: {refused:.0%} refused, {first:.0%} first token late, {tokens:.0%} slow tokens"


def past(trial: Trial, target: float) -> Point | None:
    """The first load tried at which the target is missed."""
    return next((point for point in trial.points if point.attainment < target), None)
