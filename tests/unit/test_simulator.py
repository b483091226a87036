"""Whole runs: the gateway's own driver and policies, over simulated replicas, end every request exactly once."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from gateway.load import report
from gateway.load.arrivals import Arrivals, Process
from gateway.load.named import WORKLOADS
from gateway.load.record import Ending, Records
from gateway.load.workload import TrafficClass, Workload, generate
from gateway.policy.batch import Fixed
from gateway.policy.preset import PRESETS
from gateway.request import ServiceClass
from gateway.simulator.cost import COSTS, Cost, CostError, DecodeCost, load
from gateway.simulator.disaggregated import LINK_BYTES_PER_S
from gateway.simulator.job import Padding, Style
from gateway.simulator.lengths import LengthsName
from gateway.simulator.run import Config, Result, simulate

COST = Cost(
    name="test",
    kv_tokens=4000,
    kv_token_bytes=10**6,
    prefill_fixed_s=0.02,
    prefill_token_s=1e-4,
    prefill_square_s=1e-8,
    decode=DecodeCost(fixed_s=0.02, row_s=1e-4, context_token_s=1e-6),
)


def workload(*requests: tuple[float, int, int], targets_s: tuple[float, float] = (10.0, 1.0)) -> Workload:
    """Of (arrival, prompt tokens, output tokens)."""
    arrivals, prompts, outputs = zip(*requests, strict=True)
    return Workload(
        classes=(TrafficClass("all", 1.0, ttft_slo_s=targets_s[0], tpot_slo_s=targets_s[1]),),
        class_index=np.zeros(len(requests), dtype=np.int64),
        arrival_s=np.array(arrivals, dtype=np.float64),
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
    )


def mixed(num_requests: int, rate: float, seed: int = 1) -> Workload:
    return generate(WORKLOADS["mixed-1024"], num_requests, Arrivals(Process.POISSON, rate), seed)


def digest(result: Result) -> bytes:
    records = result.records
    columns = (records.first_token_s, records.last_token_s, records.output_tokens, records.ending)
    return b"".join(column.tobytes() for column in columns) + msgspec.json.encode(result[1:])


@pytest.mark.parametrize("policy", PRESETS)
def test_a_run_is_a_function_of_its_seed(policy: str) -> None:
    load, config = mixed(120, 6.0), Config(policy=policy, replicas=2, max_returns=2)
    assert digest(simulate(load, config)) == digest(simulate(load, config))


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("padding", list(Padding))
def test_every_request_ends_once_and_gets_all_its_tokens(policy: str, padding: Padding) -> None:
    load, ended = mixed(150, 6.0), []
    result = simulate(load, Config(policy=policy, replicas=2, padding=padding), lambda: ended.append(1))
    records = result.records
    assert len(ended) == len(records) == 150
    assert not records.ended(Ending.FAILED).any() and not records.ended(Ending.EXPIRED).any()
    finished = records.ended(Ending.FINISHED)
    assert finished.all() or policy == "full"
    assert finished.sum() > 30
    assert (records.output_tokens[finished] == load.output_tokens[finished]).all()
    assert (records.first_token_s[finished] > records.arrival_s[finished]).all()
    assert (records.last_token_s >= records.first_token_s)[finished].all()
    assert result.padded_tokens >= result.useful_tokens >= load.prompt_tokens[finished].sum()
    assert result.padded_tokens == result.useful_tokens or padding is not Padding.PACKED


@pytest.mark.parametrize("policy", PRESETS)
def test_only_who_tells_classes_apart_puts_flex_rows_back_for_others(policy: str) -> None:
    urgent, bulk = (
        TrafficClass("urgent", 1.0, ServiceClass.PRIORITY, 5.0),
        TrafficClass("bulk", 1.0, ServiceClass.FLEX),
    )
    arrivals = Arrivals(Process.POISSON, 6.0)
    load = generate(WORKLOADS["mixed-1024"], 150, arrivals, 1, (urgent, bulk))
    result = simulate(load, Config(policy=policy, replicas=2, cost=msgspec.structs.replace(COST, kv_tokens=1500)))
    assert (result.preempted > 0) == (policy == "full")


@pytest.mark.parametrize("policy", ["full", "bucketserve", "continuous", "static"])
def test_one_request_takes_what_its_steps_take(policy: str) -> None:
    result = simulate(workload((1.0, 100, 5)), Config(policy=policy, cost=COST))
    first_s = 0.02 + 100 * 1e-4 + 100**2 * 1e-8
    last_s = first_s + 4 * (0.02 + 1e-4) + sum(range(101, 105)) * 1e-6
    assert result.records.ttft_s[0] == pytest.approx(first_s, abs=1e-9)
    assert result.records.e2e_s[0] == pytest.approx(last_s, abs=1e-9)


def test_distserve_hands_rows_over() -> None:
    result = simulate(workload((0.0, 100, 3)), Config(policy="distserve", cost=COST, replicas=2))
    first_s = 0.02 + 100 * 1e-4 + 100**2 * 1e-8
    move_s = 100 * COST.kv_token_bytes / LINK_BYTES_PER_S
    last_s = first_s + move_s + 2 * (0.02 + 1e-4) + (101 + 102) * 1e-6
    assert result.records.ttft_s[0] == pytest.approx(first_s, abs=1e-9)
    assert result.records.e2e_s[0] == pytest.approx(last_s, abs=1e-9)
    assert result.gpus == 2


def test_distserve_decodes_while_it_prefills() -> None:
    """Two requests side by side: the second one's prompt does not slow the first one's answer."""
    alone = simulate(workload((0.0, 100, 50)), Config(policy="distserve", cost=COST, replicas=2))
    beside = simulate(workload((0.0, 100, 50), (0.2, 2000, 1)), Config(policy="distserve", cost=COST, replicas=2))
    assert beside.records.e2e_s[0] == pytest.approx(alone.records.e2e_s[0], abs=1e-9)
    together = simulate(workload((0.0, 100, 50), (0.2, 2000, 1)), Config(policy="continuous", cost=COST))
    assert together.records.e2e_s[0] > alone.records.e2e_s[0] + 0.1


@pytest.mark.parametrize("policy", ["full", "distserve"])
def test_memory_for_a_few_answers_serves_all_of_them(policy: str) -> None:
    """Answers are ten times as long as predicted, and all of them together far larger than the memory."""
    requests = [(0.01 * at, 200, 400 if at > 60 else 10) for at in range(120)]
    load = workload(*requests, targets_s=(1000.0, 10.0))
    cost = msgspec.structs.replace(COST, kv_tokens=2000)
    result = simulate(load, Config(policy=policy, cost=cost, replicas=2, padding=Padding.PACKED))
    assert result.records.ended(Ending.FINISHED).all()
    assert (result.records.output_tokens == load.output_tokens).all()


def test_continuous_batching_beats_static_batches() -> None:
    load = mixed(200, 3.0)
    continuous, static = (
        report.make(simulate(load, Config(policy=policy)).records).total for policy in ("continuous", "static")
    )
    assert continuous.tokens_per_s > 2 * static.tokens_per_s
    assert continuous.attainment > static.attainment + 0.3


def test_a_prompt_longer_than_memory_fails_and_the_rest_goes_on() -> None:
    result = simulate(workload((0.0, 5000, 5), (0.0, 100, 5)), Config(policy="full", cost=COST))
    assert result.records.ended(Ending.FAILED).tolist() == [True, False]
    assert result.records.ended(Ending.FINISHED).tolist() == [False, True]


def test_a_full_queue_refuses_and_clients_may_come_back() -> None:
    load = workload(*((0.0, 100, 20) for _ in range(30)), targets_s=(100.0, 10.0))
    config = Config(policy="static", cost=COST, max_queued=5)
    refused = simulate(load, config)
    assert refused.records.ended(Ending.REJECTED).any() and not refused.returns
    returned = simulate(load, msgspec.structs.replace(config, max_returns=50))
    assert returned.records.ended(Ending.FINISHED).all()
    assert returned.returns >= returned.returns_admitted >= refused.records.ended(Ending.REJECTED).sum()


@pytest.mark.parametrize("lengths", list(LengthsName))
def test_every_predictor_serves(lengths: LengthsName) -> None:
    result = simulate(mixed(80, 1.0), Config(policy="full", lengths=lengths))
    assert _finished(result.records) > 60


def test_another_engine_may_be_put_under_a_policy() -> None:
    load = mixed(60, 1.0)
    results = [simulate(load, Config(policy="full", style=style)) for style in Style]
    assert len({digest(result) for result in results}) == len(Style)


def test_cost_models_come_by_name_or_from_a_file(tmp_path: object) -> None:
    file = f"{tmp_path}/cost.json"
    with open(file, "wb") as opened:
        opened.write(msgspec.json.encode(COST))
    assert load(file) == COST
    assert load("llama13b-a100").decode == COSTS["distserve-opt13b-tp1"].decode
    with pytest.raises(CostError, match="No such file"):
        load(f"{tmp_path}/none.json")
    with open(file, "wb") as opened:
        opened.write(b"{}")
    with pytest.raises(CostError, match="missing required field"):
        load(file)


def _finished(records: Records) -> int:
    return int(records.ended(Ending.FINISHED).sum())


@pytest.mark.parametrize("policy", ["full", "continuous"])
def test_prompts_that_wait_start_when_those_before_have(policy: str) -> None:
    # They fill the engine two by two; answers go on long after all have started.
    load = workload(*[(0.0, 1024, 300)] * 3)
    first_s = simulate(load, Config(policy=policy, padding=Padding.PACKED)).records.ttft_s
    assert first_s.max() < 2.0


def test_padding_counts_in_the_budget_of_a_step_of_both_phases() -> None:
    # Three padded to 600 tokens would take two budgets; one waits for the next step.
    load = workload((0.0, 600, 2), (0.0, 16, 2), (0.0, 16, 2), (0.0, 16, 2))
    padded, packed = (
        simulate(load, Config(policy="continuous", cost=COST, padding=padding, max_prefill_tokens=1280))
        for padding in (Padding.PADDED, Padding.PACKED)
    )
    assert len(set(packed.records.ttft_s)) == 1
    assert sorted(map(list(padded.records.ttft_s).count, set(padded.records.ttft_s))) == [2, 2]


def test_rules_of_ones_own_run_on_a_presets_engine() -> None:
    load = workload(*[(0.0, 16, 2)] * 4)
    rules = replace(PRESETS["static"], batch=Fixed(2))
    first_s = simulate(load, Config(policy="static", rules=rules, cost=COST)).records.ttft_s
    assert len(set(first_s)) == 2
