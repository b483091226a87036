"""`bucketserve fit`: what the engine's steps are made to cost is found again."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.simulator.cost import Cost, DecodeCost, load
from gateway.simulator.fit import StepRecord, fit
from gateway.simulator.observe import observe
from triton_backend.engine import EngineConfig
from triton_backend.memory import Grouped
from triton_backend.sampling import Draws

COST = Cost(
    name="true",
    kv_tokens=5000,
    kv_token_bytes=10,
    prefill_fixed_s=0.003,
    prefill_token_s=1e-4,
    prefill_square_s=3e-8,
    decode=DecodeCost(0.002, 3e-4, 5e-7),
)


class TimedExecutor:
    """Makes tokens up, and lets the time pass that the cost model says."""

    layout = Grouped((64, 256, 1024), COST.kv_token_bytes)
    kv_budget_bytes = COST.kv_tokens * COST.kv_token_bytes
    context_tokens, vocabulary = 1000, 100
    dtype = device = "none"
    out_of_memory_total = allocated_bytes = 0

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def arrange(self, rooms: Any, running: Any) -> None:
        pass

    def prefill(self, rows: Any, start: int, length: int) -> Any:
        squares = len(rows) * ((start + length) ** 2 - start**2)
        self.now_s += COST.prefill_s(len(rows) * length, squares)
        drawn = [row for row in rows if start < row.prompt_tokens <= start + length]
        return drawn, Draws([1] * len(drawn))

    def decode(self, rows: Any) -> Any:
        self.now_s += COST.decode_s(len(rows), sum(row.held_tokens for row in rows))
        return rows, Draws([1] * len(rows))


def test_the_engines_own_steps_give_its_cost_back(tmp_path: Path) -> None:
    executor = TimedExecutor()
    passed: list[float] = []
    config = EngineConfig(model="none", name="none", max_prefill_tokens=256)
    observed = observe(config, 5.0, 16, 1, passed.append, lambda _: executor, executor.clock)
    assert sum(passed) == pytest.approx(executor.now_s)
    assert (observed.kv_tokens, observed.kv_token_bytes) == (COST.kv_tokens, COST.kv_token_bytes)
    found = fit(observed.records, "found", observed.kv_tokens, observed.kv_token_bytes)
    for name in ("prefill_fixed_s", "prefill_token_s", "prefill_square_s"):
        assert getattr(found.cost, name) == pytest.approx(getattr(COST, name), rel=1e-3)
    assert msgspec.structs.astuple(found.cost.decode) == pytest.approx(
        msgspec.structs.astuple(COST.decode), rel=1e-3
    )
    assert max(*found.prefill, *found.decode) < 1e-6
    file = tmp_path / "found.json"
    file.write_bytes(msgspec.json.encode(found.cost))
    assert load(str(file)) == found.cost


def test_interrupted_steps_hardly_count() -> None:
    rng = np.random.default_rng(1)
    records = []
    for _ in range(2000):
        rows, context = int(rng.integers(1, 33)), int(rng.integers(100, 20_000))
        seconds = COST.decode_s(rows, context) * (5.0 if rng.random() < 0.1 else rng.uniform(0.97, 1.03))
        records.append(StepRecord(seconds, rows, context, 0, 0))
        tokens = int(rng.integers(10, 2000))
        records.append(StepRecord(COST.prefill_s(tokens, tokens**2), 0, 0, tokens, tokens**2))
    found = fit(records, "found", 1, 1)
    assert found.decode.median < 0.03 and found.decode.total > 0.2
    assert found.cost.decode.fixed_s == pytest.approx(COST.decode.fixed_s, rel=0.1)
    assert found.cost.decode.row_s == pytest.approx(COST.decode.row_s, rel=0.1)
