"""What this gateway knows of the replicas: what they can hold, how fast they are, what they said last."""

from collections.abc import Sequence
from math import inf

from gateway.policy import batch
from gateway.policy.batch import Unstarted
from gateway.policy.caution import Caution
from gateway.policy.drain import Drain
from gateway.policy.pace import MANY_ROWS, Pace, Stopwatch
from gateway.standing import Standing
from triton_backend.contract import Attached, ModelInfo, Telemetry
from triton_backend.memory import Layout


class Replica:
    """One engine, driven here or elsewhere."""

    def __init__(self, seen: Attached | Standing, safety_factor: float) -> None:
        """`safety_factor`: part of the KV memory that batches are planned into, while there is enough."""
        self.model: ModelInfo = seen.model
        self.layout: Layout = seen.layout
        self.telemetry: Telemetry = seen.telemetry
        self.drain = Drain()
        self.rows = 0
        """Rows in the engine, started or not."""
        self.has_room = True
        """Nothing waits for want of room there, as far as is known."""
        self.unstarted: Sequence[Unstarted] = ()
        """Rows in the engine whose prompts are still to be run."""
        self.tpot_s = inf
        """The tightest target of its rows."""
        self._caution = Caution(safety_factor, seen.telemetry.out_of_memory_total)
        self._most_bytes = batch.kv_bytes(seen.telemetry)
        """KV memory that there was at most."""
        self._stopwatch = Stopwatch()
        self._pace: Pace | None = None
        """Of all that was heard; None: not reckoned since."""

    def heard(self, telemetry: Telemetry, now_s: float) -> None:
        self.telemetry, self._pace = telemetry, None
        self._most_bytes = max(self._most_bytes, batch.kv_bytes(telemetry))
        self._caution.heard(telemetry.out_of_memory_total, now_s)
        if telemetry.decode_rows:
            self._stopwatch.note_decode(telemetry.decode_rows, telemetry.step_s)

    def joined(self, attached: Attached) -> None:
        """It is driven here from now on; what was learned of it before, here or elsewhere, goes on."""
        self.telemetry, self._pace = attached.telemetry, None
        self._most_bytes = max(self._most_bytes, batch.kv_bytes(attached.telemetry))
        self._caution.skip(attached.telemetry.out_of_memory_total)
        # What was claimed since it was measured last is not known.
        self.drain.pause()

    def told(self, standing: Standing) -> None:
        """Its driver is elsewhere, and says this."""
        self.model, self.layout, self.telemetry = standing.model, standing.layout, standing.telemetry
        self._most_bytes = max(self._most_bytes, batch.kv_bytes(standing.telemetry))
        self._stopwatch, self._pace = Stopwatch(standing.pace), standing.pace
        self.drain.rate = standing.work_rate
        self.rows, self.has_room, self.tpot_s = standing.rows, standing.has_room, standing.tpot_s
        self.unstarted = standing.unstarted

    @property
    def standing(self) -> Standing:
        return Standing(
            model=self.model,
            layout=self.layout,
            telemetry=self.telemetry,
            pace=self.pace,
            work_rate=self.drain.rate,
            rows=self.rows,
            has_room=self.has_room,
            tpot_s=self.tpot_s,
            unstarted=list(self.unstarted),
        )

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

    @property
    def safety_factor(self) -> float:
        """It falls when the replica was out of memory, and recovers."""
        return self._caution.factor

    @property
    def safe_bytes(self) -> int:
        """M_safe: the KV memory that batches are planned into."""
        return int(self.safety_factor * batch.kv_bytes(self.telemetry))

    @property
    def alone_bytes(self) -> float:
        """What a row may take that has the replica to itself.  Without a bound if there was never more: then the
        engine has to find that it does not fit."""
        now_bytes = batch.kv_bytes(self.telemetry)
        return now_bytes if now_bytes < self._most_bytes else inf

    def longest_row_tokens(self, safety_factor: float) -> int:
        """The most tokens of prompt and answer that a request may have here.  What others have taken meanwhile
        may come back."""
        budget_bytes = int(safety_factor * self._most_bytes)
        return min(self.model.context_tokens, batch.longest_row_tokens(self.layout, budget_bytes))


class Fleet:
    """The replicas that answer now.  Written by the drivers, and by the board for those driven elsewhere; read by
    everybody."""

    def __init__(self, safety_factor: float) -> None:
        self.safety_factor = safety_factor
        self.replicas: dict[str, Replica] = {}

    def joined(self, name: str, attached: Attached) -> Replica:
        """This gateway drives it."""
        replica = self.replicas.get(name)
        if replica is None or (replica.model, replica.layout) != (attached.model, attached.layout):
            self.replicas[name] = Replica(attached, self.safety_factor)
        else:
            replica.joined(attached)
        return self.replicas[name]

    def told(self, name: str, standing: Standing) -> None:
        """Another gateway drives it."""
        if name not in self.replicas:
            self.replicas[name] = Replica(standing, self.safety_factor)
        self.replicas[name].told(standing)

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
        step_s = sum(pace.decode_s(MANY_ROWS) for pace in paces) / len(paces)
        return prefill_s, answer_tokens * step_s / MANY_ROWS
