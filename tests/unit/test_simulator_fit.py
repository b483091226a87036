"""`bucketserve fit`: what the engine's steps are made to cost is found again."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.__main__ import main
from gateway.simulator.cost import Cost, DecodeCost, load
from gateway.simulator.fit import fit
from gateway.simulator.observe import observe
from gateway.simulator.run import Config
from triton_backend.engine import EngineConfig
from triton_backend.memory import Grouped, Paged
from triton_backend.plan import Prefill
from triton_backend.record import EngineRecord, Recorder, StepRecord
from triton_backend.sampling import Draws

LADDER_TOKENS = (64, 256, 1024)
COST = Cost(
    name="true",
    kv_tokens=5000,
    kv_token_bytes=10,
    prefill_fixed_s=0.003,
    prefill_token_s=1e-4,
    prefill_square_s=3e-8,
    decode=DecodeCost(0.002, 3e-4, 5e-7),
    mixed_fixed_s=0.0035,
    ladder_tokens=LADDER_TOKENS,
    decode_group_s=6e-4,
)
ENGINE = EngineRecord(Grouped(LADDER_TOKENS, COST.kv_token_bytes), COST.kv_tokens * COST.kv_token_bytes, 256)


class TimedExecutor:
    """Makes tokens up, and lets the time pass that the cost model says."""

    layout, kv_budget_bytes = ENGINE.layout, ENGINE.kv_bytes
    context_tokens, vocabulary = 1000, 100
    dtype = device = "none"
    out_of_memory_total = allocated_bytes = 0

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def arrange(self, rooms: Any, running: Any) -> None:
        pass

    def run(self, prefill: Prefill | None, decode: Any) -> Any:
        tokens, squares, finishing = 0, 0, []
        if prefill:
            tokens, squares, finishing = prefill.tokens, prefill.squares, prefill.finishing
        held = [row.held_tokens for row in decode]
        groups = {self.layout.room_tokens(tokens) for tokens in held}
        self.now_s += COST.mixed_s(tokens, squares, len(decode), sum(held), len(groups))
        drawn = finishing + decode
        return drawn, Draws([1] * len(drawn))


def test_the_engines_own_steps_give_its_cost_back(tmp_path: Path) -> None:
    executor = TimedExecutor()
    passed: list[float] = []
    config = EngineConfig(model="none", name="none", max_prefill_tokens=256)
    engine, steps = observe(config, 5.0, 16, 1, passed.append, lambda _: executor, executor.clock)
    assert sum(passed) == pytest.approx(executor.now_s)
    assert engine == ENGINE
    found = fit(engine, steps, "found")
    assert found.cost.layout == ENGINE.layout and found.cost.kv_tokens == COST.kv_tokens
    for name in ("prefill_token_s", "prefill_square_s", "mixed_fixed_s", "decode_group_s"):
        assert getattr(found.cost, name) == pytest.approx(getattr(COST, name), rel=1e-3)
    assert msgspec.structs.astuple(found.cost.decode) == pytest.approx(
        msgspec.structs.astuple(COST.decode), rel=1e-3
    )
    assert {"answers", "both"} <= found.errors.keys()
    assert max(number for error in found.errors.values() for number in error) < 1e-6
    file = tmp_path / "found.json"
    file.write_bytes(msgspec.json.encode(found.cost))
    assert load(str(file)) == found.cost


def test_interruptions_raise_all_coefficients_alike() -> None:
    rng = np.random.default_rng(1)
    steps = []
    for _ in range(4000):
        rows, context, groups = int(rng.integers(1, 33)), int(rng.integers(100, 20_000)), int(rng.integers(1, 6))
        late = [5.0 if rng.random() < 0.1 else rng.uniform(0.97, 1.03) for _ in range(2)]
        steps.append(StepRecord(COST.decode_s(rows, context, groups) * late[0], rows, context, groups, 0, 0))
        tokens = int(rng.integers(10, 2000))
        steps.append(StepRecord(COST.prefill_s(tokens, tokens**2) * late[1], 0, 0, 0, tokens, tokens**2))
    found = fit(ENGINE, steps, "found")
    # A tenth of the steps takes five times as long.
    mean = 0.9 + 0.1 * 5.0
    assert found.errors.keys() == {"prompts", "answers"}
    assert max(error.total for error in found.errors.values()) < 0.1
    for name in ("fixed_s", "row_s", "context_token_s"):
        assert getattr(found.cost.decode, name) == pytest.approx(mean * getattr(COST.decode, name), rel=0.1)
    assert found.cost.decode_group_s == pytest.approx(mean * COST.decode_group_s, rel=0.1)
    assert found.cost.prefill_token_s == pytest.approx(mean * COST.prefill_token_s, rel=0.1)


def test_an_engine_without_groups_has_no_cost_of_groups() -> None:
    engine = EngineRecord(Paged(16, 10), 10_000)
    decodes = [StepRecord(0.01 * rows, rows, 50 * rows, 0, 0, 0) for rows in range(1, 60)]
    prefills = [StepRecord(0.001 * tokens, 0, 0, 0, tokens, tokens**2) for tokens in range(1, 60)]
    found = fit(engine, [*decodes, *prefills], "found")
    assert found.cost.decode_group_s == 0.0 and found.cost.ladder_tokens == ()
    assert found.cost.decode_s(30, 1500) == pytest.approx(0.3)


def test_records_are_read_as_the_command_line_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "llm.steps", tmp_path / "cost.json"
    recorder = Recorder(file, ENGINE)
    for size in range(1, 101):
        decode = size, 70 * size, 1 + size % 3
        recorder.note(StepRecord(COST.decode_s(*decode), *decode, 0, 0))
        recorder.note(StepRecord(COST.prefill_s(size, size**2), 0, 0, 0, size, size**2))
    recorder.close()
    assert main(["fit", "--steps", str(file), "--out", str(out)], {}) == 0
    assert capsys.readouterr().out.startswith("170 steps\n")
    fitted = load(str(out))
    assert fitted.decode_group_s == pytest.approx(COST.decode_group_s, rel=1e-3)
    config = Config(policy="full", cost=fitted)
    assert (config.step_tokens, config.sent_tokens) == (256, 2048), "its engine's chunk, and the gateway's own"
    assert Config(policy="full", cost=fitted, max_prefill_tokens=64).step_tokens == 64
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:50]))
    for given, complaint in ((file, "too few"), (tmp_path / "none", "No such file"), (out, "llm.steps")):
        assert main(["fit", "--steps", str(given), "--out", str(out)], {}) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert complaint in error or given == out
