"""What operators see: one class, one method per event, so that nobody else knows Prometheus.

Who calls what: the server `responded`, `stream_opened`, `stream_closed`, `client_left`; origins `call_opened` to
`put_back`; drivers `batch_sent` to `bucket_merged`; the store `store_verb`; the process `loop_lag`.

Every label is bounded: classes, outcomes, reasons and verbs are fixed, replicas are ours.  Gauges tell only what
this gateway owns or drives, so that a sum over gateways is right; the exceptions, `bucketserve_queue_*`, are of
the shared queue and say so.  The `vllm:*` names are the same figures under the names that dashboards, autoscalers
and benchmark tools know (vllm_metrics.py).
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.request import FinishReason, Outcome, ServiceClass
from gateway.vllm_metrics import ITL_BUCKETS, LATENCY_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS, VllmAliases
from triton_backend.contract import Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, *LATENCY_BUCKETS)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        """`model` is the label of the vLLM names."""
        self._registry = registry
        self._http(registry)
        self._requests(registry)
        self._replicas(registry)
        self._queue(registry)
        registry.register(
            VllmAliases(
                model,
                gauges={
                    "num_requests_running": self._running,
                    "num_requests_waiting": self._waiting,
                    "kv_cache_usage_perc": self._kv_usage,
                },
                counters={
                    "prompt_tokens": self._prompt_tokens,
                    "generation_tokens": self._generated_tokens,
                    "num_preemptions": self._evicted,
                    "request_success": self._finished,
                },
                histograms={
                    "time_to_first_token_seconds": self._ttft,
                    "inter_token_latency_seconds": self._itl,
                    "e2e_request_latency_seconds": self._e2e,
                    "request_queue_time_seconds": self._queue_time,
                    "request_prefill_time_seconds": self._prefill_time,
                    "request_decode_time_seconds": self._decode_time,
                    "request_prompt_tokens": self._request_prompt_tokens,
                    "request_generation_tokens": self._request_generated_tokens,
                },
            )
        )

    def _http(self, registry: CollectorRegistry) -> None:
        self._responses = Counter(
            "bucketserve_http_responses", "Responses by route and status.", ["route", "status"], registry=registry
        )
        self._streams = Gauge("bucketserve_streams", "Event streams open now.", registry=registry)
        self._left = Counter(
            "bucketserve_disconnects", "Clients that went away before their answer was complete.", registry=registry
        )
        self._lag = Histogram(
            "bucketserve_event_loop_lag_seconds", "How late the event loop ran a timer.", buckets=_FAST, registry=registry
        )
        self._verbs = {
            ok: Histogram(
                f"bucketserve_store_{'seconds' if ok else 'failures_seconds'}",
                f"Time of a store verb that {'was answered' if ok else 'failed'}.",
                ["verb"],
                buckets=_FAST,
                registry=registry,
            )
            for ok in (True, False)
        }
