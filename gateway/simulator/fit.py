"""From an engine's measured steps to a cost model: least squares on the relative error.

The coefficients come from every other step, and the error is that on the steps in between.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.simulator.cost import Cost, DecodeCost

_PASSES = 8


class StepRecord(msgspec.Struct, frozen=True):
    """One step of an engine: what it ran, and how long it took."""

    seconds: float
    rows: int
    """That drew a further token; 0: prompts were run."""
    context_tokens: int
    """Held by those rows."""
    tokens: int
    """Of prompts, padding included."""
    squares: int
    """Growth of the sum of squared prefilled lengths, padding included."""


class Error(NamedTuple):
    """Relative, of single steps; and of their sum."""

    median: float
    p90: float
    total: float


class Fit(NamedTuple):
    cost: Cost
    prefill: Error
    decode: Error


def fit(records: Sequence[StepRecord], name: str, kv_tokens: int, kv_token_bytes: int) -> Fit:
    """Needs some steps of both kinds."""
    prefills = [(1.0, record.tokens, record.squares, record.seconds) for record in records if not record.rows]
    decodes = [(1.0, record.rows, record.context_tokens, record.seconds) for record in records if record.rows]
    prefill, prefill_error = _solve(np.array(prefills, float))
    decode, decode_error = _solve(np.array(decodes, float))
    cost = Cost(
        name=name,
        kv_tokens=kv_tokens,
        kv_token_bytes=kv_token_bytes,
        prefill_fixed_s=prefill[0],
        prefill_token_s=prefill[1],
        prefill_square_s=prefill[2],
        decode=DecodeCost(*decode),
    )
    return Fit(cost, prefill_error, decode_error)


def _solve(table: NDArray[np.float64]) -> tuple[list[float], Error]:
    """Coefficients that are not negative, and what they are off by."""
    from scipy.optimize import nnls

    learn, check = table[::2], table[1::2]
    features, seconds = learn[:, :-1], learn[:, -1]
    scale = features.max(axis=0)
    weights = 1.0 / seconds
    # A step that the machine was interrupted in should not count: the larger its error, the less it weighs.
    for _ in range(_PASSES):
        found, _ = nnls(features / scale * weights[:, None], seconds * weights)
        off = np.abs(features / scale @ found / seconds - 1.0)
        weights = 1.0 / seconds / np.sqrt(np.maximum(off, 0.02))
    coefficients = found / scale
    predicted = check[:, :-1] @ coefficients
    errors = np.abs(predicted / check[:, -1] - 1.0)
    total = float(abs(predicted.sum() / check[:, -1].sum() - 1.0))
    return coefficients.tolist(), Error(float(np.median(errors)), float(np.quantile(errors, 0.9)), total)
