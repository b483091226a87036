"""The scrape page: our figures, vLLM's names for them, and no label without bound."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from gateway.policy.length import Mode
from gateway.request import FinishReason, Head, Outcome, Queue, ServiceClass
from gateway.vllm_names import INTERVAL_BUCKETS, LATENCY_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS
from triton_backend.contract import Telemetry

DEFAULT, FLEX = ServiceClass.DEFAULT, ServiceClass.FLEX
VLLM = {"model_name": "m", "engine": "0"}


class Page:
    def __init__(self, metrics: Metrics) -> None:
        families = list(text_string_to_metric_families(metrics.render().decode()))
        self.samples = [s for family in families for s in family.samples if not s.name.endswith("_created")]
        self.types = {family.name: family.type for family in families}

    def __call__(self, name: str, **labels: str) -> float:
        (value,) = [s.value for s in self.samples if s.name == name and s.labels == labels]
        return value

    def named(self, start: str) -> set[str]:
        return {s.name for s in self.samples if s.name.startswith(start)}

    def bounds(self, name: str) -> list[float]:
        return [float(s.labels["le"]) for s in self.samples if s.name == f"{name}_bucket"]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), "m")


def telemetry(used: int = 50, running: int = 2, ooms: int = 0) -> Telemetry:
    return Telemetry(
        pool_capacity_bytes=80,
        pool_used_bytes=used,
        pool_growable_bytes=20,
        device_free_bytes=1000,
        device_total_bytes=2000,
        process_bytes=300,
        running=running,
        waiting=1,
        step_s=0.01,
        prefill_tokens_per_s=100.0,
        decode_tokens_per_s=10.0,
        out_of_memory_total=ooms,
    )


def serve_one_call(metrics: Metrics) -> None:
    metrics.call_opened(DEFAULT, 7)
    metrics.ticket_queued(DEFAULT)
    metrics.ticket_dequeued(DEFAULT)
    metrics.first_token(DEFAULT, 0.03)
    metrics.tokens(1, {})
    metrics.tokens(2, {0.02: 2})
    metrics.choice_finished(
        FinishReason.LENGTH, prompt_tokens=7, tokens=3, queue_s=0.01, prefill_s=0.02, decode_s=0.04
    )
    metrics.call_ended(DEFAULT, Outcome.FINISHED, 0.5)


def test_a_calls_life(metrics: Metrics) -> None:
    serve_one_call(metrics)
    page = Page(metrics)
    assert page("bucketserve_calls_total", service_class="default", outcome="finished") == 1
    assert page("bucketserve_live_calls", service_class="default") == 0
    assert page("bucketserve_ttft_seconds_sum", service_class="default") == 0.03
    assert page("bucketserve_token_interval_seconds_count") == 2
    assert page("bucketserve_token_interval_seconds_sum") == 0.04
    assert page("bucketserve_generated_tokens_total") == 3
    assert page("bucketserve_duration_seconds_sum", service_class="default") == 0.5


def test_the_process_itself_is_on_the_page(metrics: Metrics) -> None:
    page = Page(metrics)
    assert page("process_cpu_seconds_total") > 0 < page("process_resident_memory_bytes")


def test_only_finished_calls_have_a_duration(metrics: Metrics) -> None:
    metrics.call_opened(FLEX, 1)
    metrics.call_ended(FLEX, Outcome.CANCELLED, 9.0)
    metrics.call_refused(FLEX)
    page = Page(metrics)
    assert page("bucketserve_duration_seconds_count", service_class="flex") == 0
    assert page("bucketserve_calls_total", service_class="flex", outcome="cancelled") == 1
    assert page("bucketserve_calls_total", service_class="flex", outcome="rejected") == 1
    assert page("bucketserve_live_calls", service_class="flex") == 0


def test_predicted_lengths_are_counted_and_the_predictor_is_named(metrics: Metrics) -> None:
    for is_covered, mode in ((True, Mode.COLD), (True, Mode.GLOBAL), (False, Mode.LEARNED)):
        metrics.length_seen(is_covered, mode)
    page = Page(metrics)
    assert page("bucketserve_predicted_lengths_total", covered="yes") == 2
    assert page("bucketserve_predicted_lengths_total", covered="no") == 1
    assert [page("bucketserve_length_predictor", mode=mode) for mode in Mode] == [0, 0, 1]


def test_the_same_figures_under_vllms_names(metrics: Metrics) -> None:
    serve_one_call(metrics)
    metrics.ticket_queued(FLEX)
    metrics.ticket_put_back("evicted")
    metrics.ticket_put_back("lost")
    metrics.telemetry("r0", telemetry(), 0.9)
    page = Page(metrics)
    assert page("vllm:prompt_tokens_total", **VLLM) == 7
    assert page("vllm:generation_tokens_total", **VLLM) == 3
    assert page("vllm:num_preemptions_total", **VLLM) == 1
    assert page("vllm:request_success_total", **VLLM, finished_reason="length") == 1
    assert page("vllm:num_requests_waiting", **VLLM) == 1
    assert page("vllm:num_requests_running", model_name="m", engine="r0") == 2
    assert page("vllm:kv_cache_usage_perc", model_name="m", engine="r0") == 0.5
    assert page("vllm:time_to_first_token_seconds_sum", **VLLM) == 0.03
    assert page("vllm:time_to_first_token_seconds_bucket", **VLLM, le="0.02") == 0
    assert page("vllm:time_to_first_token_seconds_bucket", **VLLM, le="0.04") == 1
    assert page("vllm:inter_token_latency_seconds_bucket", **VLLM, le="0.025") == 2
    assert page("vllm:e2e_request_latency_seconds_count", **VLLM) == 1


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("time_to_first_token_seconds", TTFT_BUCKETS),
        ("inter_token_latency_seconds", INTERVAL_BUCKETS),
        ("e2e_request_latency_seconds", LATENCY_BUCKETS),
        ("request_queue_time_seconds", LATENCY_BUCKETS),
        ("request_prefill_time_seconds", LATENCY_BUCKETS),
        ("request_decode_time_seconds", LATENCY_BUCKETS),
        ("request_prompt_tokens", TOKEN_BUCKETS),
        ("request_generation_tokens", TOKEN_BUCKETS),
    ],
)
def test_vllms_histograms_have_its_buckets_from_the_start(
    metrics: Metrics, name: str, bounds: tuple[float, ...]
) -> None:
    page = Page(metrics)
    assert page.types[f"vllm:{name}"] == "histogram"
    assert page.bounds(f"vllm:{name}") == [*bounds, float("inf")]
    assert page(f"vllm:{name}_count", **VLLM) == 0


def test_replicas_come_and_go(metrics: Metrics) -> None:
    metrics.telemetry("r0", telemetry(ooms=2), 0.9)
    metrics.telemetry("r1", telemetry(used=10), 0.45)
    page = Page(metrics)
    assert page("bucketserve_safety_factor", replica="r1") == 0.45
    assert page("bucketserve_kv_used_bytes", replica="r0") == 50
    assert page("bucketserve_kv_capacity_bytes", replica="r1") == 100
    metrics.replica_left("r0")
    metrics.replica_left("never seen")
    page = Page(metrics)
    assert {s.labels["replica"] for s in page.samples if s.name == "bucketserve_running_rows"} == {"r1"}
    assert page("bucketserve_out_of_memory_total", replica="r0") == 2
    metrics.telemetry("r0", telemetry(used=60), 0.9)
    assert Page(metrics)("bucketserve_kv_used_bytes", replica="r0") == 60


def test_out_of_memory_errors_are_counted_over_restarts(metrics: Metrics) -> None:
    for total in (1, 3, 3, 1):  # the engine restarted before the last
        metrics.telemetry("r0", telemetry(ooms=total), 0.9)
    assert Page(metrics)("bucketserve_out_of_memory_total", replica="r0") == 4


def test_the_shared_queue(metrics: Metrics) -> None:
    heads = [Head(0, DEFAULT, "a", 1.0, 3), Head(4, DEFAULT, "b", 1.0, 2), Head(4, FLEX, "c", 2.0, 1)]
    metrics.queue_seen(
        Queue(
            now_s=0.0,
            heads=heads,
            served={},
            bounds=(0, 8, 16),
            bounds_version=1,
            tickets=6,
            tokens=600,
            bytes=6000,
        )
    )
    metrics.rebucketed(1, 3, "traffic")
    metrics.rebucketed(3, 2, "sparse")
    page = Page(metrics)
    assert page("bucketserve_shared_queue_tickets", service_class="default") == 5
    assert page("bucketserve_shared_queue_tickets", service_class="priority") == 0
    assert page("bucketserve_shared_queue_tokens") == 600
    assert page("bucketserve_shared_queue_buckets") == 3
    assert page("bucketserve_bucket_splits_total", reason="traffic") == 2
    assert page("bucketserve_bucket_merges_total", reason="sparse") == 1
    # Who drives nothing looks no more: what was read last would stay for ever.
    metrics.telemetry("r0", telemetry(), 0.9)
    metrics.replica_left("r0")
    page = Page(metrics)
    assert {sample.value for sample in page.samples if sample.name.startswith("bucketserve_shared_queue_")} == {0}


def test_the_front_the_batches_and_the_process(metrics: Metrics) -> None:
    metrics.responded("/v1/models", 200)
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    metrics.client_left()
    metrics.batch_sent(3, 120)
    metrics.store_verb("put", 0.001, True)
    metrics.store_verb("put", 1.0, False)
    metrics.loop_lag(0.002)
    page = Page(metrics)
    assert page("bucketserve_http_responses_total", route="/v1/models", status="200") == 1
    assert page("bucketserve_streams") == 1
    assert page("bucketserve_disconnects_total") == 1
    assert page("bucketserve_batch_rows_sum") == 3
    assert page("bucketserve_batch_padded_tokens_sum") == 120
    assert page("bucketserve_store_seconds_sum", verb="put", result="lost") == 1
    assert page("bucketserve_event_loop_lag_seconds_count") == 1
