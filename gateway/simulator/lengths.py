"""Who tells the policy how long answers will be.  A learned predictor fits in here as any other."""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import numpy as np

from gateway.load.workload import Workload
from gateway.policy.features import features
from gateway.policy.length import Predictor
from gateway.request import Profile, ServiceClass

NOISE_OCTAVES = 0.5
"""Standard deviation of the noisy prediction: two in three are within a factor of 1.4."""
_UPPER_SCORE = 1.2816
"""Of the normal distribution's 90 % quantile."""


class Lengths(Protocol):
    def predict(self, request: int, max_tokens: int) -> Profile: ...

    def observe(self, request: int, max_tokens: int) -> None:
        """The request has finished."""


class LengthsName(StrEnum):
    HISTORY = "history"
    """The gateway's own predictor with nothing learned: the recent answers' quantile."""
    ORACLE = "oracle"
    MAX = "max"
    NOISY = "noisy"


class Oracle:
    def __init__(self, workload: Workload, seed: int) -> None:
        self._output_tokens = workload.output_tokens

    def predict(self, request: int, max_tokens: int) -> Profile:
        tokens = min(int(self._output_tokens[request]), max_tokens)
        return Profile(tokens, tokens)

    def observe(self, request: int, max_tokens: int) -> None:
        pass


class Longest:
    def __init__(self, workload: Workload, seed: int) -> None:
        pass

    def predict(self, request: int, max_tokens: int) -> Profile:
        return Profile(max_tokens, max_tokens)

    def observe(self, request: int, max_tokens: int) -> None:
        pass


class Noisy:
    """Right in the median, with a log-normal error."""

    def __init__(self, workload: Workload, seed: int) -> None:
        errors = np.random.default_rng((seed, 1)).standard_normal(len(workload))
        self._expected = workload.output_tokens * 2.0 ** (NOISE_OCTAVES * errors)
        self._upper = self._expected * 2.0 ** (NOISE_OCTAVES * _UPPER_SCORE)

    def predict(self, request: int, max_tokens: int) -> Profile:
        expected = max(1, min(round(float(self._expected[request])), max_tokens))
        return Profile(expected, max(expected, min(math.ceil(float(self._upper[request])), max_tokens)))

    def observe(self, request: int, max_tokens: int) -> None:
        pass


class History:
    """The predictor that serves, before a model is learned.  There is no text, so all prompts look the same."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._output_tokens = workload.output_tokens
        self._predictor = Predictor()
        self._features = features([0], 1, ServiceClass.DEFAULT, 0, (0.0, 0.0))

    def predict(self, request: int, max_tokens: int) -> Profile:
        return self._predictor.predict(self._features, max_tokens, ignore_eos=False)

    def observe(self, request: int, max_tokens: int) -> None:
        wanted = int(self._output_tokens[request])
        self._predictor.observe(self._features, max_tokens, min(wanted, max_tokens), wanted >= max_tokens)


LENGTHS: dict[LengthsName, Callable[[Workload, int], Lengths]] = {
    LengthsName.HISTORY: History,
    LengthsName.ORACLE: Oracle,
    LengthsName.MAX: Longest,
    LengthsName.NOISY: Noisy,
}
"""By name: made from the workload and the seed."""
