"""What operators see: one method per event, so that nobody else knows Prometheus.

Every label is bounded: classes, outcomes, reasons, routes and verbs are fixed, replicas are ours.  All
figures are this gateway's own, and a sum over gateways is the fleet's; the exceptions,
`bucketserve_shared_queue_*`, are what this gateway last read of the queue that all share, and 0 while it drives
no replica: of these take the largest.  `vllm:*` are the same figures under vLLM's names.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.policy import batch
from gateway.policy.length import Mode
from gateway.request import FinishReason, Head, Outcome, Queue, ServiceClass
from gateway.vllm_names import INTERVAL_BUCKETS, LATENCY_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS, VllmNames
from triton_backend.contract import Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST

_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, *LATENCY_BUCKETS)
_INTERVALS = (0.001, 0.0025, 0.005, *INTERVAL_BUCKETS)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_REPLICA_GAUGES = {
    "running_rows": "Rows in the decode pool.",
    "waiting_rows": "Rows whose prefill is not finished.",
    "kv_used_bytes": "KV memory in use.",
    "kv_capacity_bytes": "KV memory that may be used: the pool and what it may still take from the device.",
    "device_free_bytes": "Free memory of the device.",
    "prefill_tokens_per_s": "Smoothed prefill rate.",
    "decode_tokens_per_s": "Smoothed decode rate, over all rows.",
    "safety_factor": "Part of the KV memory that batches are planned into; less after errors.",
}


_MET = {(True, True): "both", (True, False): "ttft", (False, True): "tpot", (False, False): "none"}


class StepHistogram(Collector):
    """A histogram that takes all equal values of a step at once: prometheus_client's own takes one, under a lock.
    For one thread."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = (*bounds, inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, times: int) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterator[Metric]:
        buckets = zip(map(floatToGoString, self._bounds), map(float, accumulate(self._counts)), strict=True)
        yield HistogramMetricFamily(self._name, self._text, list(buckets), self._sum)


