"""Fits the model of answer lengths.  Slow (a fraction of a second): not for the event loop's thread."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.policy.features import NUM_FIGURES, NUM_SLOTS, WIDTH, Features
from gateway.policy.history import Sample, whole_lengths
from gateway.policy.snapshot import MAX_TOKENS, LengthClass, Snapshot, class_of

_STRENGTH = 0.3
"""Inverse of the regularisation; from 0.1 to 1 the demo model's answers were predicted about equally well."""
_TOLERANCE = 1e-3
"""Later ones improve the fit and no longer the prediction."""


def train(samples: Sequence[Sample]) -> Snapshot | None:
    """A model of these answers; None if they are all of one class, and there is nothing to tell apart."""
    samples = sorted(samples, key=lambda sample: sample.seen)
    lengths = np.minimum(whole_lengths([sample.seen for sample in samples]), MAX_TOKENS)
    numbers = np.array([class_of(length) for length in lengths])
    if numbers.min() == numbers.max():
        return None
    classifier = fit(rows_of([sample.features for sample in samples]), numbers)
    weights = np.vstack([classifier.coef_.T, classifier.intercept_])
    if len(classifier.classes_) == 2:
        # Of two classes scikit-learn keeps the second one's weights.
        weights = np.hstack([0 * weights, weights])
    classes = [_class(int(number), lengths[numbers == number]) for number in classifier.classes_]
    return Snapshot(classes, weights.astype(np.float32))


def _class(number: int, lengths: "np.ndarray[Any, Any]") -> LengthClass:
    return LengthClass(number, int(lengths.min()), float(lengths.mean()), int(lengths.max()))


def rows_of(features: Sequence[Features]) -> Any:
    """One sparse row of WIDTH columns each."""
    from scipy.sparse import csr_array

    columns = [[*each.slots, NUM_SLOTS + each.tenant, *range(WIDTH - NUM_FIGURES, WIDTH)] for each in features]
    values = [[1.0] * (len(each.slots) + 1) + each.figures for each in features]
    starts = np.cumsum([0, *map(len, columns)])
    return csr_array((np.concatenate(values), np.concatenate(columns), starts), shape=(len(features), WIDTH))


def fit(rows: Any, numbers: Any) -> Any:
    """scikit-learn's classifier of the length classes."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return LogisticRegression(C=_STRENGTH, tol=_TOLERANCE, max_iter=1000).fit(rows, numbers)
