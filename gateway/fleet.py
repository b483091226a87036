"""What this gateway knows of the replicas: what they can hold, and what they said last."""

from gateway.policy import batch
from triton_backend.contract import Attached, ModelInfo, Telemetry
from triton_backend.memory import KVLayout


class Replica:
    """One attached engine."""

    def __init__(self, attached: Attached) -> None:
        self.model: ModelInfo = attached.model
        self.layout: KVLayout = attached.layout
        self.telemetry: Telemetry = attached.telemetry

    def longest_row_tokens(self, safety_factor: float) -> int:
        """The most tokens of prompt and answer that a request may have here."""
        budget_bytes = batch.safe_bytes(self.telemetry, safety_factor)
        return min(self.model.context_tokens, batch.longest_row_tokens(self.layout, budget_bytes))


class Fleet:
    """The replicas that answer now.  Written by the drivers, read by everybody."""

    def __init__(self, safety_factor: float) -> None:
        self.safety_factor = safety_factor
        self.replicas: dict[str, Replica] = {}

    def joined(self, name: str, attached: Attached) -> Replica:
        self.replicas[name] = Replica(attached)
        return self.replicas[name]

    def left(self, name: str) -> None:
        self.replicas.pop(name, None)

    @property
    def longest_row_tokens(self) -> int:
        """Over all replicas; 0 without any."""
        return max((r.longest_row_tokens(self.safety_factor) for r in self.replicas.values()), default=0)

    @property
    def prefill_tokens_per_s(self) -> float:
        return sum(replica.telemetry.prefill_tokens_per_s for replica in self.replicas.values())
