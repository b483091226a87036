"""The GPU benchmark's parts, on toy models on a CPU: they run, count right, and tell what they found."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import exact, kernels, saturation, steps
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import build, kv_bytes_per_token, matrix_weights, read_bytes
from triton_backend.engine import Engine, EngineConfig
from triton_backend.paged_runner import PagedRunner

pytestmark = pytest.mark.usefixtures("one_thread")


def new_runner(kv_tokens: int) -> PagedRunner:
    model = build("tiny", "cpu", torch.float32)
    budget_bytes = kv_tokens * kv_bytes_per_token(model)
    return PagedRunner(model, max_prefill_tokens=64, kv_budget_bytes=budget_bytes)


def test_the_exact_part_counts_rows_that_are_put_back_and_equal() -> None:
    found = exact.compare("tiny", "cpu", torch.float32, 4, 6)
    assert (found.num_rows, found.num_tokens, found.num_equal, found.num_wrong) == (4, 24, 4, 0)
    assert found.agreement == found.own_agreement == 1.0
    assert found.num_put_back > 0
    assert exact.compare_seeded("tiny", "cpu", 4, 6) == 4


@pytest.mark.parametrize("case", kernels.CASES)
def test_attention_over_blocks_is_compared_with_plain_attention(case: kernels.Case) -> None:
    assert 0 < kernels.largest_error("cpu", torch.float32, case, 1) < 1e-5


def test_a_wrong_token_is_seen_and_a_tie_is_not_one() -> None:
    reference = build("tiny", "cpu", torch.float32)
    prompt = [5, 6, 7]
    right = exact.generated(reference, prompt, 3)
    assert exact.gaps(reference, prompt, right) == [0.0] * 3
    wrong = [right[0], (right[1] + 1) % 96, right[2]]
    assert exact.gaps(reference, prompt, wrong)[:1] == [0.0]
    assert exact.gaps(reference, prompt, wrong)[1] > exact.TIE


def test_what_a_step_reads_is_counted() -> None:
    model = build("tiny", "cpu", torch.bfloat16)
    # Per layer: query and output 32 x 32, key and value 32 x 16, three of 32 x 64; two norms a layer and the last.
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert matrix_weights(model) == matrices
    assert read_bytes(model) == 2 * (matrices + 96 * 32 + 5 * 32)
    assert kv_bytes_per_token(model) == 2 * 2 * 2 * 8 * 2
    assert 2 * kv_bytes_per_token(model) == new_runner(0).layout.bytes_per_token


def test_a_steps_floor_is_reading_with_few_rows_and_arithmetic_with_many() -> None:
    model = build("tiny", "cpu", torch.bfloat16)
    matrices, logits = matrix_weights(model), 96 * 32
    kv, weights = kv_bytes_per_token(model), read_bytes(model)
    # So that 4 rows take as long to multiply as their weights take to read.
    ceilings = steps.Ceilings(bytes_per_s=weights, flops_per_s=8 * (matrices + logits))
    floors = Floors(model, ceilings)
    assert floors.step_s(1, 0) == floors.step_s(4, 0) == pytest.approx(1.0)
    assert floors.step_s(8, 0) == pytest.approx(2.0)
    assert floors.step_s(8, 100) == pytest.approx(2.0 + 800 * kv / weights)
    # Its 10 tokens' part of steps of 8 rows with 25 tokens each, and its prompt, without logits.
    prompt_s = 20 * matrices / (4 * (matrices + logits))
    assert floors.request_s(8, 20, 10) == pytest.approx(prompt_s + 10 * floors.step_s(8, 25) / 8)


def test_steps_are_timed_and_leave_the_runner_empty() -> None:
    runner = new_runner(1000)
    steps.fill_with_noise(runner)
    times = steps.measure_steps(runner, 3, 100, 4)
    assert 0 < times.start_s <= times.step_s
    again = steps.measure_steps(runner, 3, 200, 4)
    assert again.step_s > 0


def test_saturation_keeps_rows_coming() -> None:
    runner = new_runner(4000)
    engine = Engine(EngineConfig(model="", name="tiny", max_prefill_tokens=64), lambda _: runner)
    ticks = iter(range(10**6))
    found = saturation.measure(engine, 96, 8, 12, 10, seconds=60, clock=lambda: next(ticks))
    assert found.num_steps > 30
    assert 4 <= found.rows <= 8
    assert found.output_per_s > 0 < found.prompt_per_s
    # With each chunk of 64 tokens the rows that are there get one more, and prompts have 17 in the mean.
    assert found.filled_tokens == sum(12 + round(10 * at / 8 - (8 - at) * 17 / 64) for at in range(8))
    assert found.num_evicted == 0


def test_a_job_ends_with_its_last_row() -> None:
    runner = new_runner(4000)
    engine = Engine(EngineConfig(model="", name="tiny", max_prefill_tokens=64), lambda _: runner)
    assert saturation.time_job(engine, 96, 8, 12, 5) > 0
    assert engine.step() is False


def test_what_was_found_is_saved_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    report = Report(file)
    report.add("a part", "what", "1 ms")
    report.ratios["share"] = 0.5
    report.add("another", "thing", "2 ms")
    saved = json.loads(file.read_text())
    assert saved["rows"] == [["a part", "what", "1 ms"], ["another", "thing", "2 ms"]]
    assert saved["ratios"] == {"share": 0.5}
    assert "a part: what: 1 ms" in capsys.readouterr().out
    assert report.table().splitlines()[2:] == [
        "| a part  | what  | 1 ms |",
        "| another | thing | 2 ms |",
    ]
