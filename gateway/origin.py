"""The live requests of this gateway, each from its arrival to its one ending.

The origin keeps everything a request needs to be run again, so anything else may die: only the origin puts a
ticket back, under the next attempt, with what was generated so far as part of the prompt.  One way serves engine
death, eviction, refusal and a store that forgot.

Fencing: an event of another attempt, or for a token already delivered, is dropped; one for a later token than
the next is a gap, and the ticket is put back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import msgspec
import structlog

from gateway.call import Live, OpenCall, outcome_of
from gateway.errors import (
    ApiError,
    DeadlineExceeded,
    InternalError,
    Poisoned,
    QueueFull,
    StoreLost,
    Unavailable,
)
from gateway.fleet import Fleet
from gateway.gatekeeper import Gatekeeper
from gateway.intake import Intake
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.policy.preset import Policy
from gateway.ports import Entry, Limits, Store, Tokenizer
from gateway.profiler import Profiler
from gateway.request import (
    Departed,
    Drawn,
    FinishReason,
    Outcome,
    Request,
    ServiceClass,
)
from gateway.reservations import Reservations
from gateway.ticketing import Aim
from triton_backend.contract import End

log = structlog.get_logger()

_FINISHED = {End.STOP: FinishReason.STOP, End.LENGTH: FinishReason.LENGTH}
_MAX_DEATHS = 3
_DIED = "engine died"
_ANY_ATTEMPT = 2**62
_RETRY_S = 0.2
_IDLE_POLL_S = 0.05
_MAX_PUTS = 3
"""So often is admission asked again because others came in between."""


class Config(msgspec.Struct, frozen=True):
    """An origin's bounds.  Times in seconds."""

    limits: Limits
    policy: Policy
    aims: Mapping[ServiceClass, Aim]
    shares: Mapping[ServiceClass, float]
    audit_s: float = 2.0
    life_s: float = 10.0
    """Without a sign of life for this long, an origin's tickets are forgotten."""
    progress_timeout_s: float = 60.0
    """A ticket whose attempt has drawn a token and then nothing for this long is put back."""


