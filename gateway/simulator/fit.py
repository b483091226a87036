"""From an engine's measured steps to a cost model: least squares on the relative error.

The coefficients come from every other step, and the error is that on the steps in between.  Steps that the machine
was interrupted in say nothing of what a step costs, but their time has passed: all coefficients are raised alike
until the steps' sum is right.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.simulator.cost import Cost, DecodeCost
from triton_backend.memory import Grouped
from triton_backend.record import EngineRecord, StepRecord

_WARM_UP_STEPS = 30
_MIN_STEPS = 20
"""Of either kind."""
_PASSES = 8


class FitError(ValueError):
    """Records that tell too little; the message is one line for whoever gave them."""


class Error(NamedTuple):
    """Relative, of single steps; and of their sum."""

    median: float
    p90: float
    total: float


class Fit(NamedTuple):
    cost: Cost
    prefill: Error
    decode: Error


def warm(steps: list[StepRecord]) -> list[StepRecord]:
    """Without an engine's first ones."""
    return steps[_WARM_UP_STEPS:]


def fit(engine: EngineRecord, steps: Sequence[StepRecord], name: str) -> Fit:
    """Needs some steps of both kinds.  Raises FitError."""
    prefills = [(1.0, step.tokens, step.squares, step.seconds) for step in steps if not step.rows]
    decodes = [(1.0, step.rows, step.context_tokens, step.groups, step.seconds) for step in steps if step.rows]
    if min(len(prefills), len(decodes)) < _MIN_STEPS:
        raise FitError(f"{len(prefills)} steps of prompts and {len(decodes)} of answers are too few")
    prefill, prefill_error = _solve(np.array(prefills, float))
    decode, decode_error = _solve(np.array(decodes, float))
    cost = Cost(
        name=name,
        kv_tokens=engine.kv_bytes // engine.layout.bytes_per_token,
        kv_token_bytes=engine.layout.bytes_per_token,
        prefill_fixed_s=prefill[0],
        prefill_token_s=prefill[1],
        prefill_square_s=prefill[2],
        decode=DecodeCost(*decode[:3]),
        ladder_tokens=engine.layout.ladder_tokens if isinstance(engine.layout, Grouped) else (),
        decode_group_s=decode[3],
    )
    return Fit(cost, prefill_error, decode_error)


def _solve(table: NDArray[np.float64]) -> tuple[list[float], Error]:
    """Coefficients that are not negative, and what they are off by."""
    from scipy.optimize import nnls

    learn, check = table[::2], table[1::2]
    features, seconds = learn[:, :-1], learn[:, -1]
    # An engine without groups has a column of zeros.
    scale = np.maximum(features.max(axis=0), 1e-9)
    weights = 1.0 / seconds
    # The larger a step's error, the less it weighs.
    for _ in range(_PASSES):
        found, _ = nnls(features / scale * weights[:, None], seconds * weights)
        off = np.abs(features / scale @ found / seconds - 1.0)
        weights = 1.0 / seconds / np.sqrt(np.maximum(off, 0.02))
    coefficients = found / scale * (seconds.sum() / (features / scale @ found).sum())
    predicted = check[:, :-1] @ coefficients
    errors = np.abs(predicted / check[:, -1] - 1.0)
    total = float(abs(predicted.sum() / check[:, -1].sum() - 1.0))
    return coefficients.tolist(), Error(float(np.median(errors)), float(np.quantile(errors, 0.9)), total)
