"""A trained model of answer lengths: plain numbers that every gateway reads and none executes.

Lengths fall into geometric classes.  A linear layer and a softmax give the probability of each class that was seen
in training; within a class the answers seen tell the rest.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.policy.features import FORMAT, NUM_FIGURES, NUM_SLOTS, WIDTH, Features

MAX_TOKENS = 1 << 17
PER_OCTAVE = 4
OPEN = PER_OCTAVE * 17
"""The class of what is longer than anything seen to its end, and of MAX_TOKENS."""
_MAX_WEIGHT = 1e4
"""No training of ours gives more, and sums of a request's weights stay finite."""

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


class BadSnapshot(ValueError):
    """These bytes are no snapshot."""


def class_of(tokens: float) -> int:
    """The length class of an answer of at least one token."""
    return OPEN if tokens >= MAX_TOKENS else int(PER_OCTAVE * math.log2(tokens))


class LengthClass(msgspec.Struct, frozen=True, array_like=True):
    """One class as seen in training: its answers' lengths in tokens."""

    number: Annotated[int, msgspec.Meta(ge=0, le=OPEN)]
    low: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    mean: float
    high: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]

    @property
    def is_sound(self) -> bool:
        return self.low <= self.mean <= self.high and class_of(self.low) == self.number == class_of(self.high)


class _Wire(msgspec.Struct, frozen=True, array_like=True, tag=FORMAT):
    classes: Annotated[list[LengthClass], msgspec.Meta(min_length=1, max_length=OPEN + 1)]
    weights: bytes
    """float32, least byte first: WIDTH + 1 rows, one column a class; the last row is added to every request."""


class Snapshot:
    """`weights` has WIDTH + 1 rows and one column for each of `classes`, which ascend."""

    def __init__(self, classes: Sequence[LengthClass], weights: Weights) -> None:
        self.classes = list(classes)
        self._weights = weights
        self._low, self._mean, self._high = np.array([(c.low, c.mean, c.high) for c in classes], float).T

    def probabilities(self, features: Features) -> Floats:
        """By class, in their order."""
        rows = self._weights[[*features.slots, NUM_SLOTS + features.tenant, WIDTH]]
        figures = np.array(features.figures, np.float32) @ self._weights[WIDTH - NUM_FIGURES : WIDTH]
        logits = rows.sum(axis=0, dtype=float) + figures
        likelihoods = np.exp(logits - logits.max())
        return np.asarray(likelihoods / likelihoods.sum())

    def quantile(self, probabilities: Floats, level: float) -> float:
        """The length that an answer stays within with probability `level`, in tokens; inf if nobody knows."""
        total = np.cumsum(probabilities)
        at = min(int(np.searchsorted(total, level)), len(total) - 1)
        if self.classes[at].number == OPEN:
            return math.inf
        part = 1.0 - (total[at] - level) / probabilities[at]
        return float(self._low[at] + min(part, 1.0) * (self._high[at] - self._low[at]))

    def expected(self, probabilities: Floats, max_tokens: int) -> float:
        """Mean length of an answer that is cut at `max_tokens`, in tokens."""
        return float(probabilities @ np.minimum(self._mean, max_tokens))

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(_Wire(self.classes, self._weights.astype("<f4").tobytes()))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadSnapshot for anything but what `encode` returns."""
        try:
            wire = msgspec.msgpack.decode(data, type=_Wire)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise BadSnapshot(str(error)) from error
        numbers = [c.number for c in wire.classes]
        if numbers != sorted(set(numbers)) or not all(c.is_sound for c in wire.classes):
            raise BadSnapshot("the classes are not lengths in ascending order")
        if len(wire.weights) != (WIDTH + 1) * len(numbers) * 4:
            raise BadSnapshot("the weights have another shape")
        weights = np.frombuffer(wire.weights, "<f4").reshape(WIDTH + 1, len(numbers))
        # A comparison with NaN is false.
        if not (np.abs(weights) <= _MAX_WEIGHT).all():
            raise BadSnapshot("a weight is not a number, or absurd")
        return cls(wire.classes, weights.astype(np.float32))
