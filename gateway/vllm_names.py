"""Our figures once more, under the names, labels and buckets of vLLM, for dashboards, autoscalers, routers
and benchmark tools that know those.  Made from our own metrics at each scrape, so they cost nothing until
then and cannot disagree.

`engine` is the replica for what an engine reports, and "0" for what this gateway measures.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTERVAL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKEN_BUCKETS = (*(float(m * 10**e) for e in range(5) for m in (1, 2, 5)), 100_000.0)

_LABELS = ["model_name", "engine"]
_GATEWAY = "0"
_SAME = "The bucketserve figure under vLLM's name."
_COUNTERS = {"prompt_tokens": "prompt_tokens", "generation_tokens": "generated_tokens"}
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("ttft_seconds", TTFT_BUCKETS),
    "inter_token_latency_seconds": ("token_interval_seconds", INTERVAL_BUCKETS),
    "e2e_request_latency_seconds": ("duration_seconds", LATENCY_BUCKETS),
    "request_queue_time_seconds": ("queue_seconds", LATENCY_BUCKETS),
    "request_prefill_time_seconds": ("prefill_seconds", LATENCY_BUCKETS),
    "request_decode_time_seconds": ("decode_seconds", LATENCY_BUCKETS),
    "request_prompt_tokens": ("choice_prompt_tokens", TOKEN_BUCKETS),
    "request_generation_tokens": ("choice_tokens", TOKEN_BUCKETS),
}


class VllmNames(Collector):
    def __init__(self, model: str, ours: Mapping[str, Collector]) -> None:
        """`ours` is keyed by name without `bucketserve_`."""
        self._model = model
        self._ours = ours

    def collect(self) -> Iterator[Metric]:
        yield self._gauge("num_requests_running", self._by("running_rows", "replica"))
        yield self._gauge("num_requests_waiting", {_GATEWAY: self._total("queued_tickets")})
        yield self._gauge("kv_cache_usage_perc", self._kv_usage())
        yield self._counter("num_preemptions", self._by("put_backs", "reason")["evicted"])
        for name, our in _COUNTERS.items():
            yield self._counter(name, self._total(our))
        yield self._request_success()
        for name, (our, bounds) in _HISTOGRAMS.items():
            yield self._histogram(name, our, bounds)

    def _kv_usage(self) -> dict[str, float]:
        used, capacity = self._by("kv_used_bytes", "replica"), self._by("kv_capacity_bytes", "replica")
        return {replica: used[replica] / (size or 1) for replica, size in capacity.items()}

    def _request_success(self) -> Metric:
        family = CounterMetricFamily("vllm:request_success", _SAME, labels=[*_LABELS, "finished_reason"])
        for reason, count in self._by("finished_choices", "finish_reason").items():
            family.add_metric([self._model, _GATEWAY, reason], count)
        return family

    def _gauge(self, name: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", _SAME, labels=_LABELS)
        for engine, value in values.items():
            family.add_metric([self._model, engine], value)
        return family

    def _counter(self, name: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", _SAME, labels=_LABELS)
        family.add_metric([self._model, _GATEWAY], value)
        return family

    def _histogram(self, name: str, our: str, bounds: tuple[float, ...]) -> Metric:
        """Buckets are cumulative, so those that vLLM does not have can be left out."""
        counts = self._by(our, "le")
        buckets = [(str(bound), counts[str(bound)]) for bound in (*bounds, "+Inf")]
        family = HistogramMetricFamily(f"vllm:{name}", _SAME, labels=_LABELS)
        family.add_metric([self._model, _GATEWAY], buckets, self._total(our, "_sum"))
        return family

    def _by(self, our: str, label: str) -> dict[str, float]:
        """Added up over all other labels."""
        sums: dict[str, float] = defaultdict(float)
        for sample in self._samples(our):
            if label in sample.labels:
                sums[sample.labels[label]] += sample.value
        return sums

    def _total(self, our: str, suffix: str = "") -> float:
        return sum(sample.value for sample in self._samples(our) if sample.name.endswith(suffix))

    def _samples(self, our: str) -> list[Sample]:
        samples = [sample for family in self._ours[our].collect() for sample in family.samples]
        return [sample for sample in samples if not sample.name.endswith("_created")]
