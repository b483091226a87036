"""How long a step takes and how much an engine holds, as a value: fitted here, or published for an A100.

A prefill step costs a fixed time, a time per token and one per squared token (attention); a decode step costs a
fixed time, a time per row, one per token of context, and one per group of rows where the engine keeps its rows in
groups.  A step of both costs both, but for one fixed time.  All in seconds.
"""

from math import sqrt
from pathlib import Path

import msgspec

from triton_backend.memory import Grouped, Layout, Paged

_BLOCK_TOKENS = 16


class CostError(ValueError):
    """A cost model that cannot be used; the message is one line for whoever asked for it."""


class DecodeCost(msgspec.Struct, frozen=True):
    fixed_s: float
    row_s: float
    context_token_s: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    gpus: int = 1
    """GPUs of one engine."""
    kv_tokens: int
    """Tokens of KV memory."""
    kv_token_bytes: int
    prefill_fixed_s: float
    prefill_token_s: float
    prefill_square_s: float
    decode: DecodeCost
    large_decode: DecodeCost | None = None
    """From `large_rows` rows on; None: there is no difference."""
    large_rows: int = 95
    step_s: float = 0.0
    """The engine's own time in every step."""
    step_token_s: float = 0.0
    """The same for each token that the step runs."""
    ladder_tokens: tuple[int, ...] = ()
    """Capacities of the groups in which rows are kept; empty: rows take blocks."""
    mixed_fixed_s: float | None = None
    """Of a step that runs both; None: the larger of the two, as the weights are read once."""
    decode_group_s: float = 0.0
    """Of a decode step, for each group with running rows."""
    chunk_tokens: int | None = None
    """Of prompts in one step, at most; None: what the gateway sends."""

    @property
    def layout(self) -> Layout:
        if self.ladder_tokens:
            return Grouped(self.ladder_tokens, self.kv_token_bytes)
        return Paged(_BLOCK_TOKENS, self.kv_token_bytes)

    def prefill_s(self, tokens: int, squares: int) -> float:
        """A step of prompts.  `squares` is the growth of the sum of squared prefilled lengths, so that the chunks
        of a prompt cost as much attention as the whole."""
        own_s = self.step_s + self.step_token_s * tokens
        return own_s + self.prefill_fixed_s + self.prefill_token_s * tokens + self.prefill_square_s * squares

    def decode_s(self, rows: int, context_tokens: int, groups: int = 0, steps: int = 1) -> float:
        """So many steps in a row, in each of which every row's context grows by a token."""
        decode = self._decode(rows)
        first_s = (
            self.step_s
            + self.step_token_s * rows
            + decode.fixed_s
            + decode.row_s * rows
            + decode.context_token_s * context_tokens
            + self.decode_group_s * groups
        )
        return steps * first_s + decode.context_token_s * rows * (steps * (steps - 1) // 2)

    def decodes_within(self, seconds: float, rows: int, context_tokens: int, groups: int = 0) -> int:
        """How many whole steps in a row take no longer."""
        first_s = self.decode_s(rows, context_tokens, groups)
        growth_s = self._decode(rows).context_token_s * rows
        # n * first_s + growth_s * n * (n - 1) / 2 = seconds, solved for n without a difference of like numbers.
        linear_s = first_s - growth_s / 2
        steps = int(2 * seconds / (linear_s + sqrt(linear_s**2 + 2 * growth_s * seconds)))
        # Rounding may be a step off either way.
        while self.decode_s(rows, context_tokens, groups, steps + 1) <= seconds:
            steps += 1
        while steps and self.decode_s(rows, context_tokens, groups, steps) > seconds:
            steps -= 1
        return steps

    def mixed_s(self, tokens: int, squares: int, rows: int, context_tokens: int, groups: int = 0) -> float:
        """One step that runs both, or one of them."""
        if not rows:
            return self.prefill_s(tokens, squares)
        if not tokens:
            return self.decode_s(rows, context_tokens, groups)
        both_s = self.prefill_s(tokens, squares) + self.decode_s(rows, context_tokens, groups)
        fixed_s = self.prefill_fixed_s, self._decode(rows).fixed_s
        mixed_fixed_s = max(fixed_s) if self.mixed_fixed_s is None else self.mixed_fixed_s
        return both_s - self.step_s - sum(fixed_s) + mixed_fixed_s

    def _decode(self, rows: int) -> DecodeCost:
        if self.large_decode is not None and rows >= self.large_rows:
            return self.large_decode
        return self.decode


_OPT_13B_TOKEN_BYTES = 2 * 2 * 40 * 5120
_OPT_66B_TOKEN_BYTES = 2 * 2 * 64 * 9216


def _distserve(
    name: str,
    gpus: int,
    kv: tuple[int, int],
    prefill_ms: tuple[float, float, float],
    small_ms: tuple[float, float, float],
    large_ms: tuple[float, float, float],
) -> Cost:
    """The published coefficients, in their order: fixed, per token (of context), per squared token (row).

    With one pipeline stage the published formula adds 1 ms to a prefill; an engine's own time is 2 ms and 0.1
    microseconds per token in each step.
    """
    fixed, token, square = (coefficient / 1000.0 for coefficient in prefill_ms)
    small, large = (DecodeCost(a / 1000.0, c / 1000.0, b / 1000.0) for a, b, c in (small_ms, large_ms))
    return Cost(
        name=name,
        gpus=gpus,
        kv_tokens=kv[0],
        kv_token_bytes=kv[1],
        prefill_fixed_s=fixed + 0.001,
        prefill_token_s=token,
        prefill_square_s=square,
        decode=small,
        large_decode=large,
        step_s=0.002,
        step_token_s=1e-7,
    )


_TP1 = _distserve(
    "distserve-opt13b-tp1",
    1,
    (66_144, _OPT_13B_TOKEN_BYTES),
    (18.10, 0.10191, 7.122e-6),
    (19.93, 6.269e-4, 0.03851),
    (7.166, 5.798e-4, 0.15831),
)
_PUBLISHED = (
    _TP1,
    _distserve(
        "distserve-opt13b-tp2",
        2,
        (163_008, _OPT_13B_TOKEN_BYTES),
        (14.74, 0.06858, 2.450e-6),
        (13.29, 3.411e-4, 0.06296),
        (10.64, 3.118e-4, 0.08563),
    ),
    _distserve(
        "distserve-opt13b-tp4",
        4,
        (356_736, _OPT_13B_TOKEN_BYTES),
        (12.06, 0.03808, 5.226e-7),
        (10.26, 1.879e-4, 0.03269),
        (10.48, 1.712e-4, 0.04567),
    ),
    # No KV capacities are published for these: 0.95 of 80 GiB for each GPU, less 132 GB of weights.
    _distserve(
        "distserve-opt66b-tp4",
        4,
        (82_000, _OPT_66B_TOKEN_BYTES),
        (29.44, 0.15135, 8.317e-6),
        (30.76, 4.519e-4, 0.06328),
        (27.47, 4.047e-4, 0.12481),
    ),
    _distserve(
        "distserve-opt66b-tp8",
        8,
        (220_000, _OPT_66B_TOKEN_BYTES),
        (25.49, 0.10659, 3.391e-6),
        (23.16, 2.269e-4, 0.04801),
        (21.72, 3.758e-4, 0.08979),
    ),
)
COSTS: dict[str, Cost] = {
    **{cost.name: cost for cost in _PUBLISHED},
    # Nobody publishes such coefficients for it; layers, heads and width are those of OPT-13B.
    "llama13b-a100": msgspec.structs.replace(_TP1, name="llama13b-a100"),
}
"""DistServe's latency model (its repository; A100 80 GB) by name."""


def load(name: str) -> Cost:
    """One of COSTS, or a JSON file that `bucketserve fit` wrote.  Raises CostError."""
    if name in COSTS:
        return COSTS[name]
    try:
        return msgspec.json.decode(Path(name).read_bytes(), type=Cost)
    except OSError as error:
        known = ", ".join(COSTS)
        raise CostError(f"cost {name}: {error.strerror}; a file, or one of {known}") from None
    except msgspec.MsgspecError as error:
        raise CostError(f"cost {name}: {error}") from None
