"""What is counted and learned of the choices of this gateway's calls."""

import asyncio

from gateway.call import Live
from gateway.gatekeeper import Gatekeeper
from gateway.metrics import Metrics
from gateway.profiler import Profiler
from gateway.request import FinishReason


class Tally:
    def __init__(self, metrics: Metrics, gatekeeper: Gatekeeper, profiler: Profiler) -> None:
        self._metrics = metrics
        self._gatekeeper = gatekeeper
        self._profiler = profiler
        self._intervals_s: dict[float | None, int] = {}
        """Between a step's tokens and the ones before, and how many; None: a choice's first."""

    def heard(self, live: Live, now_s: float) -> None:
        """A driver has its attempt."""
        if live.heard_s is None:
            self._metrics.ticket_dequeued(live.ticket.service_class)
            live.claimed_s = live.claimed_s or now_s
        live.heard_s = now_s

    def token(self, live: Live, now_s: float) -> None:
        """A token came; `step_ended` follows."""
        since_s = None if live.first_s is None or live.heard_s is None else now_s - live.heard_s
        self._intervals_s[since_s] = self._intervals_s.get(since_s, 0) + 1
        self.heard(live, now_s)
        if live.first_s is None:
            live.first_s = now_s
        if not live.call.has_tokens:
            live.call.has_tokens = True
            self._metrics.first_token(live.ticket.service_class, now_s - live.call.arrival_s)
            self._gatekeeper.first_token(live.call, now_s - live.call.arrival_s)

    def step_ended(self) -> None:
        """Count its tokens: rows that went along in the step before all have the same interval."""
        if self._intervals_s:
            intervals_s, self._intervals_s = self._intervals_s, {}
            count = sum(intervals_s.values())
            self._metrics.tokens(count, {since_s: n for since_s, n in intervals_s.items() if since_s is not None})

    def finished(self, live: Live, reason: FinishReason) -> None:
        """The choice is complete."""
        self._learn(live, reason)
        arrival_s, now_s = live.call.arrival_s, asyncio.get_running_loop().time()
        first_s = live.first_s or now_s
        claimed_s = min(live.claimed_s or first_s, first_s)
        self._metrics.choice_finished(
            reason,
            prompt_tokens=len(live.work.prompt),
            tokens=len(live.choice.tokens),
            queue_s=claimed_s - arrival_s,
            prefill_s=first_s - claimed_s,
            decode_s=now_s - first_s,
        )
        if live.had_tokens:
            # When its first token came, nobody here knows.
            return
        ticket, later_tokens = live.ticket, len(live.choice.tokens) - 1
        self._metrics.targets_met(
            ticket.service_class,
            ttft=first_s - arrival_s <= ticket.ttft_s,
            tpot=now_s - first_s <= later_tokens * ticket.tpot_s,
        )

    def _learn(self, live: Live, reason: FinishReason) -> None:
        """The profiler sees how long the answer became."""
        if live.features is None:
            return
        tokens, max_tokens = len(live.choice.tokens), live.ticket.index + live.ticket.max_tokens
        self._profiler.observe(live.features, max_tokens, tokens, reason is FinishReason.LENGTH)
        self._metrics.length_seen(tokens <= live.predicted.upper_tokens, self._profiler.mode)