class Origin:
    """Owns this gateway's requests; a Receiver to drivers, `Calls` to the server."""

    def __init__(
        self,
        *,
        gateway: str,
        model: str,
        store: Store,
        tokenizer: Tokenizer,
        fleet: Fleet,
        profiler: Profiler,
        reservations: Reservations,
        config: Config,
        metrics: Metrics,
        wake: Callable[[], None],
        cancel: Callable[[Iterable[tuple[str, int]]], None],
        recall: Callable[[Iterable[tuple[str, int, str]]], None],
    ) -> None:
        """`wake`, `cancel` and `recall` reach the drivers, as in Outbox."""
        self.gateway = gateway
        self.models = [model]
        self._store = store
        self._fleet = fleet
        self._config = config
        self._metrics = metrics
        self._wake = wake
        self._cancel = cancel
        self._recall = recall
        self._profiler = profiler
        self._reservations = reservations
        self._intake = Intake(gateway, tokenizer, fleet, profiler, config.policy, config.aims)
        self.gatekeeper = Gatekeeper(config.policy.admission, store, fleet, config.limits, config.shares)
        self.is_draining = False
        """Set once at shutdown: nothing new comes in, and readiness says so."""
        self._live: dict[str, Live] = {}
        self._outbox = Outbox(store, wake, cancel, recall)

    # For the server

    @property
    def context_tokens(self) -> int | None:
        return self._fleet.longest_row_tokens or None

    @property
    def num_live(self) -> int:
        """Tickets that have not ended."""
        return len(self._live)

    async def idle(self) -> None:
        """Returns when nothing is live and the store knows of every ending."""
        while self._live or not (self._outbox.is_empty and self._reservations.is_settled):
            await asyncio.sleep(_IDLE_POLL_S)

    async def ready(self) -> list[str]:
        """Reasons for not being ready; empty when the store and a replica really answer."""
        reasons = [] if self._fleet.replicas else ["no replica answers"]
        if self.is_draining:
            reasons.append("shutting down")
        try:
            await self._store.ping()
        except StoreLost as error:
            reasons.append(f"the store does not answer: {error}")
        return reasons

    @contextlib.asynccontextmanager
    async def open(self, request: Request, call_id: str, arrival_s: float) -> AsyncIterator[OpenCall]:
        """Admit and queue a request; whatever happens inside, nothing of it is left afterwards.

        `arrival_s` is on the event loop's clock.  Raises BadRequest, TooManyRequests, Unavailable.
        """
        service_class = request.service_class
        try:
            call = await self._enter(request, call_id, arrival_s)
        except ApiError:
            self._metrics.call_refused(service_class)
            raise
        self._metrics.call_opened(service_class, sum(call.prompt_tokens))
        outcome = Outcome.CANCELLED
        expiry = self._expire_in(call, request.targets.deadline_s)
        try:
            yield call
            if call.error is None and not call.live:
                outcome = Outcome.FINISHED
        finally:
            if expiry:
                expiry.cancel()
            if call.error is not None:
                outcome = outcome_of(call.error)
            self._abandon(call)
            self._reservations.settle(call)
            self._metrics.call_ended(service_class, outcome, _now_s() - arrival_s)

    def _expire_in(self, call: OpenCall, deadline_s: float | None) -> asyncio.TimerHandle | None:
        if deadline_s is None:
            return None
        return asyncio.get_running_loop().call_at(call.arrival_s + deadline_s, self._expire, call)

    def _expire(self, call: OpenCall) -> None:
        """The call's deadline has passed: it ends with what it has."""
        if not call.live:
            return
        if not call.has_tokens:
            self._abandon(call)
            message = "The deadline passed before the first token; the request was not run to its end."
            call.fail(DeadlineExceeded(message, should_retry=False))
            return
        for live in list(call.live.values()):
            call.push(live.choice.end(FinishReason.LENGTH, "deadline"))
            self._drop(live)

    async def _enter(self, request: Request, call_id: str, arrival_s: float) -> OpenCall:
        """Tokenise, reserve, admit, queue.  Raises ApiError."""
        if self.is_draining:
            raise Unavailable("This gateway is shutting down.", retry_after_s=1.0)
        call = await self._intake.call(request, call_id, arrival_s)
        await self._reservations.reserve(call, request.tenant)
        for live in call.live.values():
            self._live[live.ticket.id] = live
            self._metrics.ticket_queued(request.service_class)
        try:
            await self._put(call, request)
        except BaseException:
            # A put that failed or was cancelled may have happened all the same.
            self._abandon(call)
            self._reservations.refund(call)
            raise
        return call

    async def _put(self, call: OpenCall, request: Request) -> None:
        self.gatekeeper.arrived(call, request)
        for _ in range(_MAX_PUTS):
            try:
                limits = await self.gatekeeper.limits(call, request)
            except ApiError:
                self._forget(call)
                raise
            entries = [live.entry for live in call.live.values()]
            try:
                scores = await self._store.put(entries, limits)
            except QueueFull as full:
                reason = full.reason
                if reason != "seconds":
                    break
            except StoreLost as lost:
                raise Unavailable("The queue does not answer.", retry_after_s=2.0) from lost
            else:
                self._queued(entries, scores)
                return
        refusal = await self.gatekeeper.full(call, request, reason)
        self._forget(call)
        raise refusal

    def _forget(self, call: OpenCall) -> None:
        """Nothing of the call was queued."""
        for live in list(call.live.values()):
            self._remove(live)

    def _queued(self, entries: Sequence[Entry], scores: Sequence[float]) -> None:
        for entry, score in zip(entries, scores, strict=True):
            if found := self._live.get(entry.ticket.id):
                found.ticket = msgspec.structs.replace(found.ticket, score=score)
                found.known |= found.ticket.attempt == entry.ticket.attempt
        self._wake()

    def _abandon(self, call: OpenCall) -> None:
        """Free whatever of the call has not ended."""
        for live in list(call.live.values()):
            self._drop(live)

    # For the drivers

    def receive(self, drawn: Sequence[Drawn], departed: Sequence[Departed]) -> Sequence[tuple[str, int]]:
        """Take one engine step's events; those (ticket, attempt) that nobody waits for any more."""
        now_s = _now_s()
        unwanted = [(event.ticket, event.attempt) for event in drawn if not self._on_drawn(event, now_s)]
        for event in departed:
            live = self._live.get(event.ticket)
            if live is not None and live.ticket.attempt == event.attempt:
                self._on_departed(live, event)
        return unwanted

    def claimed(self, tickets: Sequence[tuple[str, int]]) -> None:
        """These are on their way into an engine."""
        now_s = _now_s()
        for ticket, attempt in tickets:
            live = self._live.get(ticket)
            if live is not None and live.ticket.attempt == attempt:
                self._hear(live, now_s)

    def _hear(self, live: Live, now_s: float) -> None:
        if live.heard_s is None:
            self._metrics.ticket_dequeued(live.ticket.service_class)
            live.claimed_s = live.claimed_s or now_s
        live.heard_s = now_s

    def _on_drawn(self, event: Drawn, now_s: float) -> bool:
        """Deliver a token; False if nobody waits for this attempt."""
        live = self._live.get(event.ticket)
        if live is None or live.ticket.attempt != event.attempt:
            return False
        next_index = len(live.choice.tokens)
        if event.index > next_index:
            self._put_back(live, "gap")
            return False
        if event.index < next_index:
            return True
        self._count(live, now_s)
        delta = live.choice.push(event.token, event.logprob)
        if delta is not None:
            live.call.push(delta)
            if delta.finish_reason is not None:
                self._finished(live, delta.finish_reason)
                self._drop(live)
        return True

    def _count(self, live: Live, now_s: float) -> None:
        """A token came."""
        since_s = None if live.first_s is None or live.heard_s is None else now_s - live.heard_s
        self._metrics.tokens(1, since_s)
        self._hear(live, now_s)
        if live.first_s is None:
            live.first_s = now_s
        if not live.call.has_tokens:
            live.call.has_tokens = True
            self._metrics.first_token(live.ticket.service_class, now_s - live.call.arrival_s)
            self.gatekeeper.first_token(live.call, now_s - live.call.arrival_s)

    def _finished(self, live: Live, reason: FinishReason) -> None:
        """The choice is complete."""
        self._learn(live, reason)
        arrival_s, now_s = live.call.arrival_s, _now_s()
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

    def _on_departed(self, live: Live, event: Departed) -> None:
        if event.end in _FINISHED:
            last = live.choice.end(_FINISHED[event.end])
            self._remove(live)
            self._outbox.finish(live)
            live.call.push(last)
            self._finished(live, last.finish_reason or FinishReason.STOP)
        elif event.end is End.FAILED:
            log.error("engine.failed", ticket=live.ticket.id, detail=event.detail)
            self._fail(live, InternalError("The engine could not run this request.", code="engine_error"))
        elif event.end is None and live.ticket.deaths + 1 >= _MAX_DEATHS:
            message = f"The engine died {_MAX_DEATHS} times while it ran this request."
            self._fail(live, Poisoned(message, should_retry=False))
        else:
            self._put_back(live, event.end or _DIED)

    # Endings and put-backs

    def _remove(self, live: Live) -> None:
        self._live.pop(live.ticket.id, None)
        if live.heard_s is None:
            self._metrics.ticket_dequeued(live.ticket.service_class)
        live.call.live.pop(live.ticket.id, None)

    def _drop(self, live: Live) -> None:
        """Free a ticket wherever it is: row, lease, place in the queue."""
        self._remove(live)
        self._outbox.cancel(live)

    def _fail(self, live: Live, error: ApiError) -> None:
        """One choice's failure ends its call."""
        self._abandon(live.call)
        live.call.fail(error)

    def _put_back(self, live: Live, reason: str) -> None:
        log.info("ticket.put_back", ticket=live.ticket.id, attempt=live.ticket.attempt, reason=reason)
        self._metrics.ticket_put_back(reason)
        if live.heard_s is not None:
            self._metrics.ticket_queued(live.ticket.service_class)
        self._cancel([(live.ticket.id, live.ticket.attempt)])
        live.next_attempt(died=reason == _DIED, evicted=reason == End.EVICTED)
        self._outbox.put_back(live)

    # Background

    async def run(self) -> NoReturn:
        """Tell the store what ended, what goes back and what goes on, and audit, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outbox.run())
            group.create_task(self._reservations.run())
            group.create_task(self._audit_for_ever())
        raise AssertionError("never ends")

    async def _audit_for_ever(self) -> NoReturn:
        while True:
            pause_s = self._config.audit_s
            try:
                await self.audit()
            except StoreLost:
                pause_s = min(pause_s, _RETRY_S)
            await asyncio.sleep(pause_s)

    async def audit(self) -> None:
        """Put back what the store has forgotten and what has been silent for too long.  Raises StoreLost."""
        now_s = _now_s()
        for live in list(self._live.values()):
            if live.is_drawing and now_s - (live.heard_s or now_s) > self._config.progress_timeout_s:
                self._put_back(live, "silent")
        asked = {live.ticket.id: live.ticket.attempt for live in self._live.values() if live.known}
        unknown = await self._store.audit(self.gateway, list(asked.items()), self._config.life_s)
        for ticket in unknown:
            found = self._live.get(ticket)
            if found is not None and found.ticket.attempt == asked[ticket]:
                self._put_back(found, "unknown to the store")
        orphans = await self._store.reap(1000)
        self._recall((ticket, _ANY_ATTEMPT, replica) for ticket, replica in orphans)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
