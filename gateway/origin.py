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
from math import inf
from typing import NoReturn

import msgspec
import structlog

from gateway import recorder, token_log
from gateway.call import Live, OpenCall, outcome_of
from gateway.errors import (
    ApiError,
    DeadlineExceeded,
    InternalError,
    Interrupted,
    Poisoned,
    StoreLost,
    Unavailable,
)
from gateway.fleet import Fleet
from gateway.gatekeeper import Gatekeeper, Start
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
    Tenant,
)
from gateway.reservations import Reservations
from gateway.resumption import Resumption
from gateway.tally import Tally
from gateway.ticketing import Aim
from triton_backend.contract import End

log = structlog.get_logger()

_FINISHED = {End.STOP: FinishReason.STOP, End.LENGTH: FinishReason.LENGTH}
_MAX_DEATHS = 3
_DIED = "engine died"
_ANY_ATTEMPT = 2**62
_RETRY_S = 0.2
_AFTERMATH_S = 5.0
"""So long after the store did not answer, there may be claims whose answer was lost: drivers let the store forget
them."""
_IDLE_POLL_S = 0.05


class Config(msgspec.Struct, frozen=True):
    """An origin's bounds.  Times in seconds."""

    limits: Limits
    policy: Policy
    aims: Mapping[ServiceClass, Aim]
    shares: Mapping[ServiceClass, float]
    audit_s: float = 2.0
    life_s: float = 15.0
    """Without a sign of life for this long, an origin's tickets are forgotten."""
    progress_timeout_s: float = 60.0
    """A ticket whose attempt has drawn a token and then nothing for this long is put back."""
    resume: recorder.Config = recorder.Config()


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
        start: Start,
        wake: Callable[[], None],
        cancel: Callable[[Iterable[tuple[str, int]]], None],
        recall: Callable[[Iterable[tuple[str, int, str]]], None],
    ) -> None:
        """`start`, `wake`, `cancel` and `recall` reach the drivers, as in Gatekeeper and Outbox."""
        self.gateway = gateway
        self.models = [model]
        self._store = store
        self._fleet = fleet
        self._config = config
        self._metrics = metrics
        self._start = start
        self._wake = wake
        self._cancel = cancel
        self._recall = recall
        self._reservations = reservations
        self._intake = Intake(gateway, tokenizer, fleet, profiler, config.policy, config.aims)
        self.gatekeeper = Gatekeeper(config.policy.admission, store, fleet, config.limits, config.shares)
        self.is_draining = False
        """Set once at shutdown: nothing new comes in, and readiness says so."""
        self._live: dict[str, Live] = {}
        self._silent: set[Live] = set()
        """Silent for too long when audited last."""
        self._tally = Tally(metrics, self.gatekeeper, profiler)
        self._resumption = Resumption(
            gateway, store, tokenizer, profiler, config.resume, metrics, recall, self._close
        )
        self._outbox = Outbox(store, wake, cancel, recall)
        self._audited_s = self._steady_since_s = -inf
        """The last audit, and the first since the store was silent for long."""

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
        while self._live or not (
            self._outbox.is_empty and self._reservations.is_settled and self._resumption.recorder.is_empty
        ):
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
        try:
            call = await self._enter(request, call_id, arrival_s)
        except ApiError:
            self._metrics.call_refused(request.service_class)
            raise
        async with self._connected(call, sum(call.prompt_tokens)):
            yield call

    @contextlib.asynccontextmanager
    async def resume(self, call_id: str, tenant: Tenant) -> AsyncIterator[OpenCall]:
        """Go on with a call, from its beginning; whoever read it is interrupted.

        Raises NotFound if the tenant has none such that can go on, OverQuota, Unavailable, Interrupted.
        """
        self._check_open()
        call = await self._resumption.take_over(call_id, tenant.name)
        if call is None:
            call = await self._resumption.adopt(call_id, tenant.name)
            await self._reservations.reserve(call, tenant)
            self._go_on(call)
        async with self._connected(call, 0):
            yield call

    @contextlib.asynccontextmanager
    async def _connected(self, call: OpenCall, prompt_tokens: int) -> AsyncIterator[None]:
        """A client reads the call."""
        service_class, outcome = call.service_class, Outcome.CANCELLED
        self._metrics.call_opened(service_class, prompt_tokens)
        self._expire_after(call, call.request.targets.deadline_s)
        try:
            yield
            if call.error is None and not call.live:
                outcome = Outcome.FINISHED
        finally:
            if call.error is not None:
                outcome = outcome_of(call.error)
            if call.recording and call.request.keeps_running and call.live:
                call.is_read = False
            else:
                self._close(call)
            self._metrics.call_ended(service_class, outcome, _now_s() - call.arrival_s)

    def _go_on(self, call: OpenCall) -> None:
        """An adopted call's tickets are this gateway's now.  Raises Interrupted."""
        try:
            self._resumption.go_on(call)
        except Interrupted:
            self._reservations.refund(call)
            raise
        for id, live in call.live.items():
            self._live[id] = live
            self._metrics.ticket_queued(call.service_class)
            self._outbox.put_back(live)

    def cut(self) -> None:
        """Time is up: every stream ends, to be resumed elsewhere."""
        for call in list({live.call.id: live.call for live in self._live.values()}.values()):
            error = Interrupted if call.recording else Unavailable
            call.fail(error("This gateway is shutting down.", retry_after_s=1.0))
            self._close(call)

    def _close(self, call: OpenCall) -> None:
        """Nobody reads the call here; what of it has not ended is freed."""
        self._abandon(call)
        if call.expiry is not None:
            call.expiry.cancel()
        self._resumption.end(call)
        self._reservations.settle(call)

    def _expire_after(self, call: OpenCall, deadline_s: float | None) -> None:
        if deadline_s is not None:
            due_s = call.arrival_s + deadline_s
            call.expiry = asyncio.get_running_loop().call_at(due_s, self._expire, call)

    def _expire(self, call: OpenCall) -> None:
        """The call's deadline has passed: it ends with what it has."""
        if not call.live:
            return
        if not call.has_tokens:
            message = "The deadline passed before the first token; the request was not run to its end."
            self._fail(call, DeadlineExceeded(message, should_retry=False))
            return
        for live in list(call.live.values()):
            call.finish(live.choice, FinishReason.LENGTH, "deadline")
            self._drop(live)

    async def _enter(self, request: Request, call_id: str, arrival_s: float) -> OpenCall:
        """Tokenise, reserve, admit, queue.  Raises ApiError."""
        self._check_open()
        call = await self._intake.call(request, call_id, arrival_s)
        await self._reservations.reserve(call, request.tenant)
        self._resumption.begin(call)
        lives = list(call.live.values())
        for live in lives:
            self._live[live.ticket.id] = live
            self._metrics.ticket_queued(request.service_class)
        try:
            await self._put(call, request)
        except BaseException:
            # A put that failed or was cancelled may have happened all the same.
            self._abandon(call)
            self._reservations.refund(call)
            self._resumption.forget(call)
            raise
        self._resumption.keep(call, [live.ticket for live in lives])
        return call

    def _check_open(self) -> None:
        """Raises Unavailable."""
        if self.is_draining:
            raise Unavailable("This gateway is shutting down.", retry_after_s=1.0)

    async def _put(self, call: OpenCall, request: Request) -> None:
        self.gatekeeper.arrived(call, request)
        try:
            entries, scores = await self.gatekeeper.enter(call, request, self._start, self._wake)
        except StoreLost as lost:
            raise Unavailable("The queue does not answer.", retry_after_s=2.0) from lost
        except ApiError:
            self._forget(call)
            raise
        self._queued(entries, scores)

    def _forget(self, call: OpenCall) -> None:
        """Nothing of the call was queued."""
        for live in list(call.live.values()):
            self._remove(live)

    def _queued(self, entries: Sequence[Entry], scores: Sequence[float]) -> None:
        for entry, score in zip(entries, scores, strict=True):
            if found := self._live.get(entry.ticket.id):
                found.ticket = msgspec.structs.replace(found.ticket, score=score)
                found.known |= found.ticket.attempt == entry.ticket.attempt

    def _abandon(self, call: OpenCall) -> None:
        """Free whatever of the call has not ended."""
        for live in list(call.live.values()):
            self._drop(live)

    # For the drivers

    def receive(self, drawn: Sequence[Drawn], departed: Sequence[Departed]) -> Sequence[tuple[str, int]]:
        """Take one engine step's events; those (ticket, attempt) that nobody waits for any more."""
        now_s = _now_s()
        unwanted = [(event.ticket, event.attempt) for event in drawn if not self._on_drawn(event, now_s)]
        self._tally.step_ended()
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
                self._tally.heard(live, now_s)

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
        self._tally.token(live, now_s)
        reason = live.call.drew(live.choice, event.token, event.logprob)
        if reason is not None:
            self._tally.finished(live, reason)
            self._drop(live)
        return True

    def _on_departed(self, live: Live, event: Departed) -> None:
        if event.end in _FINISHED and len(live.choice.tokens) < event.num_tokens:
            self._put_back(live, "gap")
        elif event.end in _FINISHED:
            self._tally.finished(live, live.call.finish(live.choice, _FINISHED[event.end]))
            self._remove(live)
            self._outbox.finish(live)
        elif event.end is End.FAILED:
            log.error("engine.failed", ticket=live.ticket.id, detail=event.detail)
            self._fail(live.call, InternalError("The engine could not run this request.", code="engine_error"))
        elif event.end is None and live.ticket.deaths + 1 >= _MAX_DEATHS:
            message = f"The engine died {_MAX_DEATHS} times while it ran this request."
            self._fail(live.call, Poisoned(message, should_retry=False))
        else:
            self._put_back(live, event.end or _DIED)

    # Endings and put-backs

    def _remove(self, live: Live) -> None:
        self._live.pop(live.ticket.id, None)
        if live.heard_s is None:
            self._metrics.ticket_dequeued(live.ticket.service_class)
        live.call.ended(live)
        if not (live.call.live or live.call.is_read):
            self._close(live.call)

    def _drop(self, live: Live) -> None:
        """Free a ticket wherever it is: row, lease, place in the queue."""
        self._remove(live)
        self._outbox.cancel(live)

    def _fail(self, call: OpenCall, error: ApiError) -> None:
        """One choice's failure ends its call."""
        if call.recording is not None:
            call.recording.close()
        self._abandon(call)
        call.fail(error)

    def _put_back(self, live: Live, reason: str) -> None:
        log.info("ticket.put_back", ticket=live.ticket.id, attempt=live.ticket.attempt, reason=reason)
        self._metrics.ticket_put_back(reason)
        if live.heard_s is not None:
            self._metrics.ticket_queued(live.ticket.service_class)
        self._cancel([(live.ticket.id, live.ticket.attempt)])
        if reason == _DIED and live.call.recording is not None:
            live.call.recording.append(token_log.died(live.choice.number, live.ticket.deaths + 1))
        live.next_attempt(died=reason == _DIED, evicted=reason == End.EVICTED)
        self._outbox.put_back(live)

    # Background

    async def run(self) -> NoReturn:
        """Tell the store what ended, what goes back and what goes on, and audit, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outbox.run())
            group.create_task(self._reservations.run())
            group.create_task(self._resumption.recorder.run())
            group.create_task(self._audit_for_ever())
        raise AssertionError("never ends")

    async def _audit_for_ever(self) -> NoReturn:
        lost_s = -inf
        while True:
            try:
                await self.audit()
            except StoreLost:
                lost_s = _now_s()
            is_aftermath = _now_s() - lost_s < _AFTERMATH_S
            await asyncio.sleep(min(self._config.audit_s, _RETRY_S) if is_aftermath else self._config.audit_s)

    async def audit(self) -> None:
        """Put back what the store has forgotten and what has been silent for too long.  Raises StoreLost."""
        self._resumption.recorder.refresh()
        self._put_back_silent()
        asked = {live.ticket.id: live.ticket.attempt for live in self._live.values() if live.known}
        unknown = await self._store.audit(self.gateway, list(asked.items()), self._config.life_s)
        heard_since_s = _now_s() - self._config.audit_s
        for ticket in unknown:
            found = self._live.get(ticket)
            if found is None or found.ticket.attempt != asked[ticket]:
                continue
            # A row that is heard runs: in an engine that outlived the store, or what it drew is still on its way
            # from a driver that came late and was superseded.
            if found.heard_s is None or found.heard_s < heard_since_s:
                self._put_back(found, "unknown to the store")
        if self._is_steady():
            orphans = await self._store.reap(1000)
            self._recall((ticket, _ANY_ATTEMPT, replica) for ticket, replica in orphans)

    def _put_back_silent(self) -> None:
        """Those found silent twice in a row, since it may be this process that was stopped."""
        since_s = _now_s() - self._config.progress_timeout_s
        silent = [
            live
            for live in self._live.values()
            if live.is_drawing and live.heard_s is not None and live.heard_s < since_s
        ]
        for live in silent:
            if live in self._silent:
                self._put_back(live, "silent")
        self._silent = set(silent)

    def _is_steady(self) -> bool:
        """The store has answered for so long that every origin that lives has told it so.  After a time in which
        it answered nobody, all of them look dead to it."""
        now_s = _now_s()
        if now_s - self._audited_s > self._config.life_s / 2:
            self._steady_since_s = now_s
        self._audited_s = now_s
        return now_s - self._steady_since_s > self._config.life_s / 2


def _now_s() -> float:
    return asyncio.get_running_loop().time()
