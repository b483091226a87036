"""How long will the answer be?  An expected length, and an upper one that nine answers in ten stay within.

Three predictors, each for when the one before is beaten: all that the request allows, while there is no history;
the recent answers' quantile; the learned model, once it has lost less than the quantile on the answers that came
after it.  A margin on top of each keeps what it covers at nine in ten, whatever the traffic turns to.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.policy.features import NUM_TENANTS, Features, features, tenant_of
from gateway.policy.history import LengthHistory, Sample, Seen
from gateway.policy.snapshot import MAX_TOKENS, Snapshot
from gateway.request import Profile, ServiceClass

UPPER_QUANTILE = 0.9
_LOWER_QUANTILE = 0.1
"""A limit below this is as good as sure to be reached."""
MIN_HISTORY = 32
"""Below this the prediction is all that the request allows: safe, at worst a smaller batch."""
MIN_JUDGED = 64
"""Answers after which a model may be better than the quantile."""
_JUDGED = 256
"""The comparison's memory, in answers."""
_RECENT = 16
"""Memory of the mean lengths among the features, in answers."""


class Mode(StrEnum):
    """The predictor in use."""

    COLD = "cold"
    GLOBAL = "global"
    LEARNED = "learned"


class Margin:
    """Octaves on top of a predicted quantile, so that it covers UPPER_QUANTILE of the answers.

    Every answer above raises it by nine times what one below lowers it (adaptive conformal inference): the part
    covered tends to UPPER_QUANTILE for any sequence of answers, with an error below range / (step x answers).
    """

    STEP_OCTAVES = 0.1
    MIN_OCTAVES, MAX_OCTAVES = -3.0, 8.0

    def __init__(self) -> None:
        self.octaves = 0.0

    def upper(self, quantile: float, max_tokens: int) -> int:
        """The quantile with its margin, in tokens from 1 to `max_tokens`."""
        tokens = quantile * 2**self.octaves
        return max_tokens if tokens >= max_tokens else max(1, math.ceil(tokens - 1e-9))

    def learn(self, is_covered: bool) -> None:
        octaves = self.octaves + self.STEP_OCTAVES * (UPPER_QUANTILE - is_covered)
        self.octaves = min(max(octaves, self.MIN_OCTAVES), self.MAX_OCTAVES)


class Estimate(NamedTuple):
    """What a predictor says of one answer, in tokens.  The quantiles know no limit; inf if nobody knows."""

    lower: float
    upper: float
    expected: float


def pinball_loss(upper_tokens: int, tokens: int) -> float:
    """What predicting `upper_tokens` as UPPER_QUANTILE costs: least in the mean for the true quantile."""
    error = tokens - upper_tokens
    return max(UPPER_QUANTILE * error, (UPPER_QUANTILE - 1) * error)


class Predictor:
    """One gateway's view of its traffic.  Bounded memory; times are none of its business."""

    def __init__(self) -> None:
        self._history = LengthHistory()
        self._snapshot: Snapshot | None = None
        self._margins = {Mode.GLOBAL: Margin(), Mode.LEARNED: Margin()}
        self._num_judged = 0
        self._lead_tokens = 0.0
        """How much less the model has lost than the quantile, per answer."""
        self._octaves = math.log2(MAX_TOKENS) / 2
        """Recent mean of log2 of the lengths."""
        self._tenant_octaves: list[float | None] = [None] * NUM_TENANTS

    @property
    def mode(self) -> Mode:
        if len(self._history) < MIN_HISTORY:
            return Mode.COLD
        is_proven = self._num_judged >= MIN_JUDGED and self._lead_tokens > 0
        return Mode.LEARNED if is_proven else Mode.GLOBAL

    def features(
        self, prompt: Sequence[int], max_tokens: int, service_class: ServiceClass, tenant: str
    ) -> Features:
        number = tenant_of(tenant)
        mean = self._tenant_octaves[number]
        recent = (self._octaves if mean is None else mean, self._octaves)
        return features(prompt, max_tokens, service_class, number, recent)

    def predict(self, features: Features, max_tokens: int, ignore_eos: bool) -> Profile:
        """Expected and upper length of an answer of at most `max_tokens`, in tokens."""
        mode = self.mode
        if ignore_eos or mode is Mode.COLD:
            return Profile(max_tokens, max_tokens)
        estimate = self._estimate(mode, features, max_tokens)
        upper = self._margins[mode].upper(estimate.upper, max_tokens)
        return Profile(max(1, min(int(estimate.expected), upper)), upper)

    def observe(self, features: Features, max_tokens: int, tokens: int, ended_by_limit: bool) -> None:
        """An answer that was not made to run to its limit has ended."""
        if self.mode is not Mode.COLD:
            lead_tokens = self._judge(Mode.GLOBAL, features, max_tokens, tokens)
            if self._snapshot:
                lead_tokens -= self._judge(Mode.LEARNED, features, max_tokens, tokens)
                self._num_judged += 1
                self._lead_tokens += (lead_tokens - self._lead_tokens) / min(self._num_judged, _JUDGED)
        self.remember(Sample(features, Seen(tokens, ended_by_limit)))

    def remember(self, sample: Sample) -> None:
        """An answer of any gateway, before which nothing was predicted here."""
        self._history.observe(sample.seen.tokens, sample.seen.is_cut)
        octaves, tenant = math.log2(sample.seen.tokens), sample.features.tenant
        mean = self._tenant_octaves[tenant]
        self._tenant_octaves[tenant] = octaves if mean is None else mean + (octaves - mean) / _RECENT
        self._octaves += (octaves - self._octaves) / _RECENT

    def adopt(self, snapshot: Snapshot) -> None:
        """Take a newer model; it keeps its forerunner's record."""
        self._snapshot = snapshot

    def _estimate(self, mode: Mode, features: Features, max_tokens: int) -> Estimate:
        if mode is Mode.GLOBAL or self._snapshot is None:
            lower, upper = map(self._history.quantile, (_LOWER_QUANTILE, UPPER_QUANTILE))
            return Estimate(lower, upper, self._history.expected(max_tokens))
        probabilities = self._snapshot.probabilities(features)
        lower, upper = (
            self._snapshot.quantile(probabilities, level) for level in (_LOWER_QUANTILE, UPPER_QUANTILE)
        )
        return Estimate(lower, upper, self._snapshot.expected(probabilities, max_tokens))

    def _judge(self, mode: Mode, features: Features, max_tokens: int, tokens: int) -> float:
        """What the predictor would have lost on this answer; its margin learns from it, unless the limit was as
        good as sure to cut it: many such answers would else pay for leaving the others uncovered."""
        estimate = self._estimate(mode, features, max_tokens)
        margin = self._margins[mode]
        upper = margin.upper(estimate.upper, max_tokens)
        if estimate.lower < max_tokens:
            margin.learn(tokens <= upper)
        return pinball_loss(upper, tokens)


def left_tokens(profile: Profile, drawn: int, max_left: int) -> int:
    """How many more tokens to reckon with, after `drawn` of them and with at most `max_left` to come.

    A row that has outgrown its prediction is taken to be two thirds done.
    """
    if drawn < profile.upper_tokens:
        return min(profile.upper_tokens - drawn, max_left)
    return min(max(drawn // 2, 16), max_left)
