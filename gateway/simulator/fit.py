"""From an engine's measured steps to a cost model: least squares on the relative error.

All steps tell together what tokens, rows and contexts cost; steps of prompts, of answers and of both have fixed
times of their own.  The coefficients come from every other step, and the error is that on the steps in between.
Steps that the machine was interrupted in say nothing of what a step costs, but their time has passed: all
coefficients are raised alike until the steps' sum is right.
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
"""With prompts, and with answers."""
KINDS = ("prompts", "answers", "both")
"""What a step held."""
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
    errors: dict[str, Error]
    """By what the steps held, of KINDS."""


def warm(steps: list[StepRecord]) -> list[StepRecord]:
    """Without an engine's first ones."""
    return steps[_WARM_UP_STEPS:]


def fit(engine: EngineRecord, steps: Sequence[StepRecord], name: str) -> Fit:
    """Needs some steps with prompts and some with answers.  Raises FitError."""
    num_prompts, num_answers = sum(step.tokens > 0 for step in steps), sum(step.rows > 0 for step in steps)
    if min(num_prompts, num_answers) < _MIN_STEPS:
        raise FitError(f"{num_prompts} steps of prompts and {num_answers} of answers are too few")
    steps = sorted(steps, key=_kind)  # So that every other one is half of each kind.
    kinds = np.array([_kind(step) for step in steps])
    sizes = [(step.tokens, step.squares, step.rows, step.context_tokens, step.groups) for step in steps]
    features = np.hstack([np.eye(len(KINDS))[kinds], np.array(sizes, float)])
    seconds = np.array([step.seconds for step in steps])
    coefficients = _solve(features[::2], seconds[::2])
    fixed = [float(coefficients[kind]) if (kinds == kind).any() else None for kind in range(len(KINDS))]
    token_s, square_s, row_s, context_token_s, group_s = coefficients[len(KINDS) :].tolist()
    prefill_fixed_s, decode_fixed_s, mixed_fixed_s = fixed
    cost = Cost(
        name=name,
        kv_tokens=engine.kv_bytes // engine.layout.bytes_per_token,
        kv_token_bytes=engine.layout.bytes_per_token,
        prefill_fixed_s=_known(prefill_fixed_s, mixed_fixed_s),
        prefill_token_s=token_s,
        prefill_square_s=square_s,
        decode=DecodeCost(_known(decode_fixed_s, mixed_fixed_s), row_s, context_token_s),
        mixed_fixed_s=mixed_fixed_s,
        chunk_tokens=engine.chunk_tokens,
        ladder_tokens=engine.layout.ladder_tokens if isinstance(engine.layout, Grouped) else (),
        decode_group_s=group_s,
    )
    said, took, kinds = features[1::2] @ coefficients, seconds[1::2], kinds[1::2]
    errors = {name: _error(said[kinds == at], took[kinds == at]) for at, name in enumerate(KINDS) if at in kinds}
    return Fit(cost, errors)


def _kind(step: StepRecord) -> int:
    return 2 if step.tokens and step.rows else 1 if step.rows else 0


def _known(fixed_s: float | None, mixed_fixed_s: float | None) -> float:
    """Where no step was of the one kind, what those of both have."""
    return fixed_s if fixed_s is not None else mixed_fixed_s or 0.0


def _solve(features: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients that are not negative."""
    from scipy.optimize import nnls

    # What no step had, such as groups in an engine without, is a column of zeros.
    scale = np.maximum(features.max(axis=0), 1e-9)
    weights = 1.0 / seconds
    # The larger a step's error, the less it weighs.
    for _ in range(_PASSES):
        found, _ = nnls(features / scale * weights[:, None], seconds * weights)
        off = np.abs(features / scale @ found / seconds - 1.0)
        weights = 1.0 / seconds / np.sqrt(np.maximum(off, 0.02))
    coefficients: NDArray[np.float64] = found / scale * (seconds.sum() / (features / scale @ found).sum())
    return coefficients


def _error(predicted: NDArray[np.float64], seconds: NDArray[np.float64]) -> Error:
    errors = np.abs(predicted / seconds - 1.0)
    total = float(abs(predicted.sum() / seconds.sum() - 1.0))
    return Error(float(np.median(errors)), float(np.quantile(errors, 0.9)), total)
