"""When requests come: as recorded, at random (Poisson), or at random in bursts (gamma)."""

from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray


class LoadError(ValueError):
    """A workload that cannot be made; the message is one line for whoever asked for it."""


class Process(StrEnum):
    TRACE = "trace"
    """The source's own arrivals, stretched to the rate."""
    POISSON = "poisson"
    GAMMA = "gamma"
    """Gaps from a gamma distribution: bursts if their coefficient of variation is above 1."""


class Arrivals(msgspec.Struct, frozen=True):
    process: Process
    rate: float | None = None
    """Mean requests/s; None: as recorded."""
    cv: float = 1.0
    """Coefficient of variation of the gaps (gamma only): their standard deviation over their mean."""

    def times(
        self, num_requests: int, recorded_s: NDArray[np.float64] | None, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Ascending seconds; of `recorded_s` as many are given.  Raises LoadError."""
        match self.process:
            case Process.TRACE:
                return _stretched(recorded_s, self.rate)
            case Process.POISSON:
                return np.cumsum(rng.exponential(1.0, num_requests)) / self._needed_rate()
            case Process.GAMMA:
                shape = self.cv**-2
                return np.cumsum(rng.gamma(shape, 1.0 / shape, num_requests)) / self._needed_rate()

    def _needed_rate(self) -> float:
        if self.rate is None:
            raise LoadError(f"{self.process} arrivals need a rate")
        return self.rate


def _stretched(recorded_s: NDArray[np.float64] | None, rate: float | None) -> NDArray[np.float64]:
    if recorded_s is None:
        raise LoadError("the source has no arrival times of its own: choose poisson or gamma, and a rate")
    if rate is None:
        return recorded_s
    span_s = float(recorded_s[-1] - recorded_s[0])
    if span_s <= 0.0:
        raise LoadError("recorded arrivals that are all at once cannot be stretched to a rate")
    return recorded_s * ((len(recorded_s) - 1) / span_s / rate)