class Metrics:
    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        """`model` is the label `model_name` of the `vllm:*` names."""
        self._registry = registry
        self._ours: dict[str, Collector] = {}
        """By name."""
        self._define_front()
        self._define_requests()
        self._define_lengths()
        self._define_engines()
        registry.register(VllmNames(model, self._ours))
        ProcessCollector(registry=registry)

    def render(self) -> bytes:
        """The answer to a scrape, of type CONTENT_TYPE."""
        return generate_latest(self._registry)

    # The server

    def responded(self, route: str, status: int) -> None:
        """`route` is a pattern of ours, never a path; status 499: the client went away."""
        self._responses.labels(route, status).inc()

    def stream_opened(self) -> None:
        self._streams.inc()

    def stream_closed(self) -> None:
        self._streams.dec()

    def client_left(self) -> None:
        """Before its answer was complete."""
        self._disconnects.inc()

    # The origin

    def call_opened(self, service_class: ServiceClass, prompt_tokens: int) -> None:
        """Admitted.  Exactly one `call_ended` follows."""
        self._live[service_class].inc()
        self._prompt_tokens.inc(prompt_tokens)

    def call_refused(self, service_class: ServiceClass) -> None:
        """Instead of `call_opened`."""
        self._calls[service_class, Outcome.REJECTED].inc()

    def ticket_queued(self, service_class: ServiceClass) -> None:
        """Or put back.  Exactly one `ticket_dequeued` follows."""
        self._queued[service_class].inc()

    def ticket_dequeued(self, service_class: ServiceClass) -> None:
        """Its first token of this attempt came, or it ended."""
        self._queued[service_class].dec()

    def ticket_put_back(self, reason: str) -> None:
        """`reason` is an `End` or another word of a fixed few."""
        self._put_backs.labels(reason).inc()

    def first_token(self, service_class: ServiceClass, ttft_s: float) -> None:
        """The call's first, since its arrival."""
        self._ttft[service_class].observe(ttft_s)

    def tokens(self, count: int, intervals_s: Mapping[float, int]) -> None:
        """So many came in one step; how many of them how long after the one before (a choice's first: none)."""
        self._generated_tokens.inc(count)
        for interval_s, times in intervals_s.items():
            self._interval.observe(interval_s, times)

    def length_seen(self, is_covered: bool, mode: Mode) -> None:
        """An answer stayed within its predicted upper length, or not; `mode` predicts the next."""
        self._lengths[is_covered].inc()
        for name, gauge in self._predictors.items():
            gauge.set(name is mode)

    def choice_finished(
        self,
        reason: FinishReason,
        *,
        prompt_tokens: int,
        tokens: int,
        queue_s: float,
        prefill_s: float,
        decode_s: float,
    ) -> None:
        """A choice is complete; the three times add up to its whole life."""
        self._finished[reason].inc()
        self._choice_prompt_tokens.observe(prompt_tokens)
        self._choice_tokens.observe(tokens)
        self._queue_time.observe(queue_s)
        self._prefill_time.observe(prefill_s)
        self._decode_time.observe(decode_s)

    def targets_met(self, service_class: ServiceClass, *, ttft: bool, tpot: bool) -> None:
        """Whether a complete choice kept its targets; those of refused calls are counted among the rejected."""
        self._targets[service_class, ttft, tpot].inc()

    def call_ended(self, service_class: ServiceClass, outcome: Outcome, duration_s: float) -> None:
        self._live[service_class].dec()
        self._calls[service_class, outcome].inc()
        if outcome is Outcome.FINISHED:
            self._duration[service_class].observe(duration_s)

    # The driver

    def batch_sent(self, rows: int, padded_tokens: int) -> None:
        self._batch_rows.observe(rows)
        self._batch_tokens.observe(padded_tokens)

    def telemetry(self, replica: str, telemetry: Telemetry, safety_factor: float) -> None:
        for gauge, value in zip(self._gauges_of(replica), (*_figures(telemetry), safety_factor), strict=True):
            gauge.set(value)
        before = self._oom_before.get(replica, 0)
        self._oom_before[replica] = now = telemetry.out_of_memory_total
        self._oom.labels(replica).inc(now - before if now >= before else now)

    def replica_left(self, replica: str) -> None:
        """This gateway drives it no more."""
        self._gauges.pop(replica, None)
        for gauge in self._replica_gauges:
            gauge.remove_by_labels({"replica": replica})
        if not self._gauges:
            self._show_queue([], tokens=0, size_bytes=0, buckets=0)

    def queue_seen(self, queue: Queue) -> None:
        self._show_queue(queue.heads, queue.tokens, queue.bytes, len(queue.bounds))

    def _show_queue(self, heads: Sequence[Head], tokens: int, size_bytes: int, buckets: int) -> None:
        depth = dict.fromkeys(ServiceClass, 0)
        for head in heads:
            depth[head.service_class] += head.count
        for service_class, count in depth.items():
            self._depth[service_class].set(count)
        self._queue_tokens.set(tokens)
        self._queue_bytes.set(size_bytes)
        self._buckets.set(buckets)

    def preempted(self, rows: int) -> None:
        """Flex rows were told to make room for a higher class."""
        self._preemptions.inc(rows)

    def rebucketed(self, before: int, after: int, reason: str) -> None:
        """The bucket table got `after` buckets instead of `before`; `reason` is one of a fixed few."""
        self._splits.labels(reason).inc(max(0, after - before))
        self._merges.labels(reason).inc(max(0, before - after))

    # The relay

    def relayed(self, letters: int, tokens: int) -> None:
        """Sent to other gateways."""
        self._letters.inc(letters)
        self._relayed_tokens.inc(tokens)

    def relay_dropped(self, tokens: int) -> None:
        """The store did not answer for too long; their tickets will be put back."""
        self._dropped_tokens.inc(tokens)

    # Records

    def call_resumed(self, how: str) -> None:
        """Over another connection: `taken over` from one to this gateway, or `adopted` from its record."""
        self._resumed.labels(how).inc()

    def logged(self, size_bytes: int) -> None:
        """Written to the logs of calls."""
        self._logged_bytes.inc(size_bytes)

    # The process

    def store_verb(self, verb: str, seconds: float, ok: bool) -> None:
        self._store.labels(verb, "ok" if ok else "lost").observe(seconds)

    def store_lost(self, is_lost: bool) -> None:
        """Verbs fail at once from now on, or are asked again."""
        self._store_lost.set(is_lost)

    def loop_lag(self, seconds: float) -> None:
        """How late the event loop ran a timer."""
        self._lag.observe(seconds)

    # Definitions

    def _define_front(self) -> None:
        self._responses = self._counter("http_responses", "HTTP responses.", "route", "status")
        self._streams = self._gauge("streams", "Event streams open now.")
        self._disconnects = self._counter("disconnects", "Clients that left before their answer was complete.")
        self._store = self._histogram("store_seconds", "Round trips to the store.", _SHORT, "verb", "result")
        self._store_lost = self._gauge("store_lost", "1 while the store does not answer and verbs fail at once.")
        self._lag = self._histogram("event_loop_lag_seconds", "How late the event loop ran a timer.", _SHORT)

    def _define_requests(self) -> None:
        each = list(ServiceClass)
        live = self._gauge("live_calls", "Calls admitted and not ended.", "service_class")
        calls = self._counter("calls", "Calls by their one ending.", "service_class", "outcome")
        queued = self._gauge("queued_tickets", "Tickets of this gateway that wait for a token.", "service_class")
        ttft = self._histogram("ttft_seconds", "Arrival to first token.", TTFT_BUCKETS, "service_class")
        duration = self._histogram(
            "duration_seconds", "Arrival to end of finished calls.", _WAITS, "service_class"
        )
        finished = self._counter("finished_choices", "Complete choices.", "finish_reason")
        self._live = {c: live.labels(c) for c in each}
        self._calls = {(c, outcome): calls.labels(c, outcome) for c in each for outcome in Outcome}
        self._queued = {c: queued.labels(c) for c in each}
        self._ttft = {c: ttft.labels(c) for c in each}
        self._duration = {c: duration.labels(c) for c in each}
        targets = self._counter("targets", "Complete choices by the targets they met.", "service_class", "met")
        self._targets = {(c, ttft, tpot): targets.labels(c, _MET[ttft, tpot]) for c in each for ttft, tpot in _MET}
        self._finished = {reason: finished.labels(reason) for reason in FinishReason}
        self._put_backs = self._counter("put_backs", "Tickets queued again.", "reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted calls.")
        self._generated_tokens = self._counter("generated_tokens", "Tokens generated for clients.")
        self._interval = StepHistogram("bucketserve_token_interval_seconds", "Time between tokens.", _INTERVALS)
        self._ours["token_interval_seconds"] = self._interval
        self._registry.register(self._interval)
        self._queue_time = self._histogram("queue_seconds", "Time in the queue.", _WAITS)
        self._prefill_time = self._histogram("prefill_seconds", "Leaving the queue to first token.", _WAITS)
        self._decode_time = self._histogram("decode_seconds", "First token to last.", _WAITS)
        self._choice_prompt_tokens = self._histogram("choice_prompt_tokens", "Prompt lengths.", TOKEN_BUCKETS)
        self._choice_tokens = self._histogram("choice_tokens", "Answer lengths.", TOKEN_BUCKETS)

        self._resumed = self._counter("resumed_calls", "Calls gone on with over another connection.", "how")
        self._logged_bytes = self._counter("logged_bytes", "Written to the logs of calls, to be resumed from.")

    def _define_lengths(self) -> None:
        lengths = self._counter("predicted_lengths", "Answers within their predicted upper length.", "covered")
        predictor = self._gauge("length_predictor", "1 for the predictor in use.", "mode")
        self._lengths = {True: lengths.labels("yes"), False: lengths.labels("no")}
        self._predictors = {mode: predictor.labels(mode) for mode in Mode}

    def _define_engines(self) -> None:
        self._batch_rows = self._histogram("batch_rows", "Rows of the batches sent.", _ROWS)
        text = "Their prompt tokens, were each prompt as long as its batch's longest; the engine itself pads none."
        self._batch_tokens = self._histogram("batch_padded_tokens", text, TOKEN_BUCKETS)
        self._replica_gauges = [self._gauge(name, text, "replica") for name, text in _REPLICA_GAUGES.items()]
        self._gauges: dict[str, list[Gauge]] = {}
        self._oom = self._counter("out_of_memory", "Out-of-memory errors that an engine survived.", "replica")
        self._oom_before: dict[str, int] = {}
        depth = self._gauge("shared_queue_tickets", "Tickets in the shared queue.", "service_class")
        self._depth = {c: depth.labels(c) for c in ServiceClass}
        self._queue_tokens = self._gauge("shared_queue_tokens", "Prompt tokens in the shared queue.")
        self._queue_bytes = self._gauge("shared_queue_bytes", "Payload bytes in the shared queue.")
        self._buckets = self._gauge("shared_queue_buckets", "Length buckets of the shared queue.")
        self._preemptions = self._counter("preempted_rows", "Flex rows told to make room for a higher class.")
        self._letters = self._counter("relayed_letters", "Messages sent to other gateways.")
        self._relayed_tokens = self._counter("relayed_tokens", "Tokens sent to other gateways.")
        self._dropped_tokens = self._counter("relay_dropped_tokens", "Tokens dropped while Redis did not answer.")
        self._splits = self._counter("bucket_splits", "Buckets added by this gateway.", "reason")
        self._merges = self._counter("bucket_merges", "Buckets removed by this gateway.", "reason")

    def _gauges_of(self, replica: str) -> list[Gauge]:
        gauges = self._gauges.get(replica)
        if gauges is None:
            gauges = self._gauges[replica] = [gauge.labels(replica) for gauge in self._replica_gauges]
        return gauges

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._ours[name] = counter = Counter(f"bucketserve_{name}", text, labels, registry=self._registry)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._ours[name] = gauge = Gauge(f"bucketserve_{name}", text, labels, registry=self._registry)
        return gauge

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        self._ours[name] = histogram = Histogram(
            f"bucketserve_{name}", text, labels, buckets=buckets, registry=self._registry
        )
        return histogram


def _figures(telemetry: Telemetry) -> tuple[float, ...]:
    """In the order of _REPLICA_GAUGES, but for the last."""
    return (
        telemetry.running,
        telemetry.waiting,
        telemetry.pool_used_bytes,
        batch.kv_bytes(telemetry),
        telemetry.device_free_bytes,
        telemetry.prefill_tokens_per_s,
        telemetry.decode_tokens_per_s,
    )
