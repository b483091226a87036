"""What this gateway knows of the replicas: what they can hold, how fast they are, what they said last."""

from collections.abc import Sequence
from math import inf

from gateway.policy import batch
from gateway.policy.batch import Unstarted
from gateway.policy.drain import Drain
from gateway.policy.pace import Pace, Stopwatch
from triton_backend.contract import Attached, ModelInfo, Telemetry
from triton_backend.memory import KVLayout

_BUSY_ROWS = 32
"""Rows that share a decode step when the cost of a token is reckoned."""


class Replica:
    """One attached engine."""

    def __init__(self, attached: Attached) -> None:
        self.model: ModelInfo = attached.model
        self.layout: KVLayout = attached.layout
        self.telemetry: Telemetry = attached.telemetry
        self.drain = Drain()
        self.rows = 0
        """Rows in the engine, started or not."""
        self.unstarted: Sequence[Unstarted] = ()
        """Rows in the engine whose prompts are still to be run."""
        self.tpot_s = inf
        """The tightest target of its rows."""
        self._stopwatch = Stopwatch()
        self._pace: Pace | None = None
        """Of all that was heard; None: not reckoned since."""

    def heard(self, telemetry: Telemetry) -> None:
        self.telemetry, self._pace = telemetry, None
        if telemetry.decode_rows:
            self._stopwatch.note_decode(telemetry.decode_rows, telemetry.step_s)

    @property
    def pace(self) -> Pace:
        if self._pace is None:
            self._pace = self._stopwatch.pace(self.telemetry.prefill_tokens_per_s)
        return self._pace

    @property
    def slowdown(self) -> float:
        """How much longer a prompt takes because decode steps come in between."""
        pace = self.pace
        return 1.0 / (1.0 - pace.decode_part(self.tpot_s, self.rows))

    def start_s(self, rank: float) -> float:
        """Until the prompts in the engine that go before such a rank have been run."""
        rate = self.telemetry.prefill_tokens_per_s
        return self.slowdown * batch.tokens_before(self.unstarted, rank) / rate if rate else 0.0

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
    def work_rate(self) -> float:
        """Engine seconds of queued work that all replicas do in a second; 0 until anything was measured."""
        measured = (r.drain.rate for r in self.replicas.values() if r.telemetry.prefill_tokens_per_s)
        return sum(measured)

    def start(self, rank: float) -> tuple[float, float]:
        """Where a prompt of such a rank could start first: in how many seconds, and how much longer it takes there
        because decode steps come in between."""
        best_s, slowdown = inf, 1.0
        for replica in self.replicas.values():
            start_s = replica.start_s(rank)
            if start_s < best_s:
                best_s, slowdown = start_s, replica.slowdown
            if not start_s:
                break
        return (0.0 if best_s == inf else best_s), slowdown

    def seconds(self, prompt_tokens: int, answer_tokens: int) -> tuple[float, float]:
        """Engine time of a request: of its prompt, and of its answer among other rows; 0 until measured."""
        paces = [replica.pace for replica in self.replicas.values() if replica.telemetry.prefill_tokens_per_s]
        if not paces:
            return 0.0, 0.0
        prefill_s = sum(prompt_tokens / pace.prefill_tokens_per_s for pace in paces) / len(paces)
        step_s = sum(pace.decode_s(_BUSY_ROWS) for pace in paces) / len(paces)
        return prefill_s, answer_tokens * step_s / _BUSY_ROWS
