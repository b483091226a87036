"""Metrics that nobody scrapes: a counter costs a microsecond, and a run has hundreds of millions of events."""

from gateway.metrics import Metrics
from gateway.request import Queue
from triton_backend.contract import Telemetry


class Quiet(Metrics):
    """What a driver and a chooser tell, and nothing else."""

    def __init__(self) -> None:
        self.num_preempted = 0
        self.num_rebucketed = 0
        self.max_buckets = 1

    def batch_sent(self, rows: int, padded_tokens: int) -> None:
        pass

    def telemetry(self, replica: str, telemetry: Telemetry, safety_factor: float) -> None:
        pass

    def replica_left(self, replica: str) -> None:
        pass

    def queue_seen(self, queue: Queue) -> None:
        pass

    def preempted(self, rows: int) -> None:
        self.num_preempted += rows

    def rebucketed(self, before: int, after: int, reason: str) -> None:
        self.num_rebucketed += 1
        self.max_buckets = max(self.max_buckets, after)
